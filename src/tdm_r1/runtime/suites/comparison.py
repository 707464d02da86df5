"""Evaluations against each other, prompt by prompt, and whether the reward parts from what it should stand for.

Both drew from the same noise for the same prompts, so that much of what makes prompts differ cancels. They part when
the training reward is up with its paired interval above 0, while a metric that is no part of that reward is down with
its interval below 0: what a generator does that exploits its verifier.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tdm_r1.config import RewardConfig
from tdm_r1.errors import ConfigError
from tdm_r1.runtime.suites.evaluation import Evaluated
from tdm_r1.runtime.suites.tables import REWARD, Metric, Values, intervals, metrics_of
from tdm_r1.statistics import OVERALL, Interval


def compare(baseline: Evaluated, others: Sequence[Evaluated]) -> dict[str, Any]:
    """The content of `comparison.json`.

    Raises:
        ConfigError: when two of them are not of the same prompts and noise.
    """
    for other in others:
        require_same(baseline, other)
    against = [against_baseline(baseline, other) for other in others]
    return {
        "baseline": baseline.address,
        "title": baseline.content["title"],
        "better": {name: up for one in against for name, up in one.pop("better").items()},
        "against": against,
    }


def require_same(one: Evaluated, other: Evaluated) -> None:
    """Refuse a pair of which images cannot be paired."""
    found = []
    for label, key in (("prompts", "prompts"), ("noise", "noise")):
        a, b = one.content[key], other.content[key]
        found += [f"{label} `{k}` is {a[k]!r:.70} and {b[k]!r:.70}" for k in a if a[k] != b.get(k)]
    if found:
        shared = len(_prompts(one) & _prompts(other))
        raise ConfigError(
            f"`{one.address}` and `{other.address}` cannot be paired: {'; '.join(found)}; "
            f"{shared} prompt ids are in both",
            hint="evaluate both with the same --suite, --prompts, --images-per-prompt and --seed",
        )


def _prompts(one: Evaluated) -> set[str]:
    return {row["prompt_id"] for rows in one.samples.values() for row in rows}


def against_baseline(baseline: Evaluated, other: Evaluated) -> dict[str, Any]:
    """Paired differences of every metric that both have, and what they warn of."""
    reward, unlike = other.content["reward"], _unlike(baseline, other)
    trained = None if reward is None else RewardConfig.model_validate(reward)
    before, after = (_metrics(one, trained, without=unlike) for one in (baseline, other))
    resamples, seed = (int(other.content["bootstrap"][key]) for key in ("resamples", "seed"))
    rows, overall = [], {}
    for name in (name for name in after if name in before):
        found = intervals(_difference(before[name], after[name]), resamples=resamples, seed=seed)
        overall[name] = found[OVERALL]
        ends = [metric.intervals(resamples=1, seed=seed) for metric in (before[name], after[name])]
        rows += [
            {"metric": name, "tag": tag, "before": ends[0][tag].value, "after": ends[1][tag].value}
            | {"value": one.value, "low": one.low, "high": one.high, "count": one.count}
            for tag, one in found.items()
        ]
    better = {name: after[name].higher_is_better for name in overall}
    own = () if trained is None else tuple(name for name, section in trained.scorers.items() if section.weight)
    remarks = [f"`{name}` is left out: it is another version, or was told something else" for name in sorted(unlike)]
    if trained is None:
        remarks.append("no training reward is measured in both, so nothing says whether a metric parts from it")
    return {
        "address": other.address,
        "title": other.content["title"],
        "differences": rows,
        "better": better,
        "warnings": partings(overall, better, own)
        if trained is None or REWARD in overall
        else [_unknown(baseline, trained)],
        "remarks": remarks,
    }


def _unknown(baseline: Evaluated, trained: RewardConfig) -> str:
    """Why nothing can be said of a training reward that there is."""
    told = "nothing says whether a metric parts from the training reward, which cannot be computed for both"
    missing = {n: one for n, one in trained.scorers.items() if one.weight and n not in baseline.samples}
    if not missing:
        return told
    flags = [
        f"--scorer '{name}={json.dumps({'use': one.use or name, 'options': one.options})}'"
        for name, one in missing.items()
    ]
    asked = f"`{baseline.address}` did not ask {', '.join(missing)}"
    return f"{told}: {asked}; run its command again with {' '.join(flags)}, which draws nothing again"


def _difference(before: Metric, after: Metric) -> Values:
    """Of the prompts that have a value in both."""
    shared = before.values.keys() & after.values.keys()
    return {prompt: after.values[prompt] - before.values[prompt] for prompt in shared}


def _unlike(one: Evaluated, other: Evaluated) -> set[str]:
    """Scorers that are not the same in both."""
    a, b = one.content["scorers"], other.content["scorers"]
    return {name for name in a.keys() & b.keys() if a[name]["revision"] != b[name]["revision"]}


def _metrics(one: Evaluated, reward: RewardConfig | None, *, without: set[str]) -> dict[str, Metric]:
    samples = {name: rows for name, rows in one.samples.items() if name not in without}
    better = {name: about["higher_is_better"] for name, about in one.content["scorers"].items()}
    return metrics_of(samples, better, reward)


def partings(overall: Mapping[str, Interval], better: Mapping[str, bool], trained: Sequence[str]) -> list[str]:
    """A warning for each metric outside of the reward that is surely worse while the reward is surely better.

    Args:
        overall: paired differences by metric, `reward` among them.
        better: whether more of a metric is better.
        trained: metrics that are part of the training reward.
    """
    reward = overall.get(REWARD)
    if reward is None or reward.low <= 0:
        return []
    found = []
    for name, one in overall.items():
        worse = one.high < 0 if better[name] else one.low > 0
        if worse and name != REWARD and name not in trained:
            found.append(
                f"the training reward is up by {reward.value:+.3f} ({reward.low:+.3f} to {reward.high:+.3f}) while "
                f"`{name}` is worse by {one.value:+.3f} ({one.low:+.3f} to {one.high:+.3f}): look at the pictures"
            )
    return found
