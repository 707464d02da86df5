"""The part of the command line that looks at a run, and keeps it small: nothing here computes or changes a record."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tdm_r1.errors import ConfigError

Root = Annotated[str, typer.Option(help="Run directory: a local folder, or s3://bucket/prefix.")]
OptionalRoot = Annotated[str | None, typer.Option("--root", help="Run directory: a local folder, or s3://….")]
Lora = Annotated[str | None, typer.Option(help="Exported generator instead of a run: a folder, or embedded:NAME.")]
Iteration = Annotated[int | None, typer.Option(help="Whose generator; the newest by default, 0 is TDM.")]
AsJson = Annotated[bool, typer.Option("--json", help="JSON instead of a table for people.")]


def register(app: typer.Typer) -> None:
    """Add these commands."""
    for command in (inspect, audit, report, query, lineage, prune, sweep):
        app.command()(command)


def inspect(root: Root) -> None:
    """Show what is committed: per iteration, the stages, rows, bytes and seconds."""
    from tdm_r1.runtime.inspection import show_run

    show_run(root)


def one_root(option: str | None, argument: str | None, command: str) -> str:
    """The root, given as an option or as an argument."""
    if (option is None) == (argument is None):
        raise ConfigError("expected one run", hint=f"write `tdm-r1 {command} --root RUN`")
    return option or argument or ""


def audit(
    root: OptionalRoot = None,
    run: Annotated[str | None, typer.Argument(metavar="[ROOT]", help="The same as --root.")] = None,
    replay: Annotated[
        str | None, typer.Option(help="Execute again: N, N/STAGE, N/STAGE/SHARD, prompts or base.")
    ] = None,
    all_: Annotated[bool, typer.Option("--all", help="List every record, not only the faulty ones.")] = False,
    fast: Annotated[bool, typer.Option(help="Hash everything, but load no record.")] = False,
    pixels: Annotated[bool, typer.Option("--pixels", help="Also decompress every picture.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    threads: Annotated[int | None, typer.Option(min=1, help="One per CPU by default, at most 8.")] = None,
) -> None:
    """Verify every byte and the lineage of a run, or replay a stage of it; exit code 1 when something is wrong."""
    place = one_root(root, run, "audit")
    if replay is not None and (all_ or fast or pixels or threads):
        raise ConfigError("--replay takes none of --all, --fast, --pixels, --threads", hint="leave them out")
    if fast and pixels:
        raise ConfigError("--fast and --pixels were both given", hint="--fast loads no record: leave one of them out")
    if replay is not None:
        from tdm_r1.runtime.command import replay_run

        clean = replay_run(place, replay, as_json=json_)
    else:
        from tdm_r1.runtime.inspection import audit_run

        clean = audit_run(place, load=not fast, pixels=pixels, threads=threads, all_records=all_, as_json=json_)
    raise typer.Exit(0 if clean else 1)


def report(
    root: Root,
    out: Annotated[Path | None, typer.Option(help="HTML to write; report.html in the root by default.")] = None,
    picture: Annotated[Path | None, typer.Option(help="PNG with the curve and samples, as for a README.")] = None,
) -> None:
    """Write one page about the whole run, finished or not."""
    from tdm_r1.runtime.command import report_run

    report_run(root, out, picture)


def query(
    root: Root,
    sql: Annotated[str, typer.Argument(help="One SELECT; without any, the views are listed.")] = "",
    as_json: AsJson = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="CSV instead of a table for people.")] = False,
) -> None:
    """Ask the run's tables in SQL (DuckDB, read only): prompts, rollouts, rewards, advantages, metrics, …"""
    from tdm_r1.runtime.inspection import query_run

    if as_json and as_csv:
        raise ConfigError("--json and --csv were both given", hint="leave one of them out")
    query_run(root, sql, form="json" if as_json else "csv" if as_csv else "table")


def lineage(
    file: Annotated[
        Path | None, typer.Argument(help="A PNG of `sample`, or an exported folder or .safetensors, instead.")
    ] = None,
    root: OptionalRoot = None,
    iteration: Annotated[int | None, typer.Option(help="Whose generator (newest by default), or sample.")] = None,
    sample: Annotated[str | None, typer.Option(help="A rollout's sample_id instead of a generator.")] = None,
    full: Annotated[bool, typer.Option("--full", help="Every iteration, and every parent.")] = False,
    as_json: AsJson = False,
    openlineage: Annotated[Path | None, typer.Option(help="OpenLineage events to write, one per line.")] = None,
) -> None:
    """Trace a generator, a sample or a released file back to prompts, rewards, base weights and code; 1 on a fault."""
    from tdm_r1.runtime.inspection import lineage_run

    if root is None and file is None:
        raise ConfigError("expected a run or a released file", hint="write `tdm-r1 lineage --root RUN`")
    if file is not None and (iteration is not None or sample is not None):
        raise ConfigError("a file says itself which generator made it", hint="leave --iteration and --sample out")
    if not lineage_run(root, file, iteration, sample, full=full, as_json=as_json, events=openlineage):
        raise typer.Exit(1)


def prune(
    root: Root,
    keep_last: Annotated[int, typer.Option(min=0, help="Iterations at the end that keep everything.")],
    keep_every: Annotated[int, typer.Option(min=0, help="Iterations that are multiples of this keep everything.")] = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run/--yes", help="Only show what would go, or do it.")] = True,
) -> None:
    """Drop trajectories, optimizers and surrogates of old iterations; manifests, tables and generators stay."""
    from tdm_r1.runtime.inspection import prune_run

    prune_run(root, keep_last=keep_last, keep_every=keep_every, yes=not dry_run)


def sweep(
    root: OptionalRoot = None,
    run: Annotated[str | None, typer.Argument(metavar="[ROOT]", help="The same as --root.")] = None,
    older_than: Annotated[str, typer.Option(help="Age that no living writer's file has: 90s, 30m, 24h, 7d.")] = "24h",
    dry_run: Annotated[bool, typer.Option("--dry-run/--yes", help="Only show what would go, or do it.")] = True,
    as_json: AsJson = False,
) -> None:
    """Delete what killed and losing writers left behind, on S3 also unfinished uploads; no reader sees any of it."""
    from tdm_r1.runtime.inspection import sweep_run

    sweep_run(one_root(root, run, "sweep"), older_than, dry_run=dry_run, as_json=as_json)
