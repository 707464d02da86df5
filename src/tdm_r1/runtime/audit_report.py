"""An audit for people, as tables and lists, and for programs, as JSON."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table

from tdm_r1 import console
from tdm_r1.runtime.audit_faults import KINDS, AuditReport, Fault, RecordAudit
from tdm_r1.runtime.layout import FEEDBACK, ONCE, STAGES

if TYPE_CHECKING:
    from tdm_r1.runtime.replay import Replayed

SHORT = {
    **dict(zip(STAGES, ("prompts", "base", "rollout", "score", "surrogate", "generator", "eval"), strict=True)),
    FEEDBACK: "feedback",
}
"""Names that fit."""


def show(report: AuditReport, *, all_records: bool = False) -> None:
    """Print one line per iteration and the faulty records, or every record; then the faults by class and the totals."""
    console.OUT.print(iteration_table(report))
    listed = [record for record in report.records if all_records or record.faults]
    if listed:
        console.OUT.print(record_table(listed))
    for kind, title in KINDS.items():
        if found := [fault for fault in (*report.faults, *report.notes) if fault.kind == kind]:
            console.OUT.print(f"\n{kind}: {title}", soft_wrap=True, markup=False)
            for fault in found:
                console.OUT.print(printable(fault), soft_wrap=True, markup=False)
    console.OUT.print(totals(report), soft_wrap=True)


def new_table(**columns: str) -> Table:
    """A narrow table; each column's justification by its header."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), pad_edge=False)
    for header, justify in columns.items():
        wraps = header in ("stages", "record")
        table.add_column(header, justify="right" if justify == "right" else "left", overflow="fold", no_wrap=not wraps)
    return table


def iteration_table(report: AuditReport) -> Table:
    """One line per iteration with its stages."""
    table = new_table(iter="right", stages="left", rows="right", MB="right", seconds="right", verdict="left")
    groups: dict[str, list[RecordAudit]] = {}
    for record in report.records:
        groups.setdefault("once" if record.task.stage in ONCE else str(record.task.iteration), []).append(record)
    for name, records in groups.items():
        count = Counter(SHORT[record.task.stage] for record in records)
        stages = " ".join(f"{stage}×{n}" if n > 1 else stage for stage, n in count.items())
        rows, _, seconds = figures(records)
        size = f"{sum(record.bytes for record in records) / 1e6:,.1f}"
        table.add_row(name, stages, rows, size, seconds, verdict(records))
    return table


def record_table(records: Sequence[RecordAudit]) -> Table:
    """One line per record."""
    table = new_table(record="left", rows="right", bytes="right", s="right", digest="left", verdict="left")
    for record in records:
        table.add_row(record.task.location, *figures([record]), record.digest[:12], verdict([record]))
    return table


def figures(records: Sequence[RecordAudit]) -> tuple[str, str, str]:
    """Rows, bytes and seconds, added up."""
    rows, size = sum(record.rows for record in records), sum(record.bytes for record in records)
    return f"{rows:,}", f"{size:,}", f"{sum(record.seconds for record in records):.1f}"


def verdict(records: Sequence[RecordAudit]) -> str:
    """Of a record or an iteration; the faults themselves are listed below the tables."""
    if any(record.faults for record in records):
        return "[red]fault[/red]"
    return "[green]ok[/green]" + (", pruned" if any(record.pruned for record in records) else "")


def printable(fault: Fault) -> str:
    """Location, what was found and what was expected, without control characters."""
    text = f"  {fault.location}: found {fault.found}; expected {fault.expected}"
    return "".join(char if char.isprintable() else "�" for char in text)


def totals(report: AuditReport) -> str:
    """The last line."""
    speed = report.bytes / 1e6 / max(report.seconds, 1e-9)
    classes = len({fault.kind for fault in report.faults})
    outcome = "clean" if report.clean else f"{len(report.faults)} faults in {classes} classes"
    notes = f", {len(report.notes)} unfinished writes" if report.notes else ""
    loaded = "hashed and loaded with all pixels" if report.pixels else "hashed and loaded"
    how = loaded if report.loaded else "hashed"
    return (
        f"{len(report.records)} of {report.total or '?'} records, {report.bytes:,} bytes {how} in "
        f"{report.seconds:.2f} s ({speed:,.0f} MB/s, {report.threads} threads): {outcome}{notes}"
    )


def as_json(report: AuditReport) -> str:
    """The whole report; every record has its `location` and `verdict`."""
    content = dataclasses.asdict(report) | {
        "clean": report.clean,
        "bytes": report.bytes,
        "faults": [dataclasses.asdict(fault) for fault in report.faults],
        "notes": [dataclasses.asdict(fault) for fault in report.notes],
        "records": [
            dataclasses.asdict(record) | {"location": record.task.location, "verdict": record.verdict}
            for record in report.records
        ],
    }
    del content["beside"]
    return json.dumps(content, indent=2)


def show_replays(found: Sequence[Replayed]) -> None:
    """Print a verdict per record; where one differs, the first difference with that of the environment below it."""
    for record in found:
        word = "[green]identical[/green]" if record.identical else "[red]different[/red]"
        digests = record.recorded[:12] if record.identical else f"{record.recorded[:12]} → {record.replayed[:12]}"
        console.OUT.print(f"{record.location}  {word}  {digests}  {record.seconds:.2f} s", soft_wrap=True)
        if record.difference is not None:
            largest = record.difference.largest
            by = "" if largest is None else f"; largest difference {largest:.3g}"
            console.OUT.print(f"  {record.difference.where}", soft_wrap=True, markup=False)
            sides = f"  recorded {record.difference.recorded}, replayed {record.difference.replayed}{by}"
            console.OUT.print(sides, soft_wrap=True, markup=False)
        if not record.identical and not record.environment:
            console.OUT.print("  the recorded environment is that of now", soft_wrap=True)
        for item in record.environment:
            console.OUT.print(f"  {item.name}: recorded {item.recorded}, now {item.now}", soft_wrap=True, markup=False)
    same = sum(record.identical for record in found)
    console.OUT.print(f"{same} of {len(found)} replayed records identical", soft_wrap=True)


def replays_as_json(found: Sequence[Replayed]) -> str:
    return json.dumps([dataclasses.asdict(record) | {"identical": record.identical} for record in found], indent=2)
