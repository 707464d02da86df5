"""Samples of one task: of the record that it committed, of the process that ran it, of what it failed of."""

from __future__ import annotations

import hashlib
import math
import re
import resource
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tdm_r1.artifacts.manifest import Manifest
from tdm_r1.artifacts.repository import fetch_verified, read_manifest
from tdm_r1.artifacts.store import Store
from tdm_r1.config import RunConfig
from tdm_r1.errors import NumericalError, TdmR1Error
from tdm_r1.runtime.layout import FEEDBACK, SHARDED, STAGES, Task
from tdm_r1.telemetry import readings
from tdm_r1.telemetry.board import Sample, sample

if TYPE_CHECKING:
    from tdm_r1.rewards.judges import Tally

MOST_PARENTS: Final = 4
"""A record of more is not asked how long it waited: that would read a manifest for each."""
VARIANT_STAGES: Final = {
    "reward_scoring": "variant_scoring",
    "evaluation": "variant_evaluation",
    "feedback": "variant_feedback",
}


def run_label(root: str) -> str:
    """The run's name in a label: last part of the root, and a hash of all of it, so that two runs do not meet."""
    whole = root.rstrip("/") if "://" in root else str(Path(root).absolute())
    last = re.sub(r"[^a-z0-9]+", "-", whole.rpartition("/")[2].lower()).strip("-")[:30].strip("-")
    return f"{last or 'run'}-{hashlib.sha256(whole.encode()).hexdigest()[:8]}"


def stage_label(task: Task) -> str:
    """Name of a stage, another one for a variant's; one that does not exist is `unknown`."""
    if task.variant:
        return VARIANT_STAGES.get(task.stage, "unknown")
    return task.stage if task.stage in (*STAGES, FEEDBACK) else "unknown"


def where_of(run: str, task: Task) -> dict[str, str]:
    """Labels of a task; also the group of its pushes."""
    sharded = {"shard": f"{task.shard:04d}"} if task.stage in SHARDED else {}
    return {"run": run, "stage": stage_label(task), **sharded}


def samples_of(store: Store, config: RunConfig, run: str, task: Task, manifest: Manifest) -> list[Sample]:
    """Everything that one committed record says."""
    where = where_of(run, task)
    few = list(manifest.parents) if len(manifest.parents) <= MOST_PARENTS else []
    parents = [parent for location in few if (parent := read_manifest(store, location)) is not None]
    found = readings.of_manifest(where, task.iteration, config.iterations, manifest, parents)
    if task.stage == "reward_scoring":
        scores, scorers = (_table(store, task, manifest, name) for name in ("part.parquet", "scorers.parquet"))
        found += readings.of_scores(where, scores, scorers, config.reward)
    elif task.stage == "evaluation":
        found += readings.of_evaluation(where, _table(store, task, manifest, "metrics.parquet").to_pylist())
    elif "metrics.parquet" in manifest.files:
        rows = _table(store, task, manifest, "metrics.parquet").to_pylist()
        found += readings.of_training(where, rows)
        found += readings.of_work(where, rows, manifest.provenance.seconds)
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


def tallied(where: dict[str, str], tallies: Sequence[Tally]) -> list[Sample]:
    """What asking the scorers cost, by scorer."""
    found = []
    for name in dict.fromkeys(tally.scorer for tally in tallies):
        own, labels = [tally for tally in tallies if tally.scorer == name], {**where, "scorer": name}
        found += [
            sample("scores_cached", sum(tally.cached for tally in own), **labels),
            sample("scoring_seconds", math.fsum(tally.seconds for tally in own), **labels),
            sample("scoring_processes_died", own[-1].died, **labels),
        ]
    return found
