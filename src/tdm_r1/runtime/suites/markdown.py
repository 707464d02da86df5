"""An evaluation, or a comparison of several, as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tdm_r1.statistics import OVERALL


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column is text, the others are numbers."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def cell(row: Mapping[str, Any], *, signed: bool = False) -> str:
    """A value with its interval."""
    form = "+.3f" if signed else ".3f"
    return f"{row['value']:{form}} ({row['low']:{form}} to {row['high']:{form}})"


def by_metric(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Mapping[str, Any]]]:
    """Rows by metric and tag, in their order."""
    found: dict[str, dict[str, Mapping[str, Any]]] = {}
    for row in rows:
        found.setdefault(row["metric"], {})[row["tag"]] = row
    return found


def metric_table(rows: Sequence[Mapping[str, Any]], better: Mapping[str, bool]) -> str:
    """One line per metric, one column per tag."""
    metrics = by_metric(rows)
    tags = list(dict.fromkeys(tag for own in metrics.values() for tag in own if tag != OVERALL))
    lines = [
        [f"{name} {arrow(better[name])}", cell(own[OVERALL]), str(own[OVERALL]["count"])]
        + [f"{own[tag]['value']:.3f}" if tag in own else "" for tag in tags]
        for name, own in metrics.items()
    ]
    return table(["metric", "overall (95% interval)", "prompts", *tags], lines)


def arrow(higher_is_better: bool) -> str:
    """Which way is better."""
    return "↑" if higher_is_better else "↓"


def evaluation_page(content: Mapping[str, Any]) -> str:
    """`evaluation.md`."""
    prompts, noise = content["prompts"], content["noise"]
    failed = [f"- `{n}` failed on {s['errors']} of {s['images']} images" for n, s in content["scorers"].items()]
    failed = [line for line, one in zip(failed, content["scorers"].values(), strict=True) if one["errors"]]
    notes = [*[f"- {text}" for text in content["remarks"]], *failed]
    return "\n".join(
        [
            f"# {content['suite']}: {content['title']}\n",
            f"{prompts['count']} prompts, {prompts['images_per_prompt']} images each, seed {noise['seed']}; prompts "
            f"`{prompts['sha256'][:16]}`. Intervals are a bootstrap over prompts; overall is the mean of the tags.\n",
            metric_table(content["metrics"], content["better"]),
            *([*notes, ""] if notes else []),
        ]
    )


def comparison_page(content: Mapping[str, Any]) -> str:
    """`comparison.md`."""
    page = ["# Comparison, prompt by prompt\n", f"Against `{content['baseline']}`, {content['title']}.\n"]
    for one in content["against"]:
        page += [f"## `{one['address']}`, {one['title']}\n", difference_table(one["differences"], content["better"])]
        page += [*(f"- **warning**: {text}" for text in one["warnings"]), *(f"- {text}" for text in one["remarks"]), ""]
    return "\n".join(page)


def difference_table(rows: Sequence[Mapping[str, Any]], better: Mapping[str, bool]) -> str:
    """One line per metric: both values, and the paired difference with its interval, overall and by tag."""
    metrics = by_metric(rows)
    tags = list(dict.fromkeys(tag for own in metrics.values() for tag in own if tag != OVERALL))
    lines = []
    for name, own in metrics.items():
        whole = own[OVERALL]
        values = [f"{whole['before']:.3f}", f"{whole['after']:.3f}", cell(whole, signed=True)]
        lines.append([f"{name} {arrow(better[name])}", *values])
        lines[-1] += [f"{own[tag]['value']:+.3f}" if tag in own else "" for tag in tags]
    return table(["metric", "before", "after", "difference (95% interval)", *tags], lines)
