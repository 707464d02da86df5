"""What several optimizer steps per scored rollout cost: `python benchmarks/staleness.py [--seeds 0 1 2]`.

On the world `plane`, `generator.updates` and `surrogate.updates` are 1, 2, 4 and 8 together. Each setting runs until it
has drawn IMAGES images and taken STEPS generator steps, so that it can be read against both. Of each seed all settings
start from one distilled generator. Success is that of the averaged generator on 2,048 points of the test split. Time is
the processor time of one thread, for a machine that is shared has no other; judging is left out of it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final

import torch

from tdm_r1 import presets
from tdm_r1.artifacts.records import Base, role_tensors
from tdm_r1.tunnel import Tunnel, measure, reinforce

UPDATES: Final = (1, 2, 4, 8)
IMAGES: Final = 15_360
STEPS: Final = 240
PLACES: Final[Mapping[str, Sequence[float]]] = {
    "images": (2_560, 5_120, 10_240, 15_360),
    "steps": (40, 80, 160, 240),
    "seconds": (4, 8, 12, 16),
}
"""Where the curves are read."""


@dataclass(frozen=True)
class Point:
    """Of a curve."""

    images: float
    steps: float
    seconds: float
    success: float


def tunnel_of(seed: int, updates: int) -> Tunnel:
    """The preset with as many steps of each role per iteration; iterations follow from the two budgets."""
    plain = presets.resolve("plane", {})
    drawn = plain.rollout.groups * plain.rollout.group_size
    iterations = max(-(-IMAGES // drawn), -(-STEPS // updates))
    changed = {
        "seed": seed,
        "iterations": iterations,
        "generator.updates": updates,
        "surrogate.updates": updates,
    }
    return Tunnel(presets.resolve("plane", changed))


def curve_of(tunnel: Tunnel, base: Base, every: int) -> list[Point]:
    """Success on the way, beginning at the distilled generator."""
    config = tunnel.config
    drawn = config.rollout.groups * config.rollout.group_size
    points = [Point(0, 0, 0.0, measure(tunnel, role_tensors(base.state, "generator_ema")).success)]
    spent, mark = 0.0, time.process_time()
    for iteration, state in enumerate(reinforce(tunnel, base), start=1):
        spent += time.process_time() - mark
        if iteration % every == 0:
            success = measure(tunnel, role_tensors(state.state, "generator_ema")).success
            points.append(Point(iteration * drawn, iteration * config.generator.updates, spent, success))
        mark = time.process_time()
    return points


def at(curve: Sequence[Point], axis: str, place: float) -> float | None:
    """Success where an axis has this value, linear between points; None beyond the end."""
    for before, after in pairwise(curve):
        low, high = getattr(before, axis), getattr(after, axis)
        if low <= place <= high:
            share = (place - low) / (high - low)
            return before.success + share * (after.success - before.success)
    return None


def table(curves: Mapping[int, Sequence[Sequence[Point]]]) -> str:
    """Means over seeds, then the seeds' range; empty where a curve ended before."""
    heads = [f"{place:,} {axis}" for axis, places in PLACES.items() for place in places]
    lines = [f"| updates | {' | '.join(heads)} |", f"|---|{'---|' * len(heads)}"]
    for updates, of_seeds in curves.items():
        cells = []
        for axis, places in PLACES.items():
            for place in places:
                found = [value for curve in of_seeds if (value := at(curve, axis, place)) is not None]
                whole = len(found) == len(of_seeds)
                cells.append(f"{statistics.fmean(found):.3f} ({min(found):.2f}–{max(found):.2f})" if whole else "")
        lines.append(f"| {updates} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--every", type=int, default=5, help="iterations between measurements")
    parser.add_argument("--curves", type=Path, help="JSON file for every point")
    given = parser.parse_args()
    torch.set_num_threads(1)
    curves: dict[int, list[list[Point]]] = {updates: [] for updates in UPDATES}
    for seed in given.seeds:
        base = tunnel_of(seed, 1).distil()
        for updates in UPDATES:
            curves[updates].append(curve_of(tunnel_of(seed, updates), base, given.every))
            last = curves[updates][-1][-1]
            print(f"seed {seed}, {updates} updates: {curves[updates][-1][0].success:.3f} to {last}", flush=True)
    if given.curves:
        given.curves.write_text(json.dumps({u: [[asdict(p) for p in c] for c in s] for u, s in curves.items()}))
    print(table(curves))


if __name__ == "__main__":
    main()
