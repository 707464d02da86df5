"""The driver with a server that really executes what is submitted: each argv as a process on this machine.

The planner is judged by the same run: from what its manifests say it has to predict how long the last block took.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tdm_r1.artifacts.repository import require_manifest
from tdm_r1.artifacts.store import open_store
from tdm_r1.plan.costs import between, measured
from tdm_r1.plan.simulate import Cluster, simulate
from tdm_r1.runtime.layout import Task, all_tasks, once_tasks
from tdm_r1.runtime.run_file import read_config
from tests.drive_support import arguments, begun, executing, names, uncommitted
from tests.kfp_server import kfp_server
from tests.support import plane_run, tdm_r1

pytestmark = pytest.mark.slow

ONE_MACHINE = {"rollout": 1, "scoring": 1, "update": 1, "control": 1}


def test_a_driven_run_whose_first_block_is_killed_ends_in_the_bytes_of_one_machine_and_takes_as_long_as_planned(
    tmp_path: Path,
) -> None:
    whole = tmp_path / "whole"
    assert tdm_r1(*plane_run(whole, iterations=1, rollout__shards=1)) == 0
    root, seconds = begun(whole, tmp_path / "run"), list[float]()
    with kfp_server(executing(tmp_path, fail_after=[3], seconds=seconds)) as server:
        assert tdm_r1(*arguments(server, root, "--poll", "1")) == 0
        assert names(server) == ["run-b00001-i00001", "run-b00002-i00001"]
        assert [run["state"] for run in server.runs.values()] == ["FAILED", "SUCCEEDED"]
    assert uncommitted(whole, root) == []
    assert planned(root, already=3) == pytest.approx(seconds[1], rel=0.15)


def planned(root: Path, already: int) -> float:
    """Seconds of a block, one process after the other, that finds so many records.

    The pauses are those of this block: a kill lies between its first record and the last one of the block before.
    """
    store = open_store(str(root))
    config = read_config(store)
    tasks = [task for task in all_tasks(config) if task != Task("evaluation", 0)]
    own = [require_manifest(store, task.location).provenance for task in tasks[already:]]
    pause = between([(provenance.started, provenance.finished) for provenance in own])
    costs = measured(store, config)
    machine = Cluster(pods=ONE_MACHINE, bodies=1, start=pause)  # type: ignore[arg-type]
    numbers = range(1, config.iterations + 1)
    block = simulate(config, costs, machine, numbers, 0, committed=tasks[:already]).seconds
    return block + sum(pause + (task not in tasks[:already]) * costs.seconds(task, config) for task in once_tasks())
