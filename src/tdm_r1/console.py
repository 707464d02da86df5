"""What the commands show: tables, progress with the time left, errors with their hints."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from tdm_r1.errors import TdmR1Error

SHORT_TAGS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "single_object": "single",
        "two_object": "two",
        "counting": "count",
        "colors": "color",
        "position": "pos",
        "color_attr": "attr",
    }
)
"""Headers that fit."""

OUT = Console(highlight=False)
ERR = Console(stderr=True, highlight=False)


def end_rank(code: int) -> None:
    """End one of several processes at once, before the interpreter takes down threads of torch.

    Under load that aborted a rank (SIGABRT) whose work was done and committed. A process that torchrun did not start
    goes on.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def fail(error: TdmR1Error) -> None:
    """Print an error as `error: …`, blank line, `hint: …` to stderr."""
    print(f"error: {error}", file=sys.stderr)


def warn(text: str) -> None:
    """Print one line to stderr."""
    print(printable(text), file=sys.stderr)


def printable(text: str) -> str:
    """`text` with every character that a terminal would act upon written as an escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


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
    """The result as a table of at most 80 columns: one row per model, one column per tag."""
    table = Table(
        title=title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), pad_edge=False
    )
    table.add_column("model", no_wrap=True)
    tags = list(rows[0]["tags"]) if rows else []
    for header in ("NFE", "overall", "95% interval", *(SHORT_TAGS.get(tag, tag) for tag in tags)):
        table.add_column(header, justify="right", no_wrap=True)
    for row in rows:
        low, high = row["ci95"]
        values = [f"{row['tags'][tag]:.2f}" for tag in tags]
        table.add_row(row["name"], str(row["nfe"]), f"{row['overall']:.3f}", f"{low:.3f}–{high:.3f}", *values)
    return table
