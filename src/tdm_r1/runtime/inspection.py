"""What the commands `query`, `lineage` and `prune` print."""

from __future__ import annotations

from rich.table import Table

from tdm_r1 import console
from tdm_r1.runtime.prune import Retention, plan_prune, prune
from tdm_r1.runtime.run import open_run


def prune_run(root: str, *, keep_last: int, keep_every: int, yes: bool) -> None:
    """Show what a retention rule drops, and with `yes` drop it."""
    run = open_run(root)
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
