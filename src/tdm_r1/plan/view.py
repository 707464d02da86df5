"""A plan for people."""

from __future__ import annotations

from rich.table import Table

from tdm_r1 import console
from tdm_r1.plan.limits import Limit
from tdm_r1.plan.planner import Plan


def show(plan: Plan) -> None:
    """Print the tables."""
    console.OUT.print(stage_table(plan))
    for name, value in facts(plan):
        console.OUT.print(f"{name:<22} {value}", soft_wrap=True)
    console.OUT.print()
    console.OUT.print(limit_table(plan))
    for limit in plan.broken:
        console.ERR.print(f"\nerror: {limit.name}: {over(limit)}", soft_wrap=True, markup=False)
        console.ERR.print(f"\nhint: {limit.hint}", soft_wrap=True, markup=False)


def stage_table(plan: Plan) -> Table:
    """One row per stage."""
    table = Table(title=f"{plan.preset} on {plan.profile}; costs: {plan.source}", title_justify="left")
    for header in ("stage", "pool", "tasks", "seconds each", "bytes", "cost"):
        table.add_column(header, justify="left" if header in ("stage", "pool") else "right", no_wrap=True)
    for row in plan.stages:
        cost = "" if row.cost is None else f"{row.cost:.4f}"
        table.add_row(row.stage, row.pool, str(row.tasks), f"{row.seconds:.2f}", size(row.bytes), cost)
    return table


def limit_table(plan: Plan) -> Table:
    """One row per limit."""
    table = Table(title="limits", title_justify="left")
    for header in ("limit", "found", "allowed", "whose", ""):
        table.add_column(header, justify="right" if header in ("found", "allowed") else "left")
    for limit in plan.limits:
        shown = size if limit.name.endswith("bytes") else "{:,.0f}".format
        name = limit.name.removesuffix(", bytes")
        table.add_row(name, shown(limit.found), shown(limit.limit), limit.whose, "over" * limit.broken)
    return table


def over(limit: Limit) -> str:
    """By how much a limit is broken."""
    return f"{limit.found:,.0f}, more than {limit.whose}'s {limit.limit:,.0f}"


def facts(plan: Plan) -> list[tuple[str, str]]:
    """What is no table."""
    makespan = ", ".join(f"{name} {value:,.0f} s" for name, value in plan.block_seconds.items())
    found = [
        ("storage", f"{size(plan.iteration_bytes)} per iteration, {size(plan.run_bytes)} for the run"),
        (
            "scoring",
            f"{plan.enough_scoring_pods} pods keep up with {plan.rollout_pods} rollout pods; planned "
            f"{plan.scoring_pods}, with shards_at_once = {plan.enough_bodies}",
        ),
        (
            f"last block of {plan.block}",
            f"{makespan} ({plan.simulations} simulations, {plan.block_pods:,} pods on KFP)",
        ),
        ("without overhead", f"{plan.ideal_seconds:,.0f} s; starts and failures are {plan.overhead_share:.0%} of p50"),
        ("run", f"{plan.run_hours:.1f} hours, {plan.submissions:.2f} submissions per block"),
    ]
    if plan.iteration_cost is not None and plan.run_cost is not None:
        found.append(("cost", f"{plan.iteration_cost:.3f} per iteration, {plan.run_cost:.2f} for the run"))
    else:
        found.append(("cost", f"not known: profile {plan.profile} has no price_per_hour for a pool"))
    return found


def size(count: float) -> str:
    """`12.3 MiB`."""
    units = ("B", "KiB", "MiB", "GiB", "TiB")
    power = 0
    while count >= 1024 and power + 1 < len(units):
        count, power = count / 1024, power + 1
    return f"{count:.1f} {units[power]}" if power else f"{count:.0f} B"
