"""Publish what a stage does and what it committed. Reads only what is committed, and never makes a command fail."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tdm_r1.artifacts.manifest import Manifest
from tdm_r1.artifacts.repository import require_manifest
from tdm_r1.artifacts.store import Store
from tdm_r1.config import RunConfig
from tdm_r1.models.progress import Progress, silent
from tdm_r1.runtime.layout import Task
from tdm_r1.runtime.loop import Executor
from tdm_r1.runtime.record_samples import failure_of, memory_of, run_label, samples_of, tallied, where_of
from tdm_r1.runtime.run import Run
from tdm_r1.telemetry.board import Board, Sample, sample
from tdm_r1.telemetry.outlets import RUN_JOB, STAGE_JOB, Outlets, Pushgateway, Say, harmless, serving

if TYPE_CHECKING:
    from tdm_r1.rewards.judges import Tally


class Observer:
    """Publishes for one run: on a board that `/metrics` shows, and to a Pushgateway after every stage."""

    def __init__(self, root: str, outlets: Outlets, say: Say) -> None:
        self.run = run_label(root)
        self.board = Board()
        self.asked = outlets.any
        self._outlets, self._say = outlets, say
        self._gateway = Pushgateway(outlets.pushgateway, say)
        self._began = time.time()

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Serve the board until the end of the block, if a port was asked for."""
        with serving(self.board, self._outlets.port, self._say):
            yield

    @contextmanager
    def watching(self, task: Task) -> Iterator[None]:
        """Say that a stage runs, and what it failed of."""
        where = where_of(self.run, task)
        begun = sample("stage_started_timestamp_seconds", time.time(), **where)
        self.board.post("running", [sample("stage_running", 1, **where), begun])
        try:
            yield
        except Exception as error:
            self._failed(task, error)
            raise
        finally:
            self.board.post("running", [])
            self.board.post("steps", [])

    def steps(self, task: Task, inner: Progress = silent) -> Progress:
        """A progress that also counts on the board."""
        where = where_of(self.run, task)

        def count(steps: range, done: int) -> None:
            found = [sample("stage_steps", len(steps), **where), sample("stage_steps_done", done, **where)]
            self.board.post("steps", found)

        def wrap(steps: range, label: str) -> Iterable[int]:
            for done, step in enumerate(inner(steps, label)):
                count(steps, done)
                yield step
            count(steps, len(steps))

        return wrap

    def executing(self, executor: Executor) -> Executor:
        """An executor whose tasks are watched; what was committed before this process began is not published again."""

        def execute(run: Run, task: Task, progress: Progress) -> None:
            before = len(run.judges.tallies)
            with self.watching(task):
                executor(run, task, self.steps(task, progress))
            if self.asked:
                with harmless(self._say):
                    manifest = require_manifest(run.store, task.location)
                    if manifest.provenance.finished.timestamp() >= self._began:
                        self.committed(run.store, run.config, task, manifest, run.judges.tallies[before:])

        return execute

    def committed(
        self, store: Store, config: RunConfig, task: Task, manifest: Manifest, tallies: Sequence[Tally] = ()
    ) -> None:
        """Publish a record that this process made: its numbers replace those of the iteration before."""
        if not self.asked:
            return
        with harmless(self._say):
            where = where_of(self.run, task)
            found = samples_of(store, config, self.run, task, manifest)
            found += [*memory_of(where), *tallied(where, tallies)]
            self._post(task, found)
            self._gateway.replace(STAGE_JOB, where, found)

    def seen(self, store: Store, config: RunConfig, task: Task, manifest: Manifest) -> None:
        """Show a record that another process made; that one may push it."""
        self._post(task, samples_of(store, config, self.run, task, manifest))

    def whole(self, samples: Sequence[Sample]) -> None:
        """Publish what is known of the run as a whole."""
        self.board.post("run", samples)
        self._gateway.replace(RUN_JOB, {"run": self.run}, self.board.samples("run", "driver"))

    def driven(self, event: str, failures: int) -> None:
        """Count what a driver tells."""
        self.board.count(sample("driver_events_total", 1, run=self.run, event=event))
        self.board.post("driver", [sample("driver_failed_blocks", failures, run=self.run)])

    def _post(self, task: Task, samples: Sequence[Sample]) -> None:
        self.board.post(shelf_of(task), samples)
        self.board.post(f"failed {shelf_of(task)}", [])

    def _failed(self, task: Task, error: Exception) -> None:
        if not self.asked:
            return
        with harmless(self._say):
            where = where_of(self.run, task)
            found = failure_of(where, error)
            self.board.post(f"failed {shelf_of(task)}", found)
            self._gateway.add(STAGE_JOB, where, found)


def shelf_of(task: Task) -> str:
    """Where the board keeps the samples of a task's newest record."""
    return f"{task.variant} {task.stage} {task.shard}"
