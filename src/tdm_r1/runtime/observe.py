"""Publish what a stage does and what it committed. Reads only what is committed, and never makes a command fail."""

from __future__ import annotations

import hashlib
import re
import resource
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tdm_r1.artifacts.manifest import Manifest
from tdm_r1.artifacts.repository import fetch_verified, read_manifest
from tdm_r1.artifacts.store import Store
from tdm_r1.config import RunConfig
from tdm_r1.errors import NumericalError, TdmR1Error
from tdm_r1.models.progress import Progress, silent
from tdm_r1.runtime.layout import STAGES, Task
from tdm_r1.telemetry import readings
from tdm_r1.telemetry.board import Board, Sample, sample
from tdm_r1.telemetry.outlets import Outlets, Pushgateway, Say, harmless, serving

if TYPE_CHECKING:
    from tdm_r1.rewards.judges import Tally

MOST_PARENTS: Final = 4
"""A record of more is not asked how long it waited: that would read a manifest for each."""
VARIANT_STAGES: Final = {"reward_scoring": "variant_scoring", "evaluation": "variant_evaluation"}


def run_label(root: str) -> str:
    """The run's name in a label: last part of the root, and a hash of all of it, so that two runs do not meet."""
    whole = root.rstrip("/") if "://" in root else str(Path(root).absolute())
    last = re.sub(r"[^a-z0-9]+", "-", whole.rpartition("/")[2].lower()).strip("-")[:30].strip("-")
    return f"{last or 'run'}-{hashlib.sha256(whole.encode()).hexdigest()[:8]}"


def where_of(run: str, task: Task) -> dict[str, str]:
    """Labels of a task; also the group of its pushes. A stage that does not exist is `unknown`."""
    stage = task.stage if task.stage in STAGES else "unknown"
    if task.variant:
        stage = VARIANT_STAGES.get(stage, stage)
    sharded = {"shard": f"{task.shard:04d}"} if task.stage in ("rollout", "reward_scoring") else {}
    return {"run": run, "stage": stage, **sharded}


def samples_of(store: Store, config: RunConfig, run: str, task: Task, manifest: Manifest) -> list[Sample]:
    """Everything that one committed record says."""
    where = where_of(run, task)
    few = list(manifest.parents) if len(manifest.parents) <= MOST_PARENTS else []
    parents = [parent for location in few if (parent := read_manifest(store, location)) is not None]
    found = readings.of_manifest(where, task.iteration, manifest, parents)
    found.append(sample("run_iterations", config.iterations, run=run))
    if task.stage == "reward_scoring":
        scores, scorers = (_table(store, task, manifest, name) for name in ("part.parquet", "scorers.parquet"))
        found += readings.of_scores(where, scores, scorers, config.reward)
    elif task.stage == "evaluation":
        found += readings.of_evaluation(where, _table(store, task, manifest, "metrics.parquet").to_pylist())
    elif "metrics.parquet" in manifest.files:
        found += readings.of_training(where, _table(store, task, manifest, "metrics.parquet").to_pylist())
    return found


def _table(store: Store, task: Task, manifest: Manifest, file: str) -> Any:
    import pyarrow.parquet as pq

    entry = manifest.files[file]
    with tempfile.TemporaryDirectory(prefix="tdm-r1-") as scratch:
        local = Path(scratch, file)
        fetch_verified(store, f"{task.location}/{entry.stored_as}", local, entry)
        return pq.read_table(local, memory_map=False)


def memory_of(where: dict[str, str]) -> list[Sample]:
    """Peaks since this process began. Linux counts in KiB, macOS in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    usage = {"process": resource.RUSAGE_SELF, "children": resource.RUSAGE_CHILDREN}
    peaks = {of: resource.getrusage(who).ru_maxrss * unit for of, who in usage.items()}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        peaks["cuda"] = torch.cuda.max_memory_allocated()
    return [sample("stage_memory_peak_bytes", value, **where, of=of) for of, value in peaks.items()]


def failure_of(where: dict[str, str], error: BaseException) -> list[Sample]:
    """Why an attempt failed: the class of an error of ours, which has no text in it."""
    reason = type(error).__name__ if isinstance(error, TdmR1Error) else "Crash"
    found = [sample("stage_failed", 1, **where, reason=reason)]
    if isinstance(error, NumericalError):
        found.append(sample("stage_not_finite", 1, **where, term=error.term))
    return found


class Observer:
    """Publishes for one run: on a board that `/metrics` shows, and to a Pushgateway after every stage."""

    def __init__(self, root: str, outlets: Outlets, say: Say) -> None:
        self.run = run_label(root)
        self.board = Board()
        self._outlets, self._say = outlets, say
        self._gateway = Pushgateway(outlets.pushgateway, say)

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Serve the board until the end of the block, if a port was asked for."""
        with serving(self.board, self._outlets.port, self._say):
            yield

    @contextmanager
    def watching(self, task: Task) -> Iterator[None]:
        """Say that a stage runs, and what it failed of."""
        where, shelf = where_of(self.run, task), _shelf(task)
        begun = [
            sample("stage_running", 1, **where),
            sample("stage_started_timestamp_seconds", time.time(), **where),
        ]
        self.board.post("running", begun)
        self.board.post("steps", [])
        try:
            yield
        except Exception as error:
            if self._outlets.any:
                with harmless(self._say):
                    found = failure_of(where, error)
                    self.board.post(f"failed {shelf}", found)
                    self._gateway.add(where, found)
            raise
        finally:
            self.board.post("running", [])
            self.board.post("steps", [])

    def steps(self, task: Task, inner: Progress = silent) -> Progress:
        """A progress that also counts on the board."""
        where = where_of(self.run, task)

        def wrap(steps: range, label: str) -> Iterable[int]:
            for done, step in enumerate(inner(steps, label)):
                self._count(where, len(steps), done)
                yield step
            self._count(where, len(steps), len(steps))

        return wrap

    def _count(self, where: dict[str, str], steps: int, done: int) -> None:
        found = [sample("stage_steps", steps, **where), sample("stage_steps_done", done, **where)]
        self.board.post("steps", found)

    def committed(
        self, store: Store, config: RunConfig, task: Task, manifest: Manifest, tallies: Sequence[Tally] = ()
    ) -> None:
        """Publish a record: its numbers replace those of the iteration before."""
        if not self._outlets.any:
            return
        with harmless(self._say):
            where, shelf = where_of(self.run, task), _shelf(task)
            found = samples_of(store, config, self.run, task, manifest)
            found += [*memory_of(where), *(one for tally in tallies for one in _tallied(where, tally))]
            self.board.post(shelf, found)
            self.board.post(f"failed {shelf}", [])
            self._gateway.replace(where, found)


def _shelf(task: Task) -> str:
    return f"{task.variant} {task.stage} {task.shard}"


def _tallied(where: dict[str, str], tally: Tally) -> list[Sample]:
    labels = {**where, "scorer": tally.scorer}
    return [
        sample("scores_cached", tally.cached, **labels),
        sample("scoring_seconds", tally.seconds, **labels),
        sample("scoring_processes_died", tally.died, **labels),
    ]
