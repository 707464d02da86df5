"""What an orchestrator's page shows of one committed record: its numbers, its HTML page, a pointer to it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tdm_r1.artifacts.manifest import Manifest
from tdm_r1.artifacts.records import Evaluation, Rewards
from tdm_r1.artifacts.repository import read_manifest
from tdm_r1.rewards.aggregate import aggregate
from tdm_r1.runtime.history import metrics_of
from tdm_r1.runtime.layout import Task
from tdm_r1.runtime.run import Run
from tdm_r1.runtime.run_file import read_config


@dataclass(frozen=True)
class View:
    """Numbers by name, and the page of an evaluation."""

    metrics: Mapping[str, float]
    html: str | None = None


def view_of(run: Run, task: Task) -> View:
    """Read the record that a task committed."""
    if task.stage == "evaluation":
        record, _ = run.load(task, Evaluation)
        return View(_scores(record), record.report)
    if task.stage == "reward_scoring":
        return View(_rewards(run, task))
    if task.stage in ("surrogate_update", "generator_update"):
        return View(_means(metrics_of(run, task)))
    return View({})


def pointer_of(run: Run, task: Task, manifest: Manifest) -> dict[str, Any]:
    """Where a record lies and what it hashes to, for the metadata of an artifact."""
    return {
        "root": run.root,
        "location": task.location,
        "digest": manifest.digest,
        "bytes": sum(entry.size for entry in manifest.files.values()),
        "rows": max((entry.rows or 0 for entry in manifest.files.values()), default=0),
    }


def _scores(record: Evaluation) -> dict[str, float]:
    """Of the last row of the evaluation, by tag."""
    cells = record.metrics.to_pylist()
    return {cell["tag"]: float(cell["value"]) for cell in cells if cell["name"] == cells[-1]["name"]}


def _means(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Each metric's mean over the steps."""
    values: dict[str, list[float]] = {}
    for row in rows:
        values.setdefault(row["name"], []).append(row["value"])
    return {name: math.fsum(steps) / len(steps) for name, steps in values.items()}


def _rewards(run: Run, task: Task) -> dict[str, float]:
    """Mean and counts of a shard; of a variant also how far it agrees with what the run itself committed."""
    rows = aggregate(run.load(task, Rewards)[0], run.config.reward).to_pylist()
    judged = [row for row in rows if row["error"] is None]
    shown = {"samples": float(len(rows)), "failed": float(len(rows) - len(judged))}
    if judged:
        shown["reward_mean"] = math.fsum(row["reward"] for row in judged) / len(judged)
        verdicts = [row["correct"] for row in judged if row["correct"] is not None]
        shown["correct"] = sum(verdicts) / max(1, len(verdicts))
    own = Task(task.stage, task.iteration, task.shard)
    if task.variant and read_manifest(run.store, own.location) is not None:
        rewarded = aggregate(run.load(own, Rewards)[0], read_config(run.store).reward)
        before = {row["sample_id"]: row for row in rewarded.to_pylist()}
        both = [row for row in judged if before.get(row["sample_id"], {"error": ""})["error"] is None]
        changed = [row for row in both if row["correct"] != before[row["sample_id"]]["correct"]]
        moved = math.fsum(row["reward"] - before[row["sample_id"]]["reward"] for row in both)
        shown |= {"reward_moved": moved / max(1, len(both)), "verdicts_changed": float(len(changed))}
    return shown
