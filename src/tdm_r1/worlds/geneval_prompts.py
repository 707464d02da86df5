"""GenEval's prompts: the 553 rows of the benchmark, and training prompts that share none with them.

The benchmark's file is not shipped: its rows are drawn again, by the same draws from the same seed of NumPy's
generator, and come out byte for byte (`SHA256`). NumPy does not promise its streams for ever, so a
generator that no longer gives them refuses.

Source: GenEval, arXiv 2310.11513, `prompts/evaluation_metadata.jsonl`; training mix: Flow-GRPO, arXiv 2505.05470.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import count as count_up
from itertools import cycle, islice
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from tdm_r1.errors import ConfigError
from tdm_r1.worlds.geneval import COLORS, RELATIONS, TAGS
from tdm_r1.worlds.world import WorldPrompt

Row = dict[str, Any]

SHA256: Final = "5c48e0813e812e3c373fa5c8ed07a8f0a483be30272b4427b0559c8048e67c13"
# fmt: off
CLASSES: Final = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow", "elephant",
    "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard",
    "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
    "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange", "broccoli",
    "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant", "bed", "dining table", "toilet",
    "tv", "laptop", "computer mouse", "tv remote", "computer keyboard", "cell phone", "microwave", "oven", "toaster",
    "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
)
# fmt: on
"""COCO's 80 things in COCO's order; three have longer names than there."""
NUMBERS: Final = MappingProxyType({2: "two", 3: "three", 4: "four"})
PER_TAG: Final = 100
"""Draws of each tag but the first, before repetitions are dropped."""
MIX: Final[Mapping[str, int]] = MappingProxyType(
    {"position": 7, "counting": 5, "color_attr": 3, "colors": 1, "two_object": 1, "single_object": 0}
)
"""How often a training prompt has a tag."""
TRAINING_SEED: Final = 20260307
TRAINING_PROMPTS: Final = 1_700
"""Of the world; each costs a row of text embeddings, which is 5 MB for Stable Diffusion 3.5."""
_MISSES: Final = 3000


def _a(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _plural(noun: str) -> str:
    return f"{noun}{'es' if noun.endswith('s') else 's'}"


def _single_object(rng: np.random.Generator) -> Row:
    return _single(CLASSES[rng.choice(len(CLASSES))])


def _single(noun: str) -> Row:
    return {
        "tag": "single_object",
        "include": [{"class": noun, "count": 1}],
        "prompt": f"a photo of {_a(noun)}",
    }


def _two_object(rng: np.random.Generator) -> Row:
    first, second = (CLASSES[index] for index in rng.choice(len(CLASSES), size=2, replace=False))
    return {
        "tag": "two_object",
        "include": [{"class": first, "count": 1}, {"class": second, "count": 1}],
        "prompt": f"a photo of {_a(first)} and {_a(second)}",
    }


def _counting(rng: np.random.Generator) -> Row:
    noun, count = CLASSES[rng.choice(len(CLASSES))], int(rng.integers(2, 4, endpoint=True))
    return {
        "tag": "counting",
        "include": [{"class": noun, "count": count}],
        "exclude": [{"class": noun, "count": count + 1}],
        "prompt": f"a photo of {NUMBERS[count]} {_plural(noun)}",
    }


def _colors(rng: np.random.Generator) -> Row:
    noun = CLASSES[rng.choice(len(CLASSES) - 1) + 1]  # the first is `person`, which gets no colour
    color = COLORS[rng.choice(len(COLORS))]
    return {
        "tag": "colors",
        "include": [{"class": noun, "count": 1, "color": color}],
        "prompt": f"a photo of {_a(color)} {noun}",
    }


def _position(rng: np.random.Generator) -> Row:
    first, second = (CLASSES[index] for index in rng.choice(len(CLASSES), size=2, replace=False))
    relation = RELATIONS[rng.choice(len(RELATIONS))]
    return {
        "tag": "position",
        "include": [{"class": second, "count": 1}, {"class": first, "count": 1, "position": [relation, 0]}],
        "prompt": f"a photo of {_a(first)} {relation} {_a(second)}",
    }


def _color_attr(rng: np.random.Generator) -> Row:
    first, second = (CLASSES[index + 1] for index in rng.choice(len(CLASSES) - 1, size=2, replace=False))
    one, two = (COLORS[index] for index in rng.choice(len(COLORS), size=2, replace=False))
    return {
        "tag": "color_attr",
        "include": [{"class": first, "count": 1, "color": one}, {"class": second, "count": 1, "color": two}],
        "prompt": f"a photo of {_a(one)} {first} and {_a(two)} {second}",
    }


_DRAW: Final[Mapping[str, Callable[[np.random.Generator], Row]]] = MappingProxyType(
    {
        "single_object": _single_object,
        "two_object": _two_object,
        "counting": _counting,
        "colors": _colors,
        "position": _position,
        "color_attr": _color_attr,
    }
)


def as_jsonl(rows: list[Row]) -> bytes:
    """Rows as the benchmark writes them."""
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


@cache
def _benchmark() -> bytes:
    rng = np.random.default_rng(43)
    rows = [_single(CLASSES[index]) for index in rng.choice(len(CLASSES), size=len(CLASSES), replace=False)]
    rows += [_DRAW[tag](rng) for tag in TAGS[1:] for _ in range(PER_TAG)]
    return as_jsonl(list({json.dumps(row): row for row in rows}.values()))


def benchmark_rows() -> list[Row]:
    """The 553 metadata rows of the benchmark, in its order.

    Raises:
        ConfigError: when this NumPy draws other numbers than the benchmark's authors' did.
    """
    content = _benchmark()
    found = hashlib.sha256(content).hexdigest()
    if found != SHA256:
        raise ConfigError(
            f"GenEval's prompts come out with SHA-256 {found}, expected {SHA256}",
            hint=f"NumPy {np.__version__} draws other numbers: install numpy 2.4",
        )
    return [json.loads(line) for line in content.splitlines()]


def identity(row: Row) -> str:
    """What a prompt asks for; the order of two objects that are only named does not count."""
    clauses = [json.dumps(clause, sort_keys=True) for clause in row["include"]]
    return json.dumps([row["tag"], clauses if row["tag"] == "position" else sorted(clauses)])


def training_rows(count: int, seed: int = TRAINING_SEED) -> Iterator[Row]:
    """Prompts in the proportions of `MIX`, none of which asks for what a prompt of the benchmark asks for.

    Args:
        count: rows. A tag that has no more prompts to give, as `counting` after 160, gives the same ones again.
    """
    taken = {identity(row) for row in benchmark_rows()}
    rng = np.random.default_rng(seed)
    for tag, share in MIX.items():
        wanted = round(count * share / sum(MIX.values()))
        rows = list(islice(_fresh(tag, rng, taken), wanted))
        yield from islice(cycle(rows), wanted)


def _fresh(tag: str, rng: np.random.Generator, taken: set[str]) -> Iterator[Row]:
    """Prompts of a tag that were not taken yet; ends when none has come for long."""
    misses = 0
    while misses < _MISSES:
        row = _DRAW[tag](rng)
        if (key := identity(row)) in taken:
            misses += 1
        else:
            taken.add(key)
            misses = 0
            yield row


@dataclass(frozen=True)
class GenEvalWorld:
    """The benchmark's prompts to measure on, and others to train on, each once.

    A run draws a tag first and then a prompt of it: `rollout.tag_shares` sets the mix, for instance `MIX`.
    """

    def prompts(self) -> list[WorldPrompt]:
        rows = [("train", row) for row in {row["prompt"]: row for row in training_rows(TRAINING_PROMPTS)}.values()]
        rows += [("test", row) for row in benchmark_rows()]
        numbers: dict[tuple[str, str], Iterator[int]] = {}
        found = []
        for split, row in rows:
            number = next(numbers.setdefault((split, row["tag"]), count_up()))
            found.append(WorldPrompt(f"{split}-{row['tag']}-{number:04d}", row["prompt"], row["tag"], split, row))
        return found
