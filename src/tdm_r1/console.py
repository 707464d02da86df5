"""What the commands show: tables, progress with the time left, errors with their hints."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from tdm_r1.errors import TdmR1Error

OUT = Console(highlight=False)
ERR = Console(stderr=True, highlight=False)


def fail(error: TdmR1Error) -> None:
    """Print an error as `error: …`, blank line, `hint: …` to stderr."""
    print(f"error: {error}", file=sys.stderr)


def bar() -> Progress:
    """A progress bar with elapsed time and time left, on stderr."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(elapsed_when_finished=True),
        console=ERR,
    )


def track(progress: Progress) -> Any:
    """A stage's own steps, as a second line below the run's."""

    def wrap(steps: range, label: str) -> Iterable[int]:
        line = progress.add_task(f"  {label}", total=len(steps))
        for step in steps:
            yield step
            progress.advance(line)
        progress.remove_task(line)

    return wrap


def result_table(rows: Sequence[Mapping[str, Any]], title: str) -> Table:
    """The result as a table: one row per model, one column per tag."""
    table = Table(title=title, title_justify="left")
    table.add_column("model")
    table.add_column("NFE", justify="right")
    table.add_column("overall (95% interval)", justify="right")
    tags = list(rows[0]["tags"]) if rows else []
    for tag in tags:
        table.add_column(tag, justify="right")
    for row in rows:
        low, high = row["ci95"]
        table.add_row(
            row["name"],
            str(row["nfe"]),
            f"{row['overall']:.3f} ({low:.3f}–{high:.3f})",
            *(f"{row['tags'][tag]:.2f}" for tag in tags),
        )
    return table
