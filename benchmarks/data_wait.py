"""How long training stages wait for their data: `python benchmarks/data_wait.py ROOT [--iterations 3]`.

A stage reads all of its parents before its first step, and no step waits after that. So its wait is one reading:
fetch, hash and parse. Each is done again here, by an opened run that has nothing in memory, and set against what the
stage took as its manifest says. Processor seconds stand beside seconds, which a machine that is shared stretches.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator

from tdm_r1.artifacts.records import RECORDS
from tdm_r1.artifacts.repository import read_manifest
from tdm_r1.runtime.layout import TRAINED, Task, all_tasks, parents_of
from tdm_r1.runtime.run import Run, open_run


def read_again(root: str, task: Task) -> tuple[float, float, float]:
    """Seconds, processor seconds and megabytes of a task's parents."""
    run = open_run(root)
    size = 0
    clock, processor = time.perf_counter(), time.process_time()
    for parent in parents_of(task, run.config):
        if parent.stage == "rollout":  # without the images, as updates read it
            ((_, manifest),) = run.load_paths([parent])
        else:
            _, manifest = run.load(parent, RECORDS[run.manifest(parent).kind])
        size += sum(entry.size for entry in manifest.files.values())
    return time.perf_counter() - clock, time.process_time() - processor, size / 1e6


def newest(run: Run, count: int) -> Iterator[Task]:
    """Training tasks of the newest iterations that are committed."""
    tasks = [task for task in all_tasks(run.config) if task.stage in TRAINED and task.iteration]
    found = [task for task in tasks if read_manifest(run.store, task.location) is not None]
    last = sorted({task.iteration for task in found})[-count:]
    return (task for task in found if task.iteration in last)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root")
    parser.add_argument("--iterations", type=int, default=3)
    given = parser.parse_args()
    run = open_run(given.root)
    print("| stage | MB read | seconds | processor seconds | stage's seconds | share | processor's share |")
    print("|---|---|---|---|---|---|---|")
    for task in newest(run, given.iterations):
        wall, processor, megabytes = read_again(given.root, task)
        whole = run.manifest(task).provenance.seconds
        shares = f"{wall / whole:.1%} | {processor / whole:.1%}"
        read = f"{megabytes:.1f} | {wall:.2f} | {processor:.2f}"
        print(f"| {task.location} | {read} | {whole:.1f} | {shares} |", flush=True)


if __name__ == "__main__":
    main()
