"""Is the planner right? Measure one run, plan another from it, run that too, and compare.

    python benchmarks/plan.py [--preset plane]

Both runs execute one process per stage, one after the other. The second has other shards and iterations.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from typing import Any

from tdm_r1.plan.costs import measured
from tdm_r1.plan.simulate import Cluster, simulate
from tdm_r1.presets import resolve
from tdm_r1.runtime.layout import Task, once_tasks
from tdm_r1.runtime.loop import isolated, loop
from tdm_r1.runtime.run import Run, create_run

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="plane")
    preset = parser.parse_args().preset
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        probe, probed = timed(first, preset, MEASURED)
        costs = measured(probe.store, probe.config)
        config = resolve(preset, PLANNED)
        machine = Cluster(pods={"rollout": 1, "update": 1, "scoring": 1, "control": 1}, bodies=1, start=costs.between)
        once = sum(costs.between + costs.seconds(task, config) for task in once_tasks())
        planned = once + simulate(config, costs, machine, range(1, config.iterations + 1), 0).seconds
        _, seconds = timed(second, preset, PLANNED)
    found = {"probe": probed, "between": costs.between, "planned": planned, "measured": seconds}
    print(json.dumps({name: round(value, 2) for name, value in found.items()}))
    print(f"planned / measured - 1 = {planned / seconds - 1:+.1%}")


if __name__ == "__main__":
    main()
