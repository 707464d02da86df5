"""Two runners of one run at the same time: every record has one winner, and both runners end well."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from tests.faults.guard import Guard, Ledger
from tests.faults.preloaded import Starter
from tests.faults.s3_run import environment, same_as, start_at
from tests.faults.watcher import Watcher, names
from tests.s3 import Server
from tests.s3_proxy import Request, proxy
from tests.support import content, differing, plane_run

pytestmark = pytest.mark.slow


def test_two_runners_of_a_local_run_both_end_with_the_same_bytes(
    starter: Starter, finished: Path, tmp_path: Path, ledger: Callable[[str], Ledger]
) -> None:
    counts, root = ledger("two runners, local directory"), tmp_path / "run"
    root.mkdir()
    watcher = Watcher(root)
    programs = [starter.start(*plane_run(root)) for _ in range(2)]
    while not all(program.ended(0) for program in programs):
        watcher.changes(0.05)
    codes = [program.wait() for program in programs]
    watcher.changes(0)
    watcher.close()
    assert codes == [0, 0], [program.printed for program in programs]
    tried = watcher.seen["manifest.json"]
    committed = sum(name.endswith("/manifest.json") for name in names(root))
    counts.where[f"manifests that a loser wrote too, of {committed}"] += tried - committed
    guard = Guard(str(root))
    assert guard.check()
    assert differing(content(finished), content(root)) == []
    counts.survived = tried - committed
    counts.close(guard)


def test_two_runners_of_a_run_on_s3_both_end_with_the_same_bytes(
    starter: Starter, s3_server: Server, s3_root: str, finished: Path, ledger: Callable[[str], Ledger]
) -> None:
    counts, tried = ledger("two runners, S3"), list[str]()

    def watch(request: Request) -> bool:
        if request.method == "PUT" and request.path.endswith("/manifest.json"):
            tried.append(request.path)
        return False

    for number in range(2):  # one is not enough when they do not meet; the ledger counts where they did
        root = f"{s3_root}-{number}"
        tried.clear()
        with proxy(s3_server, lost=watch) as front:
            programs = [starter.start(*start_at(root), **environment(front)) for _ in range(2)]
            assert [program.wait() for program in programs] == [0, 0], [program.printed for program in programs]
        lost = len(tried) - len(set(tried))
        counts.where[f"manifests that a loser wrote too, of {len(set(tried))}"] += lost
        guard = Guard(root)
        assert guard.check()
        assert same_as(finished, root)
        if lost:
            break
    counts.survived = lost
    counts.close(guard)


def test_a_stage_whose_loop_was_killed_ends_beside_the_loop_that_takes_over(
    starter: Starter, finished: Path, tmp_path: Path, ledger: Callable[[str], Ledger]
) -> None:
    """Only the leader of `--isolate` dies: its stage, a real process of its own, goes on as a second writer."""
    counts, root = ledger("kill -9 of the loop, not of its stage"), tmp_path / "run"
    root.mkdir()
    command = [sys.executable, "-m", "tdm_r1", *plane_run(root), "--isolate"]
    with (
        (tmp_path / "log").open("wb") as log,
        subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True) as loop,
    ):
        try:
            orphan = first_stage(loop)
            loop.kill()
            assert loop.wait() == -signal.SIGKILL
            code, printed = starter.run(*plane_run(root))
            assert code == 0, printed
            assert wait_for(lambda: not runs(orphan))
        finally:
            with suppress(ProcessLookupError):
                os.killpg(loop.pid, signal.SIGKILL)
    counts.where["the stage went on alone"] += 1
    guard = Guard(str(root))
    counts.survived += guard.check()
    assert differing(content(finished), content(root)) == []
    counts.close(guard)


def first_stage(loop: subprocess.Popen[bytes]) -> int:
    """Process id of the first stage that a loop starts."""
    found: list[int] = []

    def seen() -> bool:
        found.extend(stages(loop.pid))
        return bool(found)

    assert wait_for(seen)
    return found[0]


def children(process: int) -> list[int]:
    """Process ids of the direct children."""
    try:
        return [int(word) for word in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    except FileNotFoundError:
        return []


def stages(loop: int) -> list[int]:
    """Children that execute a stage; libraries start short-lived ones, too."""
    found = []
    for child in children(loop):
        with suppress(FileNotFoundError, ProcessLookupError):
            words = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
            found += [child] if b"stage" in words else []
    return found


def runs(process: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True
