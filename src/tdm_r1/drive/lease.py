"""One driver per run: a lease made of objects that are written once, with fencing numbers that only grow.

`drive/lease/00000007/claim.json` is written if absent, so of all who want number 7 one gets it. Its holder then
replaces `beat.json` beside it. Whoever wants number 8 watches that file: only after it stood unchanged for a whole
`ttl`, or after `end.json` says that the holder let go, is 8 claimed. No time of another machine is ever read: each side
measures durations with its own clock, so clocks may be set differently, and may run at rates that differ by a third.
See docs/adr/0011-lease-and-fencing.md.
"""

from __future__ import annotations

import json
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from tdm_r1.artifacts.store import Store
from tdm_r1.errors import TdmR1Error, TemporaryError

FOLDER: Final = "drive/lease"
TRUST: Final = 2 / 3
"""Share of `ttl` for which a holder trusts its last beat. The rest is what clocks may differ in rate."""
BEATS: Final = 4
"""Beats, and looks at another's beat, per `ttl`."""


class LeaseHeldError(TemporaryError):
    """Another driver holds the lease of this run, and is alive."""


class LeaseLostError(TemporaryError):
    """We may no longer act: another one took over, or its beats did not reach the storage."""


def elapsed() -> float:
    """Seconds of a clock that nobody sets; on Linux it also counts while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


def identity() -> dict[str, Any]:
    """Who claims, for people: no decision rests on it."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "at": datetime.now(UTC).isoformat(timespec="seconds")}


@dataclass
class Lease:
    """The right to submit blocks of one run.

    Args:
        ttl: seconds without a beat after which others may take over.
        clock: seconds, never set back; only differences are used.
    """

    store: Store
    ttl: float = 60.0
    clock: Callable[[], float] = elapsed
    sleep: Callable[[float], None] = time.sleep
    fence: int = 0
    """Number of our claim; larger than that of every driver before us."""
    _trusted_until: float = field(default=-1.0, repr=False)
    _beats: int = field(default=0, repr=False)

    def acquire(self, wait: float) -> int:
        """Claim the next number as soon as the last holder let go or went silent; return it.

        Args:
            wait: seconds to watch a holder that is alive.

        Raises:
            LeaseHeldError: when the holder still beats after `wait`.
        """
        give_up = self.clock() + max(wait, self.ttl * 1.5)
        while True:
            last = self.newest()
            seen = self._watch(last, give_up) if last else None
            started = self.clock()
            if not self.store.write_bytes_if_absent(key(last + 1, "claim"), encoded(identity() | {"ttl": self.ttl})):
                continue  # somebody else claimed it: watch that one
            self.fence, self._beats, self._trusted_until = last + 1, 0, started + self.ttl * TRUST
            if last and self._alive(last) and self._fingerprint(last) != seen:
                self.sleep(self.ttl)  # a late beat: its holder may act until it looks for a successor or its trust ends
            self.renew()
            return self.fence

    def renew(self) -> None:
        """Beat once, then look whether somebody took over.

        Raises:
            LeaseLostError: when somebody did.
        """
        started, self._beats = self.clock(), self._beats + 1
        self.store.overwrite(key(self.fence, "beat"), encoded({"beat": self._beats, **identity()}))
        self._refuse_successor()
        self._trusted_until = max(self._trusted_until, started + self.ttl * TRUST)

    def require(self) -> None:
        """Return if we may act now. Asks the storage, so a driver that was stopped and went on notices.

        Raises:
            LeaseLostError: when we may not.
        """
        if self.clock() >= self._trusted_until:
            raise LeaseLostError(
                f"no beat of driver {self.fence} reached `{self.store.root}` for {self.ttl * TRUST:g} s",
                hint="start the driver again: it takes over once nobody else beats",
            )
        self._refuse_successor()

    def release(self, reason: str) -> None:
        """Let go: the next driver need not wait."""
        self.store.write_bytes_if_absent(key(self.fence, "end"), encoded(identity() | {"reason": reason}))

    def newest(self) -> int:
        """The largest number that was ever claimed, 0 for none."""
        found = [re.match(rf"{FOLDER}/(\d{{8}})/claim\.json$", name) for name in self.store.list(FOLDER)]
        return max((int(match[1]) for match in found if match), default=0)

    @contextmanager
    def kept(self, on_fault: Callable[[str], None]) -> Iterator[None]:
        """Beat in a thread until the end of the block; a storage that fails is tried again while trust lasts."""
        done = threading.Event()

        def beat() -> None:
            while not done.wait(self.ttl / BEATS):
                try:
                    self.renew()
                except LeaseLostError:
                    return  # `require` tells it to whoever is about to act
                except (TdmR1Error, OSError) as error:
                    on_fault(f"the lease was not renewed: {str(error).splitlines()[0]}")

        thread = threading.Thread(target=beat, name="lease", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join(timeout=self.ttl)

    def _watch(self, fence: int, give_up: float) -> bytes:
        """Return the fingerprint of a holder that let go, or that did not change for `ttl`."""
        seen, since = self._fingerprint(fence), self.clock()
        while self._alive(fence):
            if self.clock() - since >= self.ttl:
                return seen
            if self.clock() >= give_up:
                holder = json.loads(self.store.read_bytes(key(fence, "claim")))
                raise LeaseHeldError(
                    f"`{self.store.root}` has a driver: number {fence}, process {holder['pid']} on {holder['host']}",
                    hint="stop that one first, or wait longer with --lease-wait",
                )
            self.sleep(self.ttl / BEATS)
            now = self.clock()
            if (found := self._fingerprint(fence)) != seen:
                seen, since = found, now
            elif self.newest() != fence:
                return seen  # the claim of the next number will be refused, and that one is watched
        return seen

    def _alive(self, fence: int) -> bool:
        return not self.store.exists(key(fence, "end"))

    def _fingerprint(self, fence: int) -> bytes:
        beat = key(fence, "beat")
        return self.store.read_bytes(beat) if self.store.exists(beat) else b""

    def _refuse_successor(self) -> None:
        if (newest := self.newest()) > self.fence:
            self._trusted_until = -1.0
            raise LeaseLostError(
                f"driver {self.fence} of `{self.store.root}` was replaced by number {newest}",
                hint="nothing to do: the other one goes on. `tdm-r1 inspect` shows how far it is",
            )


def key(fence: int, name: str) -> str:
    """Where one object of a claim lies below the root."""
    return f"{FOLDER}/{fence:08d}/{name}.json"


def encoded(value: dict[str, Any]) -> bytes:
    """One line of JSON."""
    return json.dumps(value, ensure_ascii=False).encode() + b"\n"
