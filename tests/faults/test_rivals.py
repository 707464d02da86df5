"""Two runners of one run at the same time: every record has one winner, and both runners end well."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from tests.faults.guard import Guard, Ledger
from tests.faults.preloaded import Starter, scratch_in
from tests.faults.s3_run import environment, same_as, start_at
from tests.faults.watcher import Watcher, names
from tests.s3 import Server
from tests.s3_proxy import Request, proxy
from tests.support import content, differing, plane_run

pytestmark = pytest.mark.slow


ROUNDS = 5
"""Two local runners meet in about every second record; when a whole run passes without, another one is raced."""
PATIENCE = 30.0
"""Seconds that the proxy holds a manifest until the other runner has it, too."""


def test_two_runners_of_a_local_run_both_end_with_the_same_bytes(
    starter: Starter, finished: Path, tmp_path: Path, ledger: Callable[[str], Ledger]
) -> None:
    counts, guards = ledger("two runners, local directory"), list[Guard]()
    while not counts.injected and len(guards) < ROUNDS:
        root = tmp_path / f"run-{len(guards)}"
        root.mkdir()
        watcher = Watcher(root)
        programs = [starter.start(*plane_run(root)) for _ in range(2)]
        while not all(program.ended(0) for program in programs):
            watcher.changes(0.05)
        codes = [program.wait() for program in programs]
        watcher.changes(0)
        watcher.close()
        assert codes == [0, 0], [program.printed for program in programs]
        committed = sum(name.endswith("/manifest.json") for name in names(root))
        too = max(0, watcher.seen["manifest.json"] - committed)  # a busy machine may miss the first one of a folder
        counts.where[f"manifests that a loser wrote too, of {committed}"] += too
        guards.append(guard := Guard(str(root)))
        assert guard.check()
        assert differing(content(finished), content(root)) == []
    counts.survived = counts.injected
    counts.close(*guards)
    assert counts.injected, "the runners never met"


class Meeting:
    """A rule of the proxy that lets no manifest through before both runners have sent it."""

    def __init__(self) -> None:
        self.met: dict[str, threading.Event] = {}
        self.sent: Counter[str] = Counter()
        self._lock = threading.Lock()

    def __call__(self, request: Request) -> None:
        if request.method != "PUT" or not request.path.endswith("/manifest.json"):
            return
        with self._lock:
            self.sent[request.path] += 1
            both = self.met.setdefault(request.path, threading.Event())
            if self.sent[request.path] > 1:
                both.set()
        both.wait(PATIENCE)


def test_two_runners_that_meet_at_every_manifest_on_s3_both_end_with_the_same_bytes(
    starter: Starter, s3_server: Server, s3_root: str, finished: Path, ledger: Callable[[str], Ledger]
) -> None:
    counts, meeting = ledger("two runners, S3"), Meeting()
    with proxy(s3_server, fault=meeting) as front:
        programs = [starter.start(*start_at(s3_root), **environment(front)) for _ in range(2)]
        assert [program.wait() for program in programs] == [0, 0], [program.printed for program in programs]
    counts.where[f"manifests that a loser wrote too, of {len(meeting.sent)}"] += sum(meeting.sent.values()) - len(
        meeting.sent
    )
    guard = Guard(s3_root)
    assert guard.check()
    assert same_as(finished, s3_root)
    counts.survived = counts.injected
    counts.close(guard)
    assert all(both.is_set() for both in meeting.met.values()), "the runners did not meet at every manifest"


def test_a_stage_whose_loop_was_killed_ends_beside_the_loop_that_takes_over(
    starter: Starter, finished: Path, tmp_path: Path, ledger: Callable[[str], Ledger]
) -> None:
    """Only the leader of `--isolate` dies: its stage, a real process of its own, goes on as a second writer."""
    counts, root = ledger("kill -9 of the loop, not of its stage"), tmp_path / "run"
    root.mkdir()
    command = [sys.executable, "-m", "tdm_r1", *plane_run(root), "--isolate"]
    inside = {**os.environ, "TMPDIR": str(scratch_in(tmp_path))}
    with (
        (tmp_path / "log").open("wb") as log,
        subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, env=inside) as loop,
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
