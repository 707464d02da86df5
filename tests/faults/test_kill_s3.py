"""kill -9 in the middle of requests: before they reach the server, and after they were executed but not answered."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.faults.guard import Guard, Ledger
from tests.faults.preloaded import Program, Starter
from tests.faults.s3_run import environment, same_as, start_at, uploads
from tests.s3 import Server
from tests.s3_proxy import Request, proxy

pytestmark = pytest.mark.slow

MOST_WRITES = 6
MOST_REQUESTS = 60


@dataclass
class Trigger:
    """Kills a program at its n-th request, as the proxy sees it."""

    nth: int
    counts: Callable[[Request], bool]
    """Which requests are counted."""
    executed: bool
    """Let the server execute the request first."""
    program: Program | None = None
    armed: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)
    hit: str = ""

    def arm(self, program: Program) -> None:
        self.program = program
        self.armed.set()

    def before(self, request: Request) -> bool:
        return not self.executed and self._counted(request)

    def after(self, request: Request) -> bool:
        return self.executed and self._counted(request)

    def _counted(self, request: Request) -> bool:
        """Whether this request died with the program."""
        self.armed.wait()
        assert self.program is not None
        with self.lock:
            if self.hit:
                return True
            self.nth -= self.counts(request)
            if self.nth > 0:
                return False
            self.program.kill()
            when = "executed, not answered" if self.executed else "not executed"
            self.hit = f"{request.method} of {kind_of(request.path)}: {when}"
            return True


def any_request(_: Request) -> bool:
    return True


def a_write(request: Request) -> bool:
    """Whether it stores an object of the run, or a part of one."""
    return request.method in ("PUT", "POST") and ".probe." not in request.path


def kind_of(path: str) -> str:
    """What a request is about."""
    name, _, query = path.partition("?")
    if "list-type" in query or ".probe." in name:
        return "listing" if "list-type" in query else "the probe"
    last = name.rpartition("/")[2]
    known = {"manifest.json": "a manifest", "run.json": "run.json", "result.json": "a page", "runs": "the bucket"}
    return known.get(last, "a part of a file" if "uploadId" in query else "a file")


@contextmanager
def line(server: Server) -> Iterator[tuple[Server, Callable[[Trigger], None]]]:
    """A proxy whose trigger can be exchanged."""
    now: list[Trigger] = []

    def before(request: Request) -> bool:
        return now[-1].before(request)

    def after(request: Request) -> bool:
        return now[-1].after(request)

    with proxy(server, failed=before, lost=after) as front:
        yield front, now.append


def drawn(draw: random.Random) -> Trigger:
    writes = draw.random() < 0.75
    if writes:
        return Trigger(draw.randint(1, MOST_WRITES), a_write, draw.random() < 0.5)
    return Trigger(draw.randint(1, MOST_REQUESTS), any_request, draw.random() < 0.5)


def test_a_run_on_s3_that_is_killed_at_random_requests_ends_in_the_same_bytes(
    starter: Starter,
    s3_server: Server,
    s3_root: str,
    finished: Path,
    kills: int,
    draw: random.Random,
    ledger: Callable[[str], Ledger],
) -> None:
    counts, guards = ledger("kill -9, S3"), list[Guard]()
    with line(s3_server) as (front, exchange):
        while counts.injected < kills:
            root = f"{s3_root}-{len(guards)}"
            guards.append(guard := Guard(root))
            while counts.injected < kills:
                exchange(trigger := drawn(draw))
                trigger.arm(program := starter.start(*start_at(root), **environment(front)))
                if program.wait() == 0:
                    break
                assert trigger.hit, program.printed
                counts.where[trigger.hit] += 1
                counts.survived += guard.check()
            code, printed = starter.run(*start_at(root), **environment(s3_server))
            assert code == 0, printed
            assert guard.check()
            assert same_as(finished, root)
            assert starter.run("audit", root, **environment(s3_server))[0] == 0
    counts.close(*guards)
    writes = sum(count for where, count in counts.where.items() if where.startswith("PUT") and "probe" not in where)
    assert writes >= kills // 3, counts.where
    assert {where.rpartition(": ")[2] for where in counts.where} == {"executed, not answered", "not executed"}


@pytest.mark.parametrize("nth", [2, 3, 4], ids=["at the first part", "at the second part", "when completing"])
def test_a_writer_that_is_killed_in_an_upload_in_parts_leaves_no_file_and_the_next_commits_it(
    nth: int, starter: Starter, s3_server: Server, s3_root: str, ledger: Callable[[str], Ledger]
) -> None:
    """Creating the upload is the first write that is not the small table, of which there is one."""
    counts = ledger("kill -9, upload in parts")
    arguments, big = (s3_root,), "tests.faults.big_commit:main"
    with line(s3_server) as (front, exchange):
        exchange(trigger := Trigger(nth + 1, a_write, executed=nth == 3))
        trigger.arm(program := starter.start(*arguments, entry=big, **environment(front)))
        assert program.wait() < 0, program.printed
    counts.where[trigger.hit] += 1
    assert [name.rpartition(".")[2] for name in uploads(s3_server, s3_root)] == ["safetensors"]
    code, printed = starter.run(*arguments, entry=big, **environment(s3_server))
    assert code == 0, printed
    counts.survived += "the record is whole" in printed
    counts.checked += int(printed.split()[-2])
    counts.close()
