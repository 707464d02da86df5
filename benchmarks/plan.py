"""Is the planner right? Measure one run, plan another from it, run that too, and compare.

    python benchmarks/plan.py [--preset plane]
    python benchmarks/plan.py --run RUN

Both runs execute one process per stage, one after the other. The second has other shards and iterations. With --run
nothing is executed: the costs of the first half of a finished run plan its second half.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from typing import Any

from tdm_r1.artifacts.repository import read_manifest
from tdm_r1.artifacts.store import open_store
from tdm_r1.config import RunConfig
from tdm_r1.plan.costs import Costs, measured
from tdm_r1.plan.simulate import Cluster, simulate
from tdm_r1.presets import resolve
from tdm_r1.runtime.layout import Task, iteration_tasks, once_tasks
from tdm_r1.runtime.loop import isolated, loop
from tdm_r1.runtime.run import Run, create_run
from tdm_r1.runtime.run_file import read_config

MEASURED = {
    "iterations": 2,
    "generator.start": 1,
    "rollout.groups": 16,
    "rollout.shards": 2,
    "evaluation.every": 1,
    "distill.steps": 20,
}
PLANNED = {
    "iterations": 3,
    "generator.start": 2,
    "rollout.groups": 24,
    "rollout.shards": 4,
    "evaluation.every": 2,
    "distill.steps": 20,
}


def timed(root: str, preset: str, knobs: dict[str, Any]) -> tuple[Run, float]:
    """Run it, without the evaluation of what it starts from, and return the seconds from the first process on."""
    run = create_run(root, resolve(preset, knobs))
    started = time.monotonic()
    aside = 0.0
    before = started
    for done in loop(run, isolated):
        now = time.monotonic()
        if done.task == Task("evaluation", 0):
            aside += now - before
        before = now
    return run, time.monotonic() - started - aside


def planned(config: RunConfig, costs: Costs, first: int, last: int) -> float:
    """Seconds of iterations on this machine, one stage after the other: the median of 50 simulations."""
    machine = Cluster(pods={"rollout": 1, "update": 1, "scoring": 1, "control": 1}, bodies=1, start=costs.between)
    numbers = range(first, last + 1)
    return statistics.median(simulate(config, costs, machine, numbers, seed).seconds for seed in range(50))


def second_half(root: str) -> tuple[float, float]:
    """Seconds of the second half of a run: planned from its first half, and by the clocks of its manifests."""
    store = open_store(root)
    config = read_config(store)
    half = config.iterations // 2
    costs = measured(store, config.model_copy(update={"iterations": half}))
    tasks = [task for number in range(half + 1, config.iterations + 1) for task in iteration_tasks(number, config)]
    made = [found.provenance for task in tasks if (found := read_manifest(store, task.location)) is not None]
    if len(made) < len(tasks):
        raise SystemExit(f"error: {root} has {len(made)} of the {len(tasks)} records of its second half")
    seconds = (max(one.finished for one in made) - min(one.started for one in made)).total_seconds()
    return planned(config, costs, half + 1, config.iterations), seconds


def another_run(preset: str) -> tuple[float, float]:
    """Seconds of a whole run: planned from a run of another size, and by the clock."""
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        probe, _ = timed(first, preset, MEASURED)
        costs = measured(probe.store, probe.config)
        config = resolve(preset, PLANNED)
        once = sum(costs.between + costs.seconds(task, config) for task in once_tasks())
        return once + planned(config, costs, 1, config.iterations), timed(second, preset, PLANNED)[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="plane")
    parser.add_argument("--run", help="a finished run; nothing is executed")
    given = parser.parse_args()
    plan, seconds = second_half(given.run) if given.run else another_run(given.preset)
    print(json.dumps({"planned": round(plan, 2), "measured": round(seconds, 2)}))
    print(f"planned / measured - 1 = {plan / seconds - 1:+.1%}")


if __name__ == "__main__":
    main()
