"""Drivers that are killed, frozen, told to end, or two at once: one acts, and no block is paid for twice."""

from __future__ import annotations

import signal
import threading
from pathlib import Path

from tests.drive_support import SHORT, arguments, begun, committing, journal, names, started, uncommitted, until
from tests.http_server import Request
from tests.kfp_server import kfp_server
from tests.support import tdm_r1


def test_a_killed_driver_is_replaced_and_its_block_adopted(finished: Path, tmp_path: Path) -> None:
    root, hold = begun(finished, tmp_path / "run"), threading.Event()
    with kfp_server(committing(finished, hold=hold)) as server:
        first = started(server, root, *SHORT)
        until(lambda: list(root.glob("drive/submissions/00001/run.json")))
        first.kill()
        first.communicate()
        second = started(server, root, *SHORT)
        until((root / "drive/lease/00000002/claim.json").exists)
        hold.set()
        _, said = second.communicate(timeout=60)
        assert (second.returncode, len(server.bodies)) == (0, 1), said
    assert "adopted from driver 1" in said
    assert uncommitted(finished, root) == []


def test_a_block_that_ends_while_nobody_drives_counts_for_the_next_driver(finished: Path, tmp_path: Path) -> None:
    root, hold = begun(finished, tmp_path / "run"), threading.Event()
    with kfp_server(committing(finished, per_block=1, hold=hold)) as server:
        first = started(server, root, *SHORT)
        until(lambda: list(root.glob("drive/submissions/00001/run.json")))
        first.kill()
        first.communicate()
        hold.set()
        until(lambda: all(run["state"] == "SUCCEEDED" for run in server.runs.values()))
        assert tdm_r1(*arguments(server, root, *SHORT)) == 0
        assert names(server) == ["run-b00001-i00001", "run-b00002-i00002"]
    assert uncommitted(finished, root) == []


def test_a_driver_that_is_killed_before_it_knows_of_its_run_leaves_it_to_the_next_one(
    finished: Path, tmp_path: Path
) -> None:
    root, hold, answered = begun(finished, tmp_path / "run"), threading.Event(), threading.Event()
    with kfp_server(committing(finished, hold=hold)) as server:

        def slow(request: Request) -> str | None:
            if request.method == "POST" and request.path.endswith("/runs") and not answered.is_set():
                server.handle(request)
                answered.wait(30)
                raise ConnectionError
            return None

        server.fault = slow
        first = started(server, root, *SHORT)
        until(lambda: len(server.bodies) > 0)
        first.kill()
        first.communicate()
        answered.set()
        server.fault = None
        hold.set()
        assert not (root / "drive/submissions/00001/run.json").exists()
        assert tdm_r1(*arguments(server, root, *SHORT)) == 0
        assert len(server.bodies) == 1
    assert journal(root) == ["succeeded"]


def test_of_two_drivers_one_submits_and_the_other_asks_to_be_retried(finished: Path, tmp_path: Path) -> None:
    root, hold = begun(finished, tmp_path / "run"), threading.Event()
    with kfp_server(committing(finished, hold=hold)) as server:
        drivers = [started(server, root, *SHORT) for _ in range(2)]
        until(lambda: any(driver.poll() is not None for driver in drivers))
        hold.set()
        said = [driver.communicate(timeout=60)[1] for driver in drivers]
        assert sorted(driver.returncode for driver in drivers) == [0, 75], said
        assert len(server.bodies) == 1
    assert any("has a driver: number 1, process" in text for text in said)


def test_a_driver_that_was_frozen_while_another_took_over_submits_nothing_more(finished: Path, tmp_path: Path) -> None:
    root, hold = begun(finished, tmp_path / "run"), threading.Event()
    with kfp_server(committing(finished, per_block=1, hold=hold)) as server:
        first = started(server, root, *SHORT)
        until(lambda: list(root.glob("drive/submissions/00001/run.json")))
        first.send_signal(signal.SIGSTOP)
        second = started(server, root, *SHORT)
        until((root / "drive/lease/00000002/claim.json").exists)
        first.send_signal(signal.SIGCONT)
        said = first.communicate(timeout=60)[1]
        hold.set()
        assert second.wait(timeout=60) == 0, second.communicate()
        second.communicate()
        assert (first.returncode, names(server)) == (75, ["run-b00001-i00001", "run-b00002-i00002"])
    assert "driver 1" in said
    assert uncommitted(finished, root) == []


def test_a_driver_that_is_told_to_end_lets_go_at_once_and_its_block_goes_on(finished: Path, tmp_path: Path) -> None:
    root, hold = begun(finished, tmp_path / "run"), threading.Event()
    with kfp_server(committing(finished, hold=hold)) as server:
        first = started(server, root, "--lease-seconds", "600")
        until(lambda: list(root.glob("drive/submissions/00001/run.json")))
        first.send_signal(signal.SIGTERM)
        said = first.communicate(timeout=60)[1]
        assert first.returncode == 75
        assert "the block goes on" in said
        hold.set()
        assert tdm_r1(*arguments(server, root)) == 0
        assert len(server.bodies) == 1
