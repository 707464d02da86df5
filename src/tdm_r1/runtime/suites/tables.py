"""From the scores of single images to what a table shows: per metric and tag a mean with its interval."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa

from tdm_r1.config import RewardConfig
from tdm_r1.rewards.aggregate import aggregate_tables
from tdm_r1.rewards.protocol import NOT_ASKED
from tdm_r1.runtime.results import in_suite_order
from tdm_r1.runtime.suites.parts import Row, score_of
from tdm_r1.stages.evaluation import measured
from tdm_r1.statistics import OVERALL, Interval, tag_intervals

REWARD: Final = "reward"
"""Name of the training reward among the metrics."""
METRICS: Final = pa.schema(
    [
        ("metric", pa.string()),
        ("tag", pa.string()),
        ("value", pa.float64()),
        ("low", pa.float64()),
        ("high", pa.float64()),
        ("count", pa.int64()),
    ]
)
"""`count` prompts; `low` to `high` is the 95% interval of `value`."""
Values = Mapping[tuple[str, str], float]
"""By tag and prompt, the mean over the prompt's images."""


@dataclass(frozen=True)
class Metric:
    """What one scorer, or the training reward, measured."""

    name: str
    higher_is_better: bool
    values: Values

    def intervals(self, *, resamples: int, seed: int) -> dict[str, Interval]:
        """By tag and overall, by a bootstrap over prompts inside each tag."""
        return intervals(self.values, resamples=resamples, seed=seed)


def intervals(values: Values, *, resamples: int, seed: int) -> dict[str, Interval]:
    """Mean and 95% interval per tag; overall is the unweighted mean of the tags, overall first."""
    tags: dict[str, list[float]] = {}
    for (tag, _), value in sorted(values.items()):
        tags.setdefault(tag, []).append(value)
    found = tag_intervals({tag: np.array(own) for tag, own in tags.items()}, resamples=resamples, seed=seed)
    return {tag: found[tag] for tag in (OVERALL, *in_suite_order(tags))}


def scorer_metric(name: str, rows: Sequence[Row], higher_is_better: bool) -> Metric | None:
    """Of one scorer's rows: its verdict `correct` if it gives one, else its raw value; None without any value."""
    asked = [row for row in rows if row["error"] != NOT_ASKED]
    verdicts = any(part["name"] == "correct" for row in asked for part in row["parts"])
    values = by_prompt(asked, measured([score_of(row) for row in asked]))
    return Metric(name, higher_is_better or verdicts, values) if values else None


def reward_metric(samples: Mapping[str, Sequence[Row]], better: Mapping[str, bool], reward: RewardConfig) -> Metric:
    """The training reward of each image, from raw scores, as a run aggregates them; rows without one are left out."""
    weighted = {name: section for name, section in reward.scorers.items() if section.weight}
    groups: dict[str, int] = {}
    scores: list[Row] = []
    for name in weighted:
        for row in samples[name]:
            group = groups.setdefault(row["prompt_id"], len(groups))
            scores.append({**row, "sample_id": f"{row['prompt_id']}/{row['number']}", "group": group, "scorer": name})
    table = aggregate_tables(
        pa.Table.from_pylist(scores),
        pa.table({"name": list(weighted), "higher_is_better": [better[name] for name in weighted]}),
        reward,
    )
    first = samples[next(iter(weighted))]
    return Metric(REWARD, True, by_prompt(first, table["reward"].to_pylist()))


def by_prompt(rows: Sequence[Row], values: Iterable[float | None]) -> Values:
    """Means over the images of each prompt that have a value."""
    found: dict[tuple[str, str], list[float]] = {}
    for row, value in zip(rows, values, strict=True):
        if value is not None:
            found.setdefault((row["tag"], row["prompt_id"]), []).append(value)
    return {prompt: float(np.mean(own)) for prompt, own in found.items()}


def metrics_of(
    samples: Mapping[str, Sequence[Row]], better: Mapping[str, bool], reward: RewardConfig | None
) -> dict[str, Metric]:
    """Every metric by name: the training reward first, where all its scorers were asked."""
    found: dict[str, Metric] = {}
    if reward is not None and all(name in samples for name, section in reward.scorers.items() if section.weight):
        rewarded = reward_metric(samples, better, reward)
        found |= {REWARD: rewarded} if rewarded.values else {}
    own = {name: scorer_metric(name, rows, better[name]) for name, rows in samples.items()}
    return found | {name: metric for name, metric in own.items() if metric is not None}


def metric_rows(metrics: Mapping[str, Metric], *, resamples: int, seed: int) -> list[dict[str, Any]]:
    """One row per metric and tag, as `METRICS` has them."""
    return [
        {"metric": name, "tag": tag, "value": one.value, "low": one.low, "high": one.high, "count": one.count}
        for name, metric in metrics.items()
        for tag, one in metric.intervals(resamples=resamples, seed=seed).items()
    ]
