"""The result of a run: its evaluations side by side, as `result.json` and as a curve."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from tdm_r1.artifacts.records import Evaluation
from tdm_r1.artifacts.repository import read_manifest
from tdm_r1.config import RunConfig
from tdm_r1.runtime.layout import RESULT_FILE, Task, evaluation_due
from tdm_r1.runtime.run import Run
from tdm_r1.statistics import OVERALL, tag_intervals
from tdm_r1.worlds.shapes.grammar import TAGS

DIGITS = 6
"""Of a share in `result.json`: more than any page shows, so that none of them rounds a rounded number."""
COLUMNS = ("name", "nfe", "overall", "ci95", "tags")


def evaluated(run: Run) -> list[int]:
    """Iterations whose evaluation is committed."""
    return [
        iteration
        for iteration in range(run.config.iterations + 1)
        if evaluation_due(iteration, run.config)
        and read_manifest(run.store, Task("evaluation", iteration).location) is not None
    ]


def in_suite_order(tags: Iterable[str]) -> list[str]:
    """GenEval's tags in GenEval's order, then any others by name."""
    rank = {tag: position for position, tag in enumerate(TAGS)}
    return sorted(tags, key=lambda tag: (rank.get(tag, len(rank)), tag))


def rows_of(evaluation: Evaluation) -> list[dict[str, Any]]:
    """One dictionary per model: name, nfe, overall, ci95, tags."""
    cells = evaluation.metrics.to_pylist()
    rows = []
    for name in dict.fromkeys(cell["name"] for cell in cells):
        own = {cell["tag"]: cell for cell in cells if cell["name"] == name}
        overall = own[OVERALL]
        rows.append(
            {
                "name": name,
                "nfe": overall["nfe"],
                "overall": round(overall["value"], DIGITS),
                "ci95": [round(overall["low"], DIGITS), round(overall["high"], DIGITS)],
                "tags": {tag: round(own[tag]["value"], DIGITS) for tag in in_suite_order(own.keys() - {OVERALL})},
            }
        )
    return rows


def by_prompt(evaluation: Evaluation, name: str) -> dict[tuple[str, str], float]:
    """Mean over the images of each prompt, by (tag, prompt id), of what an evaluation measures of one model.

    That is the share of correct images; or the mean score, for the tags whose scorer gives no verdicts.
    """
    table = evaluation.samples.select(["name", "tag", "prompt_id", "correct", "score"])
    own = [row for row in table.to_pylist() if row["name"] == name]
    judged = {row["tag"] for row in own if row["correct"] is not None}
    found: dict[tuple[str, str], list[float]] = {}
    for row in own:
        value = float(row["correct"] or False) if row["tag"] in judged else row["score"]
        if value is not None:
            found.setdefault((row["tag"], row["prompt_id"]), []).append(value)
    return {prompt: float(np.mean(values)) for prompt, values in found.items()}


def gain(before: Evaluation, after: Evaluation, *, resamples: int, seed: int) -> dict[str, Any] | None:
    """What the last model of `after` gained over the last one of `before`, prompt by prompt; None without common ones.

    All models draw from the same initial noise, so that much of what makes prompts differ cancels: this interval is
    narrower than the two of the table are apart.
    """
    over, name = (rows_of(record)[-1]["name"] for record in (before, after))
    first, last = by_prompt(before, over), by_prompt(after, name)
    differences: dict[str, list[float]] = {}
    for tag, prompt in sorted(first.keys() & last.keys()):
        differences.setdefault(tag, []).append(last[tag, prompt] - first[tag, prompt])
    if not differences:
        return None
    found = tag_intervals(
        {tag: np.array(values) for tag, values in differences.items()}, resamples=resamples, seed=seed
    )
    whole = found[OVERALL]
    return {
        "of": name,
        "over": over,
        "overall": round(whole.value, DIGITS),
        "ci95": [round(whole.low, DIGITS), round(whole.high, DIGITS)],
    }


def gain_of(run: Run, before: Evaluation, after: Evaluation) -> dict[str, Any] | None:
    """`gain` with the resamples and the seed of a run."""
    return gain(before, after, resamples=run.config.evaluation.bootstrap, seed=run.config.seed)


def remarks(config: RunConfig, gained: Mapping[str, Any] | None) -> list[str]:
    """What the table alone does not say: where its generator was distilled, and the paired difference."""
    found, adapter = [], config.distill.adapter
    if adapter:
        found.append(f"tdm is the generator {adapter}, which an earlier run distilled")
    if gained:
        (low, high), names = gained["ci95"], f"{gained['of']} over {gained['over']}"
        interval = f"95% interval {low:+.3f} to {high:+.3f}"
        found.append(f"{names} on the same prompts and noise: {gained['overall']:+.3f}, {interval}")
    return found


def result(run: Run) -> dict[str, Any]:
    """The table of a run: what it started from, and its last evaluated generator."""
    iterations = evaluated(run)
    records = {n: run.load(Task("evaluation", n), Evaluation)[0] for n in iterations}
    rows = rows_of(records[0]) if 0 in records else []
    gained = None
    if iterations and iterations[-1]:
        rows += rows_of(records[iterations[-1]])
        if 0 in records:
            gained = gain_of(run, records[0], records[iterations[-1]])
    first = next(iter(records.values())).metrics.to_pylist() if records else []
    return {
        "suite": run.config.world,
        "preset": run.config.preset,
        "seed": run.config.seed,
        "starts_from": run.config.distill.adapter or run.config.model.source,
        "iterations": iterations[-1] if iterations else 0,
        "prompts": next((cell["count"] for cell in first if cell["tag"] == OVERALL), 0),
        "rows": rows,
        "gain": gained,
        "curve": [
            {"iteration": n, "overall": row["overall"], "ci95": row["ci95"]}
            for n, record in records.items()
            for row in rows_of(record)[-1:]
        ],
    }


def write_result(run: Run) -> dict[str, Any]:
    """Write `result.json` beside the records and return its content."""
    content = result(run)
    run.store.overwrite(RESULT_FILE, json.dumps(content, indent=2).encode() + b"\n")
    return content
