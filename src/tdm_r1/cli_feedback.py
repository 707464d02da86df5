"""The part of the command line by which people judge: the page, files of votes, and what was said so far."""

from __future__ import annotations

import getpass
from pathlib import Path
from typing import Annotated

import typer

from tdm_r1 import console
from tdm_r1.cli_records import OptionalRoot, Root, one_root

feedback_app = typer.Typer(no_args_is_help=True, help="What people say of images.")

Iteration = Annotated[int | None, typer.Option(help="Whose images; by default the newest that is rolled out.")]
Variant = Annotated[str, typer.Option(help="For this variant's reward instead of the run's.")]


def register(app: typer.Typer) -> None:
    """Add these commands."""
    app.add_typer(feedback_app, name="feedback")
    app.command()(label)


@feedback_app.command("import")
def feedback_import(
    file: Annotated[Path, typer.Argument(help="Likes, pairs or clicks: .parquet, .csv or .jsonl.")],
    root: Root,
    iteration: Iteration = None,
    variant: Variant = "",
    skip_unknown: Annotated[
        bool, typer.Option("--skip-unknown", help="Leave out votes on samples that are not of this iteration.")
    ] = False,
) -> None:
    """Bring a file of votes; the same one again changes nothing."""
    from tdm_r1.runtime.feedback_votes import import_votes, open_election

    done = import_votes(open_election(root, iteration, variant), file, skip_unknown=skip_unknown)
    console.OUT.print(done, soft_wrap=True, markup=False)


@feedback_app.command("show")
def feedback_show(root: Root, iteration: Iteration = None, variant: Variant = "") -> None:
    """Count what was said of an iteration so far, and why some of it does not count."""
    from tdm_r1.runtime.feedback_votes import open_election, summary

    election = open_election(root, iteration, variant)
    console.OUT.print(f"iteration {election.iteration}", soft_wrap=True)
    for name, count in summary(election).items():
        console.OUT.print(f"  {name}: {count:,}", soft_wrap=True)


def label(
    root: OptionalRoot = None,
    run: Annotated[str | None, typer.Argument(metavar="[ROOT]", help="The same as --root.")] = None,
    iteration: Iteration = None,
    variant: Variant = "",
    rater: Annotated[
        list[str] | None, typer.Option(help="Who judges; may be repeated, and each gets an address. Default: you.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 0,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="Further name by which browsers may reach it, as NAME or NAME:PORT.")
    ] = None,
) -> None:
    """Show an iteration's images on a page of this machine, and record what people say of them."""
    from tdm_r1.label.server import serve
    from tdm_r1.runtime.feedback_votes import open_election

    election = open_election(one_root(root, run, "label"), iteration, variant)
    serve(
        election,
        rater or [getpass.getuser()],
        host=host,
        port=port,
        allowed=allow_host or [],
        say=lambda line: console.OUT.print(line, soft_wrap=True, markup=False, highlight=False),
    )
