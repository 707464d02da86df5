"""The driver with a server that really executes what is submitted: each argv as a process on this machine.

The planner is judged by the same run: from what its manifests say it has to predict how long the last block took.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tdm_r1.artifacts.store import open_store
from tdm_r1.plan.costs import measured
from tdm_r1.plan.simulate import Cluster, simulate
from tdm_r1.runtime.layout import all_tasks, once_tasks
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
    """Seconds of a block, one process after the other, that finds so many records."""
    store = open_store(str(root))
    config = read_config(store)
    costs = measured(store, config)
    there = [task for task in all_tasks(config) if task.location != "iter-00000/evaluation"][:already]
    machine = Cluster(pods=ONE_MACHINE, bodies=1, start=costs.between)  # type: ignore[arg-type]
    block = simulate(config, costs, machine, range(1, config.iterations + 1), 0, committed=there).seconds
    again = sum(costs.between + (task not in there) * costs.seconds(task, config) for task in once_tasks())
    return block + again
