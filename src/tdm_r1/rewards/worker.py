"""A scoring process: it opens one scorer, loads it once, tests it, and answers batches until its parent hangs up.

Started by `tdm_r1.rewards.process`; its arguments are the numbers of its end of a pipe and of the shelf with pictures.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tdm_r1.errors import TdmR1Error
from tdm_r1.rewards.ask import Question, ask, make_ready
from tdm_r1.rewards.protocol import Score, ScorerInfo, reason_of
from tdm_r1.rewards.registry import open_scorer
from tdm_r1.rewards.shelf import Shelf


@dataclass(frozen=True)
class Order:
    """What a process opens."""

    use: str
    options: Mapping[str, Any]
    info: ScorerInfo
    """Known to the parent, so that the weights are not hashed by every process."""
    threads: int = 1


@dataclass(frozen=True)
class Ready:
    """The scorer is loaded and gave its golden picture the right value."""


@dataclass(frozen=True)
class Refused:
    """The scorer is not fit to serve."""

    message: str
    hint: str | None


@dataclass(frozen=True)
class Scored:
    """The answer to one batch, in its order."""

    scores: list[Score]
    seconds: float
    """The scorer took."""
    memory_mb: float
    """Resident now."""


def resident_mb() -> float:
    """Resident memory of this process; its peak where /proc does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return pages * resource.getpagesize() / 2**20


def _one_thread(count: int) -> None:
    """OpenCV does not read the environment; torch does, but may have been told otherwise."""
    if (cv2 := sys.modules.get("cv2")) is not None:
        cv2.setNumThreads(count)
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(count)


def serve(connection: Connection, shelf: Shelf | None) -> None:
    """Answer until the parent closes its end."""
    order: Order = connection.recv()
    try:
        scorer = open_scorer(order.use, order.options)
        make_ready(scorer, order.threads)
    except TdmR1Error as error:
        connection.send(Refused(error.message, error.hint))
        return
    except Exception as error:
        connection.send(Refused(f"scorer `{order.use}` cannot be opened: {reason_of(error)}", None))
        return
    _one_thread(order.threads)
    connection.send(Ready())
    size = order.info.batch
    while True:
        questions: list[Question] = connection.recv()
        if shelf is not None:
            questions = shelf.take(questions)
        started = time.monotonic()
        parts = [ask(scorer, questions[start : start + size], order.info) for start in range(0, len(questions), size)]
        scores = [score for part in parts for score in part]
        connection.send(Scored(scores, time.monotonic() - started, resident_mb()))


def _outlive_no_parent(parent: int) -> None:
    """End this session when the parent is gone: nobody would then end a scorer that hangs."""
    while os.getppid() == parent:
        time.sleep(1)
    os.killpg(0, signal.SIGKILL)


def main() -> None:
    threading.Thread(target=_outlive_no_parent, args=(os.getppid(),), daemon=True).start()
    try:
        serve(Connection(int(sys.argv[1])), Shelf(int(sys.argv[2])) if len(sys.argv) > 2 else None)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the parent hung up
