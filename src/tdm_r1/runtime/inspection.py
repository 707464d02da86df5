"""What the commands `inspect`, `audit`, `query`, `lineage`, `prune` and `sweep` print. None of them needs torch."""

from __future__ import annotations

import csv
import json
import math
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from rich.table import Table
from rich.text import Text

from tdm_r1 import console
from tdm_r1.artifacts.repository import read_manifest
from tdm_r1.runtime import audit_report, lineage_view
from tdm_r1.runtime.archive import Archive, open_archive
from tdm_r1.runtime.audit import audit
from tdm_r1.runtime.layout import VARIANTS, all_tasks, variant_tasks
from tdm_r1.runtime.lineage import trace
from tdm_r1.runtime.openlineage import write_events
from tdm_r1.runtime.prune import Retention, plan_prune, prune
from tdm_r1.runtime.query import Answer, query, view_columns
from tdm_r1.runtime.sweep import SweepPlan, parse_age, plan_sweep, sweep
from tdm_r1.runtime.variants import listed_variants

Form = Literal["table", "json", "csv"]


def show_run(root: str) -> None:
    """One line per committed record."""
    run = open_archive(root)
    table = Table(title=f"{root}: {run.config.preset}, seed {run.config.seed}", title_justify="left")
    for column in ("record", "rows", "bytes", "seconds", "digest"):
        table.add_column(column, justify="left" if column in ("record", "digest") else "right")
    tasks = all_tasks(run.config)
    again = [task for name in listed_variants(run.store.list(VARIANTS)) for task in variant_tasks(name, run.config)]
    committed = 0
    for task in [*tasks, *again]:
        manifest = read_manifest(run.store, task.location)
        if manifest is None:
            continue
        committed += not task.variant
        rows = max((entry.rows or 0 for entry in manifest.files.values()), default=0)
        size = sum(entry.size for entry in manifest.files.values())
        table.add_row(task.location, str(rows), f"{size:,}", f"{manifest.provenance.seconds:.2f}", manifest.digest[:16])
    console.OUT.print(table)
    console.OUT.print(f"{committed} of {len(tasks)} records committed" + (", STOP is set" if run.stopped else ""))


def audit_run(root: str, *, load: bool, pixels: bool, threads: int | None, all_records: bool, as_json: bool) -> bool:
    """Print what an audit found; True when nothing is wrong."""
    report = audit(root, load=load, pixels=pixels, threads=threads)
    if as_json:
        print(audit_report.as_json(report))
    else:
        audit_report.show(report, all_records=all_records)
    return report.clean


def query_run(root: str, sql: str, *, form: Form) -> None:
    """Print the answer to `sql`; without any, the views and their columns."""
    run = open_archive(root)
    if not sql.strip():
        rows = tuple((name, ", ".join(columns)) for name, columns in view_columns().items())
        answer = Answer(("view", "columns"), rows, ())
    else:
        answer = query(run, sql)
    for location in answer.pruned:
        console.ERR.print(f"left out {location}: it was pruned", soft_wrap=True)
    if form == "json":
        rows_json = [dict(zip(answer.columns, map(plain, row), strict=True)) for row in answer.rows]
        print(json.dumps(rows_json, indent=1, ensure_ascii=False, allow_nan=False))
    elif form == "csv":
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerows([answer.columns, *answer.rows])
    else:
        console.OUT.print(answer_table(answer))


def lineage_run(
    root: str | None,
    file: Path | None,
    iteration: int | None,
    sample_id: str | None,
    *,
    full: bool,
    as_json: bool,
    events: Path | None,
) -> bool:
    """Print a lineage, and write its events if asked; False when something is not as a manifest says."""
    run: Archive
    if file is not None:
        from tdm_r1.runtime.released import trace_file  # compares tensors

        run, lineage = trace_file(file, root)
    else:
        run = open_archive(root or "")
        lineage = trace(run, iteration=iteration, sample_id=sample_id)
    if as_json:
        print(json.dumps(lineage_view.as_json(lineage), indent=1, ensure_ascii=False))
    else:
        console.OUT.print(lineage_view.as_tree(lineage, run.config, full=full))
    if events is not None:
        count = write_events(lineage, events)
        console.ERR.print(f"{count} OpenLineage events  {events}", soft_wrap=True)
    return not lineage.faults


def answer_table(answer: Answer) -> Table:
    """The answer for people; numbers to the right, and no control character reaches the terminal."""
    table = Table(show_lines=False)
    for number, name in enumerate(answer.columns):
        numeric = any(isinstance(row[number], int | float) for row in answer.rows)
        table.add_column(Text(console.printable(name)), justify="right" if numeric else "left", overflow="fold")
    for row in answer.rows:
        table.add_row(*(Text("" if value is None else console.printable(str(value))) for value in row))
    return table


def plain(value: Any) -> Any:
    """A value as JSON has it; NaN and infinities become null, what JSON does not know a string."""
    if isinstance(value, dict):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def prune_run(root: str, *, keep_last: int, keep_every: int, yes: bool) -> None:
    """Show what a retention rule drops, and with `yes` drop it."""
    run = open_archive(root)
    plan = plan_prune(run, Retention(keep_last, keep_every))
    table = Table(title=f"{root}: prune {plan.rule}, newest iteration {plan.newest}", title_justify="left")
    for column in ("record", "files", "bytes"):
        table.add_column(column, justify="right" if column == "bytes" else "left")
    for drop in plan.drops:
        table.add_row(drop.location, ", ".join(drop.names), f"{drop.size:,}")
    console.OUT.print(table)
    for location in plan.needed:
        console.OUT.print(f"kept {location}: a later iteration reads it", soft_wrap=True)
    if yes:
        prune(run, plan)
    files = sum(len(drop.names) for drop in plan.drops)
    done = "dropped" if yes else "would be dropped; nothing was changed, repeat with --yes to do it:"
    console.OUT.print(f"{done} {files} files of {len(plan.drops)} records, {plan.size:,} bytes", soft_wrap=True)


def sweep_run(root: str, older_than: str, *, dry_run: bool, as_json: bool) -> None:
    """Show what dead and losing writers left behind, and unless it is a dry run delete it."""
    plan = plan_sweep(root, parse_age(older_than))
    gone = 0 if dry_run else sweep(root, plan)
    if as_json:
        print(json.dumps({**asdict(plan), "size": plan.size, "deleted": gone}, indent=1))
        return
    console.OUT.print(sweep_table(root, plan))
    for location in plan.unreadable:
        console.OUT.print(f"left alone {location}: its manifest cannot be read", soft_wrap=True)
    if plan.young:
        console.OUT.print(f"kept {len(plan.young)} that are not older than {older_than}", soft_wrap=True)
    count = len(plan.doomed)
    done = "would be deleted; nothing was changed, repeat with --yes to do it:" if dry_run else f"{gone} deleted of"
    console.OUT.print(f"{done} {count} leftovers, {plan.size:,} bytes", soft_wrap=True)


def sweep_table(root: str, plan: SweepPlan) -> Table:
    """One line per leftover that is old enough."""
    table = Table(title=Text(f"{root}: sweep, older than {plan.older_than:,.0f} s"), title_justify="left")
    for column in ("leftover", "why", "hours", "bytes"):
        table.add_column(column, justify="right" if column in ("hours", "bytes") else "left", overflow="fold")
    for leftover in plan.doomed:
        entry = leftover.entry
        table.add_row(Text(console.printable(entry.key)), leftover.why, f"{entry.age / 3600:,.1f}", f"{entry.size:,}")
    return table
