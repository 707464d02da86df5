"""What the scoring pool costs beside its scorers, as ratios measured in one run.

    python -m benchmarks.scoring [--workers 1]

Each line asks a scorer of known cost (it spins for 2, 10 and 50 ms of CPU per image), or the verifier of the world
`shapes`, in this process and in processes that are already warm. `wall` is seconds in the pool × processes / seconds
in this process − 1, and means something only on a quiet machine with as many free cores; `parent` is the CPU of this
process while the pool works, over the CPU of the scorer: what handing out pictures and taking in scores costs. The
last line weights a scored iteration again.
"""

from __future__ import annotations

import argparse
import time

import cv2
import numpy as np

from tdm_r1.artifacts.records import Rewards
from tdm_r1.config import RewardConfig, ScorerConfig
from tdm_r1.rewards.aggregate import aggregate
from tdm_r1.rewards.ask import Question
from tdm_r1.rewards.judges import Judges
from tdm_r1.rewards.protocol import Image, Metadata, PerImage, Score, ScorerInfo
from tdm_r1.worlds.shapes.grammar import split
from tdm_r1.worlds.shapes.render import render


class Spin(PerImage):
    """Costs `milliseconds` of CPU per image."""

    about = ScorerInfo(name="spin", version="1", licence="Apache-2.0")

    def __init__(self, milliseconds: float) -> None:
        super().__init__()
        self._seconds = milliseconds / 1000

    def score_one(self, image: Image, prompt: str, metadata: Metadata) -> Score:
        del prompt, metadata
        end = time.process_time() + self._seconds
        while time.process_time() < end:
            pass
        return Score(float(image[0, 0, 0]))

    def selftest(self) -> None:
        return


def cost(judges: Judges, questions: list[Question]) -> tuple[float, float]:
    """Wall and CPU seconds of this process for one call, after the same call started and warmed up every process."""
    judges.score(judges.first, questions)
    wall, cpu = time.perf_counter(), time.process_time()
    judges.score(judges.first, questions)
    return time.perf_counter() - wall, time.process_time() - cpu


def overhead(label: str, name: str, options: dict[str, float], questions: list[Question], workers: int) -> None:
    found = []
    for count in (0, workers):
        section = ScorerConfig.model_validate({"use": name, "options": options})
        judges = Judges(RewardConfig(scorers={"scorer": section}, workers=count))
        found.append(cost(judges, questions))
        judges.close()
    (alone, scoring), (pooled, parent) = found
    ratios = f"{100 * (pooled * workers / alone - 1):8.1f}% {100 * parent / scoring:8.1f}%"
    print(f"{label:26} {1000 * scoring / len(questions):8.2f} {len(questions) / pooled:9.1f} {ratios}", flush=True)


def pictures(count: int, side: int) -> list[Question]:
    rng = np.random.default_rng(0)
    return [Question(rng.integers(0, 256, (side, side, 3), dtype=np.uint8), "", {}) for _ in range(count)]


def drawn(count: int) -> list[Question]:
    rng = np.random.default_rng(0)
    prompts = [prompt for rows in split()[1].values() for prompt in rows][:count]
    return [Question(render(prompt, rng), prompt.text, prompt.metadata()) for prompt in prompts]


def reweight(count: int) -> float:
    """Seconds to aggregate `count` samples of two scorers."""
    names = ("a", "b")
    keys = {"sample_id": [f"s{n}" for n in range(count)] * 2, "prompt_id": ["p"] * 2 * count}
    raw = {"scorer": [name for name in names for _ in range(count)], "value": [0.5] * 2 * count}
    rest = {"group": [n // 16 for n in range(count)] * 2, "parts": [[]] * 2 * count}
    empty = {"detail": [None] * 2 * count, "error": [None] * 2 * count}
    who = {"version": "1", "revision": "", "options": "{}", "device": "cpu", "licence": "MIT", "low": 0.0, "high": 1.0}
    flags = {"higher_is_better": True, "deterministic": True}
    scorers = {name: [value] * 2 for name, value in (who | flags).items()}
    record = Rewards(
        scores=Rewards.table("scores", **keys, **raw, **rest, **empty),
        scorers=Rewards.table("scorers", name=names, use=names, **scorers),
    )
    config = RewardConfig(scorers={"a": ScorerConfig(weight=2.0), "b": ScorerConfig(scale=0.1)})
    started = time.perf_counter()
    aggregate(record, config)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=1)
    workers = parser.parse_args().workers
    cv2.setNumThreads(1)  # as in a process of the pool
    print(f"{'scorer, pictures':26} {'ms/image':>8} {'images/s':>9} {'wall':>9} {'parent':>9}   {workers} process(es)")
    for milliseconds, count, side in ((2, 1000, 64), (10, 300, 64), (10, 300, 512), (50, 60, 512)):
        label = f"spin {milliseconds} ms, {side} px"
        overhead(label, "benchmarks.scoring:Spin", {"milliseconds": milliseconds}, pictures(count, side), workers)
    overhead("shapes, 64 px", "shapes", {}, drawn(1000), workers)
    print(f"re-weighting 1,000 samples of 2 scorers: {reweight(1000):.3f} s")


if __name__ == "__main__":
    main()
