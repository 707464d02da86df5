"""One scoring process as its parent sees it, and how many of them this machine bears."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from multiprocessing import Pipe
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Final

from tdm_r1.rewards.ask import Question
from tdm_r1.rewards.batches import Batch
from tdm_r1.rewards.shelf import Shelf
from tdm_r1.rewards.worker import Order, Ready, Refused, Scored

START_LIMIT: Final = 900.0
"""Seconds in which a process must have loaded and tested its scorer."""
START: Final = "from tdm_r1.rewards.worker import main; main()"
"""Not `-m`: then the classes of the messages would be those of `__main__`."""
THREADS: Final = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
AHEAD: Final = 2**16
"""Bytes of a message that a busy process may be sent: they lie in the pipe, so neither end waits for the other."""
CGROUP_QUOTA: Final = Path("/sys/fs/cgroup/cpu.max")
CGROUP_MEMORY: Final = Path("/sys/fs/cgroup/memory.max")
MEMORY: Final = Path("/proc/meminfo")


def cores() -> int:
    """CPUs that this process may use: its affinity, and the quota of its container."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        quota, period = CGROUP_QUOTA.read_text(encoding="ascii").split()
        count = min(count, max(1, math.ceil(int(quota) / int(period))))
    return count


def memory_mb() -> float:
    """Megabytes that new processes may fill: what is available, at most the limit of the container."""
    found = [math.inf]
    with contextlib.suppress(OSError, ValueError):  # the limit may be the word `max`
        found.append(int(CGROUP_MEMORY.read_text(encoding="ascii")) / 2**20)
    with contextlib.suppress(OSError, ValueError, KeyError):
        lines = dict(line.split(":", 1) for line in MEMORY.read_text(encoding="ascii").splitlines())
        found.append(int(lines["MemAvailable"].removesuffix("kB")) / 2**10)
    return min(found)


def processes(scorer_mb: float) -> int:
    """One per core, as far as there is memory for a scorer that says to take `scorer_mb`; one at least."""
    return int(max(1, min(cores(), memory_mb() // max(scorer_mb, 1.0))))


class WorkerProcess:
    """A process of its own session: killing it kills what its scorer started too."""

    def __init__(self, order: Order) -> None:
        self.connection, theirs = Pipe()
        path = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
        threads = {name: str(order.threads) for name in THREADS}
        self._shelf = Shelf.new()
        files = [theirs.fileno(), *([self._shelf.file] if self._shelf else [])]
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-c", START, *map(str, files)],
                env={**os.environ, **threads, "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": path},
                pass_fds=files,
                stdin=subprocess.DEVNULL,
                stdout=2,  # what a library prints must not mix with what a command prints
                start_new_session=True,
            )
        self.hands: deque[Batch] = deque()
        """The batch that it works on, and perhaps one that waits."""
        self.ready = False
        self.rows = 0
        """Handed out so far."""
        self.retired = False
        """It gets nothing more, and is replaced when its hands are empty."""
        self._limits: deque[float] = deque()
        self._within(START_LIMIT)
        with contextlib.suppress(OSError):  # it died already: the first answer says so
            self.connection.send(order)

    @property
    def idle(self) -> bool:
        return self.ready and not self.hands

    def takes(self, batch: Batch) -> bool:
        """Whether it may be handed this batch now. Without a shelf, and for a suspect, only when idle."""
        if not self.ready or self.retired:
            return False
        alone = self._shelf is None or batch.suspect or any(own.suspect for own in self.hands)
        return not self.hands or (len(self.hands) == 1 and not alone)

    def ask(self, batch: Batch, questions: Sequence[Question], limit: float) -> bool:
        """Hand out a batch; its answer must come within `limit` seconds, or within as many of the answer before it.

        False when it is not handed out: this process is busy, and would have to empty the pipe first.
        """
        message = ForkingPickler.dumps(self._shelf.put(questions) if self._shelf else questions)
        if self.hands and len(message) > AHEAD:
            return False
        if self._shelf:
            self._shelf.turn()
        if not self.hands:
            self._within(limit)
        self.hands.append(batch)
        self._limits.append(limit)
        self.rows += len(batch.rows)
        with contextlib.suppress(OSError):
            self.connection.send_bytes(message)
        return True

    def done(self) -> Batch:
        """Take back the batch that was answered."""
        self._limits.popleft()
        if self._limits:
            self._within(self._limits[0])
        return self.hands.popleft()

    def _within(self, limit: float) -> None:
        self.limit, self.deadline = limit, time.monotonic() + limit

    def answer(self) -> Ready | Refused | Scored | None:
        """What it sent; None when it is dead, or its time is over."""
        try:
            return self.connection.recv() if self.connection.poll() else None
        except (EOFError, OSError):
            return None

    def kill(self) -> str:
        """End it at once, and say why it had to be."""
        late = self.process.poll() is None and time.monotonic() >= self.deadline
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self._hang_up()
        code = self.process.wait()
        return f"no answer within {self.limit:g} s" if late else f"exit code {code}"

    def close(self) -> None:
        """Let an idle one go by itself; kill one that is busy or does not go."""
        self._hang_up()
        if self.idle:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(5)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def _hang_up(self) -> None:
        self.connection.close()
        if self._shelf:
            self._shelf.close()
