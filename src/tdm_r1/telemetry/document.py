"""Write `docs/operations/metrics.md` from the declarations: `python -m tdm_r1.telemetry.document FILE`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from tdm_r1.telemetry.metrics import LABELS, SECTIONS, Metric


def table(metrics: Sequence[Metric]) -> str:
    """A row for each."""
    rows = [f"| `{metric.name}` | {metric.unit} | {', '.join(metric.labels)} | {metric.help} |" for metric in metrics]
    return "\n".join(["| name | unit | labels | what it is |", "|---|---|---|---|", *rows])


def page() -> str:
    """The whole page."""
    parts = [Path(__file__).with_name("introduction.md").read_text(encoding="utf-8")]
    parts += [f"## {title}\n\n{table(metrics)}\n" for title, metrics in SECTIONS.items()]
    labels = "\n".join(f"| `{label}` | {meaning} |" for label, meaning in LABELS.items())
    parts.append(f"## Labels\n\n| label | values |\n|---|---|\n{labels}\n")
    return "\n".join(parts)


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(page(), encoding="utf-8")
