"""The command `run --dry-run`: the plan, for people."""

from __future__ import annotations

from rich.table import Table

from tdm_r1 import console
from tdm_r1.config import RunConfig
from tdm_r1.runtime.dry_run import Plan, plan


def show_plan(config: RunConfig) -> None:
    """Print what a run would do, store and fetch; nothing of it is done."""
    found = plan(config)
    console.OUT.print(_stages(config, found))
    for world, (training, held_out, scorers) in found.prompts.items():
        judged = f"judged by {', '.join(scorers)}"
        console.OUT.print(
            f"prompts of {world}: {training:,} to train on, {held_out:,} held out, {judged}", soft_wrap=True
        )
    for title, numbers in (
        ("images", found.images),
        ("optimizer steps", found.optimizer_steps),
        ("parameters", found.parameters),
    ):
        line = ", ".join(f"{name} {number:,}" for name, number in numbers.items())
        console.OUT.print(f"{title}: {line}", soft_wrap=True)
    console.OUT.print(f"stored in all: {size(found.total_bytes)} before compression and pruning", soft_wrap=True)
    rows = {
        "decoder": config.model.decode_batch,
        "rollout": config.rollout.microbatch,
        "surrogate": config.surrogate.microbatch_groups * config.rollout.group_size,
        "generator": config.generator.microbatch,
    }
    line = ", ".join(f"{name} {count:,}" for name, count in rows.items())
    console.OUT.print(f"rows of one call, at most: {line}", soft_wrap=True)
    if found.download == 0:
        fetched = "nothing, the base is here"
    else:
        about = "of unknown size" if found.download is None else f"about {size(found.download)}"
        fetched = f"{config.model.source} at {config.model.revision}, {about}"
    console.OUT.print(f"to download: {fetched}", soft_wrap=True)
    if config.distill.adapter:
        console.OUT.print(f"starts from: {config.distill.adapter}", soft_wrap=True)


def _stages(config: RunConfig, found: Plan) -> Table:
    title = f"{config.preset}: {config.iterations} iterations, {config.sampler.steps} NFE"
    table = Table(title=title, title_justify="left")
    table.add_column("stage")
    for column in ("times", "bytes each", "bytes in all"):
        table.add_column(column, justify="right")
    for stage, count in found.tasks.items():
        each = found.stored.get(stage)
        cells = ("tables", "tables") if each is None else (size(each), size(each * count))
        table.add_row(stage, f"{count:,}", *cells)
    return table


def size(count: int) -> str:
    """Bytes in units of a thousand."""
    value, units = float(count), ["B", "kB", "MB", "GB", "TB", "PB"]
    while value >= 1000 and len(units) > 1:
        value /= 1000
        units.pop(0)
    return f"{value:.3g} {units[0]}" if value < 1000 else f"{value:.0f} {units[0]}"
