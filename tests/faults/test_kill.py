"""kill -9 at random points, again and again: the run that is resumed ends in the bytes of the unbroken one."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tdm_r1.runtime.layout import Task
from tests.faults.guard import Guard, Ledger
from tests.faults.preloaded import Program, Starter
from tests.faults.watcher import kill_after_changes, kill_after_cpu, names, where_it_died
from tests.support import content, differing, plane_run

pytestmark = pytest.mark.slow

MOST_CHANGES = 25
"""A commit is about 20 changes of its directory."""
PAGES = ("pages", "result.json", "report.html")
MOST_CPU_SECONDS = 0.8


def killed(program: Program, root: Path, draw: random.Random) -> bool:
    """Kill a program at a random change of its run directory, or after a random CPU time; False when it ended."""
    if draw.random() < 0.75:
        return kill_after_changes(program, root, draw.randint(1, MOST_CHANGES))
    return kill_after_cpu(program, draw.uniform(0, MOST_CPU_SECONDS))


def test_a_run_that_is_killed_at_random_points_ends_in_the_same_bytes(
    starter: Starter,
    finished: Path,
    tasks: list[Task],
    tmp_path: Path,
    kills: int,
    draw: random.Random,
    ledger: Callable[[str], Ledger],
) -> None:
    counts, guards, stages = ledger("kill -9, local directory"), list[Guard](), Counter[str]()
    while counts.injected < kills:
        root = tmp_path / f"run-{len(guards)}"
        root.mkdir()
        guards.append(guard := Guard(str(root)))
        while counts.injected < kills:
            before = names(root)
            if not killed(starter.start(*plane_run(root)), root, draw):
                break
            stage, phase = where_it_died(root, before, tasks)
            counts.where[f"{stage}: {phase}"] += 1
            stages[stage] += 1
            counts.survived += guard.check()
            if stage in PAGES:
                break  # all records are there: once is enough
        code, printed = starter.run(*plane_run(root))
        assert code == 0, printed
        assert guard.check()
        assert differing(content(finished), content(root)) == []
        assert starter.run("audit", str(root))[0] == 0
    counts.close(*guards)
    in_commit = sum(count for where, count in counts.where.items() if "commit:" in where)
    assert in_commit >= kills // 3, counts.where
    assert len(stages) >= 5, stages
