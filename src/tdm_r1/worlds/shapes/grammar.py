"""Prompts of the world `shapes`: GenEval's six tags over a small vocabulary.

A prompt is a sentence such as `a red circle and a blue square on navy`, and its
metadata is GenEval's row: `tag`, `include` (class, count, color, position) and
`exclude`. The background and the size word are rendered but not verified: they
make the sentences diverse, as the scenery of real prompts does.

Source of the form: GenEval, arXiv 2310.11513, `prompts/evaluation_metadata.jsonl`.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import permutations, product
from types import MappingProxyType
from typing import Any, Final

SHAPES: Final = ("circle", "square", "triangle", "cross", "ring")
PLURALS: Final = MappingProxyType({"cross": "crosses"})
COLORS: Final = MappingProxyType(
    {
        "red": (220, 40, 40),
        "yellow": (240, 215, 50),
        "green": (45, 175, 70),
        "blue": (60, 110, 245),
        "purple": (165, 70, 205),
        "white": (245, 245, 245),
    }
)
BACKGROUNDS: Final = MappingProxyType(
    {"black": (14, 14, 16), "gray": (88, 88, 88), "navy": (22, 26, 74), "teal": (14, 66, 66), "brown": (74, 48, 30)}
)
SIZES: Final = MappingProxyType({"": (7.8, 9.6), "small": (6.8, 7.6), "big": (10.8, 13.0)})
RELATIONS: Final = ("left of", "right of", "above", "below")
NUMBERS: Final = MappingProxyType({2: "two", 3: "three", 4: "four"})
TAGS: Final = ("single_object", "two_object", "counting", "colors", "position", "color_attr")

HELD_OUT: Final = MappingProxyType(
    {"single_object": 30, "two_object": 40, "counting": 30, "colors": 150, "position": 160, "color_attr": 190}
)
"""Prompts per tag that no training ever sees: 600 in all."""

_SPLIT_SEED: Final = 20260307


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One sentence with what a verifier needs to judge its image."""

    text: str
    tag: str
    include: tuple[dict[str, Any], ...]
    exclude: tuple[dict[str, Any], ...] = ()
    background: str = "black"
    size: str = ""

    def metadata(self) -> dict[str, Any]:
        """GenEval's metadata row."""
        row: dict[str, Any] = {"tag": self.tag, "include": [dict(clause) for clause in self.include]}
        if self.exclude:
            row["exclude"] = [dict(clause) for clause in self.exclude]
        row["prompt"] = self.text
        return row


def plural(shape: str) -> str:
    return PLURALS.get(shape, shape + "s")


def _join(*words: str) -> str:
    return " ".join(word for word in words if word)


def _single_object() -> Iterator[Prompt]:
    for shape, size, background in product(SHAPES, SIZES, BACKGROUNDS):
        yield Prompt(
            text=_join("a", size, shape, "on", background),
            tag="single_object",
            include=({"class": shape, "count": 1},),
            background=background,
            size=size,
        )


def _two_object() -> Iterator[Prompt]:
    for (first, second), background in product(permutations(SHAPES, 2), BACKGROUNDS):
        yield Prompt(
            text=f"a {first} and a {second} on {background}",
            tag="two_object",
            include=({"class": first, "count": 1}, {"class": second, "count": 1}),
            background=background,
        )


def _counting() -> Iterator[Prompt]:
    for shape, number, background in product(SHAPES, NUMBERS, BACKGROUNDS):
        yield Prompt(
            text=f"{NUMBERS[number]} {plural(shape)} on {background}",
            tag="counting",
            include=({"class": shape, "count": number},),
            exclude=({"class": shape, "count": number + 1},),
            background=background,
        )


def _colors() -> Iterator[Prompt]:
    for color, shape, size, background in product(COLORS, SHAPES, SIZES, BACKGROUNDS):
        yield Prompt(
            text=_join("a", size, color, shape, "on", background),
            tag="colors",
            include=({"class": shape, "count": 1, "color": color},),
            background=background,
            size=size,
        )


def _position() -> Iterator[Prompt]:
    for (first, second), relation, background in product(permutations(SHAPES, 2), RELATIONS, BACKGROUNDS):
        yield Prompt(
            text=f"a {first} {relation} a {second} on {background}",
            tag="position",
            include=(
                {"class": second, "count": 1},
                {"class": first, "count": 1, "position": (relation, 0)},
            ),
            background=background,
        )


def _color_attr() -> Iterator[Prompt]:
    for (first, second), (one, two), background in product(
        permutations(SHAPES, 2), permutations(COLORS, 2), BACKGROUNDS
    ):
        yield Prompt(
            text=f"a {one} {first} and a {two} {second} on {background}",
            tag="color_attr",
            include=({"class": first, "count": 1, "color": one}, {"class": second, "count": 1, "color": two}),
            background=background,
        )


_ENUMERATE: Final = MappingProxyType(
    {
        "single_object": _single_object,
        "two_object": _two_object,
        "counting": _counting,
        "colors": _colors,
        "position": _position,
        "color_attr": _color_attr,
    }
)


@cache
def split() -> tuple[dict[str, tuple[Prompt, ...]], dict[str, tuple[Prompt, ...]]]:
    """Every sentence of the world, split once and for all.

    Returns:
        `(training, held_out)`, each a tuple of prompts per tag. The split is a seeded
        shuffle per tag, so it never depends on a run's configuration.
    """
    training: dict[str, tuple[Prompt, ...]] = {}
    held_out: dict[str, tuple[Prompt, ...]] = {}
    for tag in TAGS:
        prompts = list(_ENUMERATE[tag]())
        random.Random(f"{_SPLIT_SEED}/{tag}").shuffle(prompts)
        count = HELD_OUT[tag]
        held_out[tag], training[tag] = tuple(prompts[:count]), tuple(prompts[count:])
    return training, held_out


def vocabulary() -> tuple[str, ...]:
    """Every word that a prompt can hold, sorted."""
    training, held_out = split()
    words = {word for part in (training, held_out) for rows in part.values() for p in rows for word in p.text.split()}
    return tuple(sorted(words))
