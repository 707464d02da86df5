"""The command line: `tdm-r1 stage` is what every orchestrator runs, the rest is for people."""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from tdm_r1 import cli_bases, cli_evaluate, cli_feedback, cli_records, console, presets
from tdm_r1.cli_records import Iteration, Lora, OptionalRoot, Root
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
def extend(
    root: Root,
    iterations: Annotated[int, typer.Option(help="The new length; more than the run has.")],
) -> None:
    """Make a run longer: nothing committed changes, and `run`, `drive` and a pipeline go on from where it ends."""
    from tdm_r1.runtime.extension import extend_run

    config = extend_run(root, iterations)
    console.OUT.print(f"{root}: {config.iterations} iterations; go on with `tdm-r1 run --root {root}`", soft_wrap=True)


@app.command()
def init(root: Root, preset: str = "shapes_cpu", set_: Set = None) -> None:
    """Write run.json, so that stages can be started elsewhere."""
    from tdm_r1.artifacts.store import open_store
    from tdm_r1.runtime.run import write_run

    write_run(open_store(root), presets.resolve(preset, parse_overrides(set_)))
    console.OUT.print(f"{root}/run.json", soft_wrap=True)


def _config(
    preset: str | None, pairs: list[str] | None, memory_gb: float | None = None, processes: int = 1
) -> RunConfig | None:
    """The configuration of a new run, or None to resume the run that stands at the root."""
    if preset is None and not pairs:
        if memory_gb is not None:
            raise ConfigError("--memory-gb is for a new run", hint="its run.json says which microbatches it has")
        return None
    config = presets.resolve(preset or "shapes_cpu", parse_overrides(pairs))
    if memory_gb is None:
        return config
    from tdm_r1.plan.fit import fitted

    return fitted(config, memory_gb, processes)


@app.command()
def run(
    root: OptionalRoot = None,
    preset: Annotated[str | None, typer.Option(help="Preset of a new run; none resumes the root.")] = None,
    set_: Set = None,
    isolate: Annotated[bool, typer.Option(help="One process per stage, as a cluster does.")] = False,
    memory_gb: Annotated[float | None, typer.Option(help="Of a new run: pick microbatches that fit.")] = None,
    processes: Annotated[int, typer.Option(min=1, help="With --memory-gb: of a training stage.")] = 1,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan; nothing is done or fetched.")] = False,
    metrics_port: MetricsPort = "",
    pushgateway: PushgatewayUrl = "",
) -> None:
    """Run or resume the whole loop on this machine."""
    from tdm_r1.runtime.command import dry_run as show
    from tdm_r1.runtime.command import run_loop
    from tdm_r1.telemetry.outlets import Outlets

    config = _config(preset, set_, memory_gb, processes)
    if dry_run:
        show(root, config)
    elif root is None:
        raise ConfigError("--root is missing", hint="write --root FOLDER; only --dry-run needs none")
    else:
        run_loop(root, config, isolate=isolate, outlets=Outlets(metrics_port, pushgateway))


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
def export(
    root: Root,
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    iteration: Iteration = None,
    ema_list: Annotated[Path | None, typer.Option(help="Also write the list that the authors' code loads.")] = None,
) -> None:
    """Export a generator as a LoRA that stock diffusers loads, with a model card."""
    from tdm_r1.runtime.release import export_lora

    console.OUT.print(str(export_lora(root, out, iteration=iteration, ema_list=ema_list)), soft_wrap=True)


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


cli_records.register(app)
cli_evaluate.register(app)
cli_bases.register(app)
cli_feedback.register(app)
app.command()(drive)
app.command()(plan)
app.command()(metrics)


def main() -> None:
    """Entry point: errors of this project print their hint and exit with their own code."""
    try:
        app()
    except SystemExit as end:
        console.end_rank(end.code if isinstance(end.code, int) else int(end.code is not None))
        raise
    except TdmR1Error as error:
        console.fail(error)
        sys.exit(getattr(error, "code", error.exit_code))
    except KeyboardInterrupt:
        print("interrupted: everything committed so far stays; run the same command to go on", file=sys.stderr)
        sys.exit(130)
