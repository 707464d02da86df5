"""Scoring processes: spawned once, one thread each, load once, and are replaced when they die, hang, leak or age.

The rows of a shard are cut in order into calls of the scorer's size. A free process takes the next calls, as many as
keep it busy for a while and leave work for the others: then neither handing out nor waiting for the last one costs
much. When a process dies, or does not answer, its rows are cut until the one that does it is alone: one poison image
costs one row. What a call holds does not depend on the number of processes, so neither does a score.
"""

from __future__ import annotations

import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import wait
from typing import Final

from tdm_r1.config import RewardConfig
from tdm_r1.errors import ScorerError
from tdm_r1.rewards.ask import Question
from tdm_r1.rewards.batches import UNIT, Batch, calls, take
from tdm_r1.rewards.process import WorkerProcess, processes
from tdm_r1.rewards.protocol import Score, failed
from tdm_r1.rewards.worker import Order, Refused, Scored

DEATHS_OF_A_ROW: Final = 2
"""Processes that a row alone may kill before it is given up."""
DEATHS_IN_A_ROW: Final = 20
"""Deaths without any answer in between after which the scorer itself is at fault."""
PATIENCE: Final = 5.0
"""A batch may take this many times what its scorer says it costs."""

Done = Callable[[Sequence[int], Sequence[Score]], None]
"""Told the rows of a batch and their scores, as soon as they are there."""


@dataclass
class Upkeep:
    """What happened to the processes."""

    started: int = 0
    died: int = 0
    recycled: int = 0


class Pool:
    """The processes of one scorer. They stay until `close`, or until nobody holds the pool."""

    def __init__(self, order: Order, config: RewardConfig) -> None:
        self.upkeep = Upkeep()
        self._order, self._info, self._config = order, order.info, config
        self._size = processes(order.info.memory_mb) if config.workers is None else config.workers
        self._workers: list[WorkerProcess] = []
        self._deaths = 0
        self._call: float | None = None
        """Seconds that a call took, in the newest answer."""
        self._finalizer = weakref.finalize(self, _close_all, self._workers)

    @property
    def size(self) -> int:
        return self._size

    def score(self, questions: Sequence[Question], rows: Sequence[int], done: Done) -> None:
        """Ask for some rows, and tell each batch's scores as they come.

        Raises:
            ScorerError: when the scorer is not fit to serve, or its processes do nothing but die.
        """
        queue = deque(Batch(part) for part in calls(rows, self._info.batch))
        try:
            while queue or any(worker.hands for worker in self._workers):
                self._hand_out(queue, questions)
                for worker in self._due():
                    self._handle(worker, queue, done)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End every process; the next call starts new ones."""
        _close_all(self._workers)

    def _hand_out(self, queue: deque[Batch], questions: Sequence[Question]) -> None:
        """Work for those that have none, then one batch that waits for each of the others."""
        for idle in (True, False):
            for worker in self._workers:
                if len(queue) > (0 if idle else self._size) and worker.idle == idle and worker.takes(queue[0]):
                    self._ask(worker, queue, questions)
        starting = sum(not worker.ready for worker in self._workers)
        for _ in range(min(self._size - len(self._workers), len(queue) - starting)):
            self._workers.append(WorkerProcess(self._order))
            self.upkeep.started += 1

    def _ask(self, worker: WorkerProcess, queue: deque[Batch], questions: Sequence[Question]) -> None:
        batch = take(queue, self._size, self._call, min(UNIT, self._config.time_limit / 10))
        cost = PATIENCE * len(batch.rows) * self._info.cpu_seconds
        if not worker.ask(batch, [questions[row] for row in batch.rows], max(self._config.time_limit, cost)):
            queue.extendleft(reversed([replace(batch, rows=rows) for rows in calls(batch.rows, self._info.batch)]))
        elif worker.rows >= self._config.recycle_rows:
            worker.retired = True

    def _due(self) -> Iterable[WorkerProcess]:
        """Wait for the next message, death or deadline."""
        working = [worker for worker in self._workers if not worker.idle]
        first = min(worker.deadline for worker in working)
        ready = set(wait([worker.connection for worker in self._workers], max(0.0, first - time.monotonic())))
        now = time.monotonic()
        return [w for w in self._workers if w.connection in ready or (not w.idle and now >= w.deadline)]

    def _handle(self, worker: WorkerProcess, queue: deque[Batch], done: Done) -> None:
        answer = worker.answer()
        if answer is None:
            self._bury(worker, queue, done)
        elif isinstance(answer, Refused):
            raise ScorerError(answer.message, hint=answer.hint)
        elif isinstance(answer, Scored) and worker.hands:
            batch = worker.done()
            self._deaths, self._call = 0, answer.seconds * self._info.batch / len(batch.rows)
            done(batch.rows, answer.scores)
            if (worker.retired and not worker.hands) or answer.memory_mb > self._config.recycle_memory_mb:
                self._workers.remove(worker)
                queue.extendleft(reversed(worker.hands))
                worker.close()
                self.upkeep.recycled += 1
        else:
            worker.ready = True

    def _bury(self, worker: WorkerProcess, queue: deque[Batch], done: Done) -> None:
        self._workers.remove(worker)
        reason = worker.kill()
        self.upkeep.died += 1
        self._deaths += not worker.idle
        if self._deaths > (DEATHS_IN_A_ROW if worker.ready else DEATHS_OF_A_ROW):
            raise ScorerError(
                f"{self._deaths} processes of scorer `{self._info.name}` died one after the other, the last: {reason}",
                hint="see what it wrote to stderr; too little memory for `reward.workers` processes is the usual cause",
            )
        if not worker.hands:
            return
        batch, *waiting = worker.hands
        queue.extendleft(reversed(waiting))
        if len(batch.rows) == 1 and batch.deaths + 1 >= DEATHS_OF_A_ROW:
            done(batch.rows, [failed(f"worker_died: {reason}")])
        else:
            queue.extendleft(reversed(batch.cut(self._info.batch)))


def _close_all(workers: list[WorkerProcess]) -> None:
    while workers:
        workers.pop().close()
