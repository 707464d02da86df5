"""The command line: `tdm-r1 stage` is what every orchestrator runs, the rest is for people."""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from tdm_r1 import cli_bases, console, presets
from tdm_r1.config import RunConfig
from tdm_r1.drive.cli import drive
from tdm_r1.errors import ConfigError, TdmR1Error
from tdm_r1.plan.cli import plan
from tdm_r1.presets import parse_overrides
from tdm_r1.runtime.metrics_command import metrics
from tdm_r1.runtime.reward_commands import geneval_app, ocr_app, scorer_app
from tdm_r1.telemetry.options import MetricsPort, PushgatewayUrl

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
config_app = typer.Typer(no_args_is_help=True, help="Presets and their knobs.")
app.add_typer(config_app, name="config")
app.add_typer(scorer_app, name="scorer")
app.add_typer(geneval_app, name="geneval")
app.add_typer(ocr_app, name="ocr")
cli_bases.register(app)
app.command()(drive)
app.command()(plan)
app.command()(metrics)

Root = Annotated[str, typer.Option(help="Run directory: a local folder, or s3://bucket/prefix.")]
OptionalRoot = Annotated[str | None, typer.Option("--root", help="Run directory: a local folder, or s3://….")]
Set = Annotated[list[str] | None, typer.Option("--set", help="Set a knob: a.b=VALUE, VALUE as JSON or a bare word.")]


def _show_version(asked: bool) -> None:
    if asked:
        console.OUT.print(f"tdm-r1 {version('tdm-r1')}")
        raise typer.Exit


