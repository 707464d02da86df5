"""An S3 that fails, is slow, and cuts connections in the middle: stages go on, or stop with exit code 75."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import get_args

import pytest

from tests.faults.guard import Guard, Ledger
from tests.faults.preloaded import Starter
from tests.faults.s3_run import environment, same_as, start_at, uploads
from tests.s3 import Server
from tests.s3_proxy import Fault, Request, proxy

pytestmark = pytest.mark.slow

TEMPORARY = 75
KINDS: tuple[Fault, ...] = get_args(Fault)


class Weather:
    """Lets a share of the requests fail, each in a random way; the schedule is the seed's."""

    def __init__(self, draw: random.Random, share: float) -> None:
        self._draw, self._share, self._lock = draw, share, threading.Lock()
        self.injected = Counter[str]()

    def __call__(self, _: Request) -> Fault | None:
        with self._lock:
            if self._draw.random() >= self._share:
                return None
            kind = self._draw.choice(KINDS)
            self.injected[kind] += 1
            return kind


def test_a_run_on_s3_goes_on_through_bad_weather_to_the_same_bytes(
    starter: Starter,
    s3_server: Server,
    s3_root: str,
    finished: Path,
    draw: random.Random,
    ledger: Callable[[str], Ledger],
) -> None:
    counts, weather, guard = ledger("S3 in bad weather, retried"), Weather(draw, 0.15), Guard(s3_root)
    with proxy(s3_server, fault=weather) as front:
        code, printed = starter.run(*start_at(s3_root), **environment(front))
    assert code == 0, printed
    assert "Traceback" not in printed
    counts.where.update(weather.injected)
    assert set(counts.where) == set(KINDS), counts.where
    assert guard.check()
    assert same_as(finished, s3_root)
    assert uploads(s3_server, s3_root) == []
    counts.survived = counts.injected
    counts.close(guard)


def test_a_run_whose_s3_goes_away_stops_with_75_and_leaves_nothing_half_visible(
    starter: Starter,
    s3_server: Server,
    s3_root: str,
    finished: Path,
    draw: random.Random,
    ledger: Callable[[str], Ledger],
) -> None:
    """The n-th request and all after it fail, until the program gives up; then it is started again."""
    counts, guard = ledger("S3 gone, exit 75, started again"), Guard(s3_root)
    for kind in KINDS:
        if kind == "slow":
            continue
        left = [draw.randint(1, 90)]

        def gone(request: Request, left: list[int] = left, kind: Fault = kind) -> Fault | None:
            left[0] -= 1
            return kind if left[0] < 0 else None

        with proxy(s3_server, fault=gone) as front:
            code, printed = starter.run(*start_at(s3_root), **environment(front, AWS_MAX_ATTEMPTS="2"))
        if code == 0:
            break  # it was done before the server went away
        assert code == TEMPORARY, printed
        assert "hint: run the same command again" in printed
        assert "Traceback" not in printed
        counts.where[kind] += 1
        counts.survived += guard.check()
    code, printed = starter.run(*start_at(s3_root), **environment(s3_server))
    assert code == 0, printed
    assert guard.check()
    assert same_as(finished, s3_root)
    assert counts.injected >= 3
    counts.close(guard)


def test_pauses_between_attempts_are_random_and_bounded(starter: Starter, s3_server: Server, s3_root: str) -> None:
    """At most 0.05 s and twice as much each time (docs/operations/storage.md), and some more for a busy machine."""
    arrivals = defaultdict[str, list[float]](list)

    def failing(request: Request) -> bool:
        arrivals[request.path].append(time.monotonic())
        return True

    gaps: list[float] = []
    with proxy(s3_server, failed=failing) as front:
        programs = [
            starter.start("inspect", "--root", f"{s3_root}-{number}", **environment(front, AWS_MAX_ATTEMPTS="7"))
            for number in range(3)
        ]
        assert [program.wait() for program in programs] == [TEMPORARY] * 3, programs[0].printed
    for times in arrivals.values():
        assert len(times) == 7
        pauses = [later - earlier for earlier, later in pairwise(times)]
        assert all(pause < 0.05 * 2**n + 5 for n, pause in enumerate(pauses)), pauses
        gaps += pauses
    assert len({round(gap, 2) for gap in gaps}) >= 6, gaps


def test_a_server_that_is_away_for_two_seconds_is_waited_for(starter: Starter, s3_server: Server, s3_root: str) -> None:
    first: list[float] = []

    def away(request: Request) -> bool:
        first.append(time.monotonic())
        return first[-1] - first[0] < 2

    with proxy(s3_server, failed=away) as front:
        code, printed = starter.run("inspect", "--root", s3_root, **environment(front))
    assert code == 2, printed
    assert "run.json" in printed
