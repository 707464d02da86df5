"""Read a run's history from what is committed, and write its page and picture."""

from __future__ import annotations

import math
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from tdm_r1.artifacts.records import Evaluation, Rewards, TrainingState
from tdm_r1.artifacts.repository import fetch_verified, read_manifest
from tdm_r1.errors import MissingParentError
from tdm_r1.report.history import SHOWN, Drawn, History, Measured, Picture, Series, Trained
from tdm_r1.report.picture import save_picture
from tdm_r1.report.run_page import run_page
from tdm_r1.rewards.aggregate import aggregate
from tdm_r1.runtime.layout import REPORT_FILE, Task, shard_tasks
from tdm_r1.runtime.results import evaluated, gain_of, in_suite_order, remarks
from tdm_r1.runtime.run import Run
from tdm_r1.statistics import OVERALL

PER_TAG = 4
"""Prompts shown of each tag."""
UPDATES = ("surrogate_update", "generator_update")


def write_report(run: Run, out: Path | None, picture: Path | None = None) -> str:
    """Write the run's page, and if asked its picture; return where the page is.

    Args:
        out: local file; None for `report.html` beside the records.

    Raises:
        MissingParentError: when no evaluation is committed.
    """
    history = read_history(run)
    page = run_page(history)
    if out is None:
        run.store.overwrite(REPORT_FILE, page.encode())
    else:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(page, encoding="utf-8")
    if picture is not None:
        save_picture(history, picture)
    return f"{run.root}/{REPORT_FILE}" if out is None else str(out)


def read_history(run: Run) -> History:
    """Everything that the page shows; a run that still goes on is read as far as it is."""
    iterations = evaluated(run)
    if 0 not in iterations:
        raise MissingParentError(
            f"`{run.root}` has no evaluation of iteration 0 yet, so there is nothing to report",
            hint=f"resume the run with `tdm-r1 run --root {run.root}`",
        )
    ends = [run.load(Task("evaluation", n), Evaluation)[0] for n in sorted({0, iterations[-1]})]
    cells = [cell for record in ends for cell in record.metrics.to_pylist()]
    return History(
        preset=run.config.preset,
        seed=run.config.seed,
        suite=run.config.world,
        split=run.config.evaluation.split,
        tags=in_suite_order({cell["tag"] for cell in cells} - {OVERALL}),
        remarks=remarks(run.config, gain_of(run, ends[0], ends[-1]) if len(ends) > 1 else None),
        cells=cells,
        measured=[_measured(run, n) for n in iterations],
        trained=_trained(run),
        health=_health(run),
        drawn=drawn_prompts(ends),
    )


def metrics_of(run: Run, task: Task) -> list[dict[str, Any]]:
    """The metrics of a record without its tensors, verified; empty when it was not committed."""
    manifest = read_manifest(run.store, task.location)
    if manifest is None:
        return []
    kind = Evaluation if task.stage == "evaluation" else TrainingState
    name = next(file for file, field in kind.files().items() if field == "metrics")
    entry = manifest.files[name]
    with tempfile.TemporaryDirectory(prefix="tdm-r1-") as scratch:
        fetch_verified(run.store, f"{task.location}/{entry.stored_as}", Path(scratch, name), entry)
        rows: list[dict[str, Any]] = pq.read_table(Path(scratch, name)).to_pylist()
    return rows


def _measured(run: Run, iteration: int) -> Measured:
    """The generator's own row is the last of an evaluation."""
    last = [cell for cell in metrics_of(run, Task("evaluation", iteration)) if cell["tag"] == OVERALL][-1]
    return Measured(iteration, last["value"], last["low"], last["high"])


def _trained(run: Run) -> list[Trained]:
    """One point per iteration whose shards are all scored."""
    found = []
    for iteration in range(1, run.config.iterations + 1):
        tasks = shard_tasks("reward_scoring", iteration, run.config)
        if any(read_manifest(run.store, task.location) is None for task in tasks):
            continue
        rows = [row for task in tasks for row in aggregate(run.load(task, Rewards)[0], run.config.reward).to_pylist()]
        judged = [row for row in rows if row["error"] is None]
        if judged:
            reward = math.fsum(row["reward"] for row in judged) / len(judged)
            verdicts = [row["correct"] for row in judged if row["correct"] is not None]
            found.append(Trained(iteration, reward, sum(verdicts) / max(1, len(verdicts))))
    return found


def _health(run: Run) -> dict[str, Series]:
    """Mean over the steps of each iteration, by metric."""
    found: dict[str, list[tuple[int, float]]] = {}
    for iteration in range(1, run.config.iterations + 1):
        values: dict[str, list[float]] = {}
        for row in (row for stage in UPDATES for row in metrics_of(run, Task(stage, iteration))):
            values.setdefault(row["name"], []).append(row["value"])
        for name, steps in values.items():
            found.setdefault(name, []).append((iteration, math.fsum(steps) / len(steps)))
    return dict(found)


def drawn_prompts(records: Sequence[Evaluation]) -> list[Drawn]:
    """The first prompts of each tag with the first picture that every model drew of it, from the same noise."""
    by_model: dict[str, dict[str, tuple[dict[str, Any], Picture]]] = {}
    for record in records:
        for row, image in zip(record.samples.to_pylist(), record.image, strict=True):
            pictures = by_model.setdefault(row["name"], {})
            pictures.setdefault(row["prompt_id"], (row, Picture(image, row["correct"])))
    shown = {model: by_model[model] for model in SHOWN if model in by_model}
    common = [prompt for prompt in next(iter(shown.values()), {}) if all(prompt in own for own in shown.values())]
    taken: Counter[str] = Counter()
    found = []
    for prompt in common:
        row = next(iter(shown.values()))[prompt][0]
        taken[row["tag"]] += 1
        if taken[row["tag"]] <= PER_TAG:
            found.append(Drawn(row["text"], row["tag"], {model: own[prompt][1] for model, own in shown.items()}))
    return found