@app.callback()
def program(
    version_: Annotated[
        bool, typer.Option("--version", help="Print the version and end.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Options of the program itself."""


@config_app.command("show")
def config_show(preset: str, set_: Set = None) -> None:
    """Print a preset, resolved, as JSON."""
    config = presets.resolve(preset, parse_overrides(set_))
    console.OUT.print(config.model_dump_json(indent=2), soft_wrap=True)


@config_app.command("list")
def config_list() -> None:
    """List the presets."""
    for name, function in presets.PRESETS.items():
        console.OUT.print(f"{name}: {(function.__doc__ or '').splitlines()[0]}", soft_wrap=True)


def _whole(name: str, value: float) -> int:
    """KFP may deliver 3.0 for 3; anything else that is not whole is refused."""
    if not value.is_integer():
        raise ConfigError(f"--{name} is {value}, expected a whole number", hint=f"write --{name} 3")
    return int(value)


@app.command()
def stage(
    name: str,
    root: Root,
    iteration: Annotated[float, typer.Option(help="Iteration; KFP may deliver 3.0.")] = 0,
    offset: Annotated[float, typer.Option(help="Added to the iteration: KFP has no arithmetic.")] = 0,
    shard: Annotated[float, typer.Option(help="Shard of a sharded stage.")] = 0,
    variant: Annotated[str, typer.Option(help="Judge what is committed again, by this variant's reward.")] = "",
    executor_input: Annotated[str, typer.Option(help="KFP's {{$}}: where its UI wants outputs.")] = "",
    metrics_port: MetricsPort = "",
    pushgateway: PushgatewayUrl = "",
) -> None:
    """Execute one stage and commit its record; a committed one is free."""
    from tdm_r1.runtime.command import run_stage
    from tdm_r1.telemetry.outlets import Outlets

    run_stage(
        name,
        root,
        iteration=_whole("iteration", iteration) + _whole("offset", offset),
        shard=_whole("shard", shard),
        variant=variant,
        executor_input=executor_input,
        outlets=Outlets(metrics_port, pushgateway),
    )


@app.command(context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
def launch(context: typer.Context) -> None:
    """Execute a training stage in several processes: torchrun's options, then `stage` and its own (torchrun --help)."""
    from tdm_r1.runtime.launch import launch as launched

    raise typer.Exit(launched(context.args))


@app.command(name="next")
def next_(
    root: Root,
    count: Annotated[float, typer.Option(help="At most so many iterations; KFP may deliver 3.0.")] = 1,
    iteration: Annotated[float | None, typer.Option(help="Ask whether this one may begin.")] = None,
    executor_input: Annotated[str, typer.Option(help="KFP's {{$}}: where its UI wants outputs.")] = "",
    out: Annotated[Path | None, typer.Option(help="File for the first iteration or `none`, as Argo wants it.")] = None,
) -> None:
    """Print the iterations that are not committed yet, or `none`."""
    from tdm_r1.runtime.ahead import next_iterations

    asked = None if iteration is None else _whole("iteration", iteration)
    found = next_iterations(root, count=_whole("count", count), iteration=asked, executor_input=executor_input, out=out)
    console.OUT.print(found, soft_wrap=True)


@app.command()
def variant(
    root: Root,
    name: Annotated[str, typer.Option(help="Folder below variants/.")],
    set_: Set = None,
) -> None:
    """Name another reward, by which `stage reward_scoring` and `stage evaluation` judge committed images again."""
    from tdm_r1.runtime.variants import create_variant

    console.OUT.print(create_variant(root, name, parse_overrides(set_)), soft_wrap=True)


@app.command()
def init(root: Root, preset: str = "shapes_cpu", set_: Set = None) -> None:
    """Write run.json, so that stages can be started elsewhere."""
    from tdm_r1.runtime.run import create_run

    create_run(root, presets.resolve(preset, parse_overrides(set_)))
    console.OUT.print(f"{root}/run.json", soft_wrap=True)


def _config(preset: str | None, pairs: list[str] | None) -> RunConfig | None:
    """The configuration of a new run, or None to resume the run that stands at the root."""
    if preset is None and not pairs:
        return None
    return presets.resolve(preset or "shapes_cpu", parse_overrides(pairs))


@app.command()
def run(
    root: OptionalRoot = None,
    preset: Annotated[str | None, typer.Option(help="Preset of a new run; none resumes the root.")] = None,
    set_: Set = None,
    isolate: Annotated[bool, typer.Option(help="One process per stage, as a cluster does.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan; nothing is done or fetched.")] = False,
    metrics_port: MetricsPort = "",
    pushgateway: PushgatewayUrl = "",
) -> None:
    """Run or resume the whole loop on this machine."""
    from tdm_r1.runtime.command import dry_run as show
    from tdm_r1.runtime.command import run_loop
    from tdm_r1.telemetry.outlets import Outlets

    config = _config(preset, set_)
    if dry_run:
        show(root, config)
    elif root is None:
        raise ConfigError("--root is missing", hint="write --root FOLDER; only --dry-run needs none")
    else:
        run_loop(root, config, isolate=isolate, outlets=Outlets(metrics_port, pushgateway))


@app.command()
def inspect(root: Root) -> None:
    """Show what is committed: per iteration, the stages, rows, bytes and seconds."""
    from tdm_r1.runtime.command import show_run

    show_run(root)


def _one_root(option: str | None, argument: str | None, command: str) -> str:
    """The root, given as an option or as an argument."""
    if (option is None) == (argument is None):
        raise ConfigError("expected one run", hint=f"write `tdm-r1 {command} --root RUN`")
    return option or argument or ""


@app.command()
def audit(
    root: OptionalRoot = None,
    run: Annotated[str | None, typer.Argument(metavar="[ROOT]", help="The same as --root.")] = None,
    replay: Annotated[
        str | None, typer.Option(help="Execute again: N, N/STAGE, N/STAGE/SHARD, prompts or base.")
    ] = None,
    all_: Annotated[bool, typer.Option("--all", help="List every record, not only the faulty ones.")] = False,
    fast: Annotated[bool, typer.Option(help="Hash everything, but load no record.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    threads: Annotated[int | None, typer.Option(min=1, help="One per CPU by default, at most 8.")] = None,
) -> None:
    """Verify every byte and the lineage of a run, or replay a stage of it; exit code 1 when something is wrong."""
    from tdm_r1.runtime.command import audit_run, replay_run

    place = _one_root(root, run, "audit")
    if replay is not None and (all_ or fast or threads):
        raise ConfigError("--replay takes none of --all, --fast, --threads", hint="leave them out")
    if replay is not None:
        clean = replay_run(place, replay, as_json=json_)
    else:
        clean = audit_run(place, load=not fast, threads=threads, all_records=all_, as_json=json_)
    raise typer.Exit(0 if clean else 1)


@app.command()
def report(
    root: Root,
    out: Annotated[Path | None, typer.Option(help="HTML to write; report.html in the root by default.")] = None,
    picture: Annotated[Path | None, typer.Option(help="PNG with the curve and samples, as for a README.")] = None,
) -> None:
    """Write one page about the whole run, finished or not."""
    from tdm_r1.runtime.command import report_run

    report_run(root, out, picture)


Lora = Annotated[str | None, typer.Option(help="Exported generator instead of a run: a folder, or embedded:NAME.")]
Iteration = Annotated[int | None, typer.Option(help="Whose generator; the newest by default, 0 is TDM.")]


@app.command()
def sample(
    prompt: Annotated[list[str], typer.Option(help="A prompt; may be repeated.")],
    root: OptionalRoot = None,
    lora: Lora = None,
    out: Annotated[Path, typer.Option(help="PNG to write.")] = Path("sample.png"),
    iteration: Iteration = None,
    count: Annotated[int, typer.Option(help="Images per prompt.")] = 4,
    seed: int = 0,
) -> None:
    """Sample images from a committed or exported generator into one PNG."""
    from tdm_r1.runtime.generators import open_generator
    from tdm_r1.runtime.release import sample_images

    path = sample_images(open_generator(root, lora, iteration), prompt, out, count=count, seed=seed)
    console.OUT.print(str(path), soft_wrap=True)


@app.command()
def evaluate(
    root: OptionalRoot = None,
    lora: Lora = None,
    iteration: Iteration = None,
    prompts: Annotated[int, typer.Option(help="Prompts, spread over the tags.")] = 600,
    images_per_prompt: int = 1,
    split: Annotated[str, typer.Option(help="test for the held-out prompts, train for the others.")] = "test",
    seed: int = 0,
    teacher: Annotated[bool, typer.Option(help="Judge the base as well.")] = False,
    out: Annotated[Path | None, typer.Option(help="JSON to write.")] = None,
    page: Annotated[Path | None, typer.Option(help="HTML to write, with the images.")] = None,
) -> None:
    """Judge a committed or exported generator on held-out prompts."""
    from tdm_r1.runtime.generators import open_generator
    from tdm_r1.runtime.measure import measure, write_json

    generator = open_generator(root, lora, iteration)
    wanted = {"prompts": prompts, "images_per_prompt": images_per_prompt, "split": split}
    section = presets.replace(generator.config.evaluation, wanted)
    content = measure(generator, section, seed=seed, with_teacher=teacher, page=page)
    title = f"{content['generator']}: {content['prompts']} {split} prompts, seed {seed}"
    console.OUT.print(console.result_table(content["rows"], title))
    if out is not None:
        write_json(content, out)


@app.command()
def export(
    root: Root,
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    iteration: Iteration = None,
    ema_list: Annotated[Path | None, typer.Option(help="Also write the list that the authors' code loads.")] = None,
) -> None:
    """Export a generator as a LoRA that stock diffusers loads, with a model card."""
    from tdm_r1.runtime.release import export_lora

    console.OUT.print(str(export_lora(root, out, iteration=iteration, ema_list=ema_list)), soft_wrap=True)


AsJson = Annotated[bool, typer.Option("--json", help="JSON instead of a table for people.")]


@app.command()
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


@app.command()
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


@app.command()
def prune(
    root: Root,
    keep_last: Annotated[int, typer.Option(min=0, help="Iterations at the end that keep everything.")],
    keep_every: Annotated[int, typer.Option(min=0, help="Iterations that are multiples of this keep everything.")] = 0,
    yes: Annotated[bool, typer.Option("--yes", help="Do it; without, only show what would go.")] = False,
) -> None:
    """Drop trajectories, optimizers and surrogates of old iterations; manifests, tables and generators stay."""
    from tdm_r1.runtime.inspection import prune_run

    prune_run(root, keep_last=keep_last, keep_every=keep_every, yes=yes)


@app.command()
def sweep(
    root: OptionalRoot = None,
    run: Annotated[str | None, typer.Argument(metavar="[ROOT]", help="The same as --root.")] = None,
    older_than: Annotated[str, typer.Option(help="Age that no living writer's file has: 90s, 30m, 24h, 7d.")] = "24h",
    dry_run: Annotated[bool, typer.Option("--dry-run/--yes", help="Only show what would go, or do it.")] = True,
    as_json: AsJson = False,
) -> None:
    """Delete what killed and losing writers left behind, on S3 also unfinished uploads; no reader sees any of it."""
    from tdm_r1.runtime.inspection import sweep_run

    sweep_run(_one_root(root, run, "sweep"), older_than, dry_run=dry_run, as_json=as_json)


@app.command()
def pretrain(
    out: Annotated[Path, typer.Option(help="Pipeline folder to write.")],
    world: str = "shapes",
    seed: int = 0,
    steps: Annotated[int | None, typer.Option(help="Teacher steps instead of the committed weights' own.")] = None,
) -> None:
    """Train an embedded world's base model from scratch."""
    from tdm_r1.pretrain.command import pretrain_world

    pretrain_world(world, out, seed=seed, steps=steps, log=lambda line: console.OUT.print(line, soft_wrap=True))


def main() -> None:
    """Entry point: errors of this project print their hint and exit with their own code."""
    try:
        app()
    except TdmR1Error as error:
        console.fail(error)
        sys.exit(getattr(error, "code", error.exit_code))
    except KeyboardInterrupt:
        print("interrupted: everything committed so far stays; run the same command to go on", file=sys.stderr)
        sys.exit(130)
