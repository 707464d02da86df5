"""The scorer `ocr` against the usual way of reading, as ratios measured in one run.

    python -m benchmarks.ocr [--images 200] [--workers 2] [--memory 1000] [--sizes 128 512] [--fill 0.85]

First the resident memory is told while pictures of one size, and then of many, are read. Then the scorer is compared
with the usual way: one call per picture of an engine with its default settings, in one process. A line tells what that
costs with one thread, for its threads spin where there are fewer cores. All read the same pictures, block by block in
turn; `ms` is CPU per picture, `/s` pictures per second of wall time, and `right` the share of which the recognised text
equals the drawn one. Last the pool is compared with itself, 1 process against `--workers`, which means something only
with as many free cores; 0 leaves it out.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice
from typing import Any

import numpy as np
from rapidocr import RapidOCR

from benchmarks.lettering import lettering
from tdm_r1.config import RewardConfig, ScorerConfig
from tdm_r1.rewards.ask import Question, ask, make_ready
from tdm_r1.rewards.judges import Judges
from tdm_r1.rewards.ocr_text import read
from tdm_r1.rewards.protocol import Scorer
from tdm_r1.rewards.registry import open_scorer
from tdm_r1.rewards.worker import resident_mb
from tdm_r1.worlds.ocr_prompts import benchmark_rows

BLOCK = 10
"""Pictures that one way reads before the other has its turn."""


@dataclass
class Way:
    """One way of reading, and what it cost so far."""

    name: str
    answer: Callable[[Sequence[Question]], list[tuple[bool, float]]]
    """Whether each text is exactly right, and its reward."""
    wall: float = 0.0
    cpu: float = 0.0
    answers: list[tuple[bool, float]] = field(default_factory=list)

    def take(self, questions: Sequence[Question]) -> None:
        wall, cpu = time.perf_counter(), time.process_time()
        self.answers += self.answer(questions)
        self.wall += time.perf_counter() - wall
        self.cpu += time.process_time() - cpu

    def line(self) -> str:
        count = len(self.answers)
        right, reward = (sum(float(each[at]) for each in self.answers) / count for at in (0, 1))
        numbers = f"{1000 * self.cpu / count:7.0f} {count / self.wall:7.1f} {right:7.3f} {reward:7.3f}"
        return f"{self.name:24} {numbers}"


def questions(count: int, sizes: Sequence[int], fill: float) -> list[Question]:
    """Texts of the benchmark, spread over its tags, in pictures of the given sizes in turn."""
    rows = benchmark_rows()
    chosen = [rows[at * len(rows) // count % len(rows)] for at in range(count)]
    sides = islice(cycle(sizes), count)
    return [
        Question(lettering(row["text"], side, seed, fill=fill), row["prompt"], {"text": row["text"]})
        for seed, (row, side) in enumerate(zip(chosen, sides, strict=True))
    ]


def usual(**params: Any) -> Callable[[Sequence[Question]], list[tuple[bool, float]]]:
    """RapidOCR as its own guide shows it."""
    engine: Any = RapidOCR(params={"Global.log_level": "error", **params})

    def answer(asked: Sequence[Question]) -> list[tuple[bool, float]]:
        texts = ["".join(engine(np.ascontiguousarray(q.picture[..., ::-1])).txts or ()) for q in asked]
        found = [read(text, question.metadata["text"]) for text, question in zip(texts, asked, strict=True)]
        return [(reading.exact, reading.reward) for reading in found]

    return answer


def ours(scorer: Scorer) -> Callable[[Sequence[Question]], list[tuple[bool, float]]]:
    def answer(asked: Sequence[Question]) -> list[tuple[bool, float]]:
        return [(score.part("exact") == 1.0, score.value or 0.0) for score in ask(scorer, asked)]

    return answer


def compare(asked: Sequence[Question], scorer: Scorer) -> None:
    one = usual(**{f"EngineConfig.onnxruntime.{kind}_op_num_threads": 1 for kind in ("intra", "inter")})
    ways = (Way("usual: defaults", usual()), Way("defaults, one thread", one), Way("scorer `ocr`", ours(scorer)))
    for way in ways:
        way.answer(asked[:2])
    for start in range(0, len(asked), BLOCK):
        for way in ways:
            way.take(asked[start : start + BLOCK])
    sides = sorted({question.picture.shape[0] for question in asked})
    print(f"{f'{len(asked)} of {sides} px':24} {'ms':>7} {'/s':>7} {'right':>7} {'reward':>7}")
    print("\n".join(way.line() for way in ways))
    *others, last = ways
    for way in others:
        print(f"throughput × {way.wall / last.wall:.1f}, CPU × {way.cpu / last.cpu:.1f} against {way.name}")
    print(flush=True)


def memory(count: int, scorer: Scorer, sides: range) -> None:
    """Resident memory while pictures of these sides are read."""
    rng = np.random.default_rng(0)
    marks = {max(1, count * share // 10) for share in (1, 2, 5, 10)}
    found = []
    for number in range(1, count + 1):
        side = int(rng.choice(sides))
        ask(scorer, [Question(lettering(f"Room {number}", side, number), f'"Room {number}"', {})])
        if number in marks:
            found.append(f"{number}: {resident_mb():.0f}")
    print(f"resident MB after pictures of {sides[0]} to {sides[-1]} px: {', '.join(found)}", flush=True)


def scale(asked: Sequence[Question], workers: int) -> None:
    found = {}
    for count in (1, workers):
        judges = Judges(RewardConfig(scorers={"ocr": ScorerConfig()}, workers=count))
        judges.score("ocr", asked[:16])
        started = time.perf_counter()
        judges.score("ocr", asked)
        found[count] = len(asked) / (time.perf_counter() - started)
        judges.close()
        print(f"pool of {count}: {found[count]:.1f} pictures/s", flush=True)
    print(f"{workers} processes: × {found[workers] / found[1]:.2f} the throughput of 1")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--memory", type=int, default=1000)
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 512])
    parser.add_argument("--fill", type=float, default=0.85)
    parser.add_argument("--side", type=int, default=0, help="the scorer's option of that name")
    given = parser.parse_args()
    scorer = open_scorer("ocr", {"side": given.side})
    make_ready(scorer)
    for sides in (range(128, 129), range(64, 513)) if given.memory else ():
        memory(given.memory, scorer, sides)
    for side in given.sizes if given.images else ():
        compare(questions(given.images, [side], given.fill), scorer)
    if given.images and given.workers:
        scale(questions(given.images, given.sizes, given.fill), given.workers)


if __name__ == "__main__":
    main()
