"""The driver with a server that really executes what is submitted: each argv as a process on this machine.

How well the planner predicts the time of such a run is measured by benchmarks/plan.py.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.drive_support import arguments, begun, executing, names, uncommitted
from tests.faults.preloaded import Starter
from tests.kfp_server import kfp_server
from tests.support import plane_run, tdm_r1

pytestmark = pytest.mark.slow


def test_a_driven_run_whose_first_block_is_killed_ends_in_the_bytes_of_one_machine(
    starter: Starter, tmp_path: Path
) -> None:
    whole = tmp_path / "whole"
    assert tdm_r1(*plane_run(whole, iterations=1, rollout__shards=1)) == 0
    root = begun(whole, tmp_path / "run")
    with kfp_server(executing(tmp_path, starter, fail_after=[3])) as server:
        assert tdm_r1(*arguments(server, root, "--poll", "1")) == 0
        assert names(server) == ["run-b00001-i00001", "run-b00002-i00001"]
        assert [run["state"] for run in server.runs.values()] == ["FAILED", "SUCCEEDED"]
    assert uncommitted(whole, root) == []
