"""The part of the command line that measures generators: `evaluate`, `compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tdm_r1 import console, presets
from tdm_r1.cli_records import Iteration, Lora, OptionalRoot
from tdm_r1.errors import ConfigError

Set = Annotated[list[str] | None, typer.Option("--set", help="With --suite: set a knob, such as numerics.device=cuda.")]


def register(app: typer.Typer) -> None:
    """Add these commands."""
    app.command()(evaluate)
    app.command()(compare)


def evaluate(
    root: OptionalRoot = None,
    lora: Lora = None,
    iteration: Iteration = None,
    model: Annotated[str | None, typer.Option(help="With --suite: a diffusers folder, embedded:NAME or hub:….")] = None,
    revision: Annotated[str, typer.Option(help="That pins --model; see `tdm-r1 model`.")] = "",
    suite: Annotated[
        str | None, typer.Option(help="shapes, words, plane, geneval, ocr, drawbench, prompts; or a+b.")
    ] = None,
    prompts: Annotated[
        list[str] | None, typer.Option(help="How many, spread over the tags; or a file: .txt, .csv, .jsonl.")
    ] = None,
    images_per_prompt: Annotated[int | None, typer.Option(min=1, help="The benchmark's own by default.")] = None,
    steps: Annotated[int | None, typer.Option(help="With --suite: other steps than it was trained at.")] = None,
    guidance: Annotated[
        float | None, typer.Option(help="With --suite: w of guidance; 1, the default, is none.")
    ] = None,
    scorer: Annotated[list[str] | None, typer.Option(help="With --suite: one more, NAME or NAME=JSON.")] = None,
    workers: Annotated[int | None, typer.Option(min=0, help="With --suite: scoring processes; one per core.")] = None,
    set_: Set = None,
    shard: Annotated[
        str | None, typer.Option(metavar="I/N", help="With --suite: only this share of the images, I from 0 to N-1.")
    ] = None,
    split: Annotated[str, typer.Option(help="Without --suite: train for prompts that were trained on.")] = "test",
    seed: Annotated[int, typer.Option(min=0, help="Of the noise.")] = 0,
    teacher: Annotated[bool, typer.Option(help="Without --suite: judge the base as well.")] = False,
    out: Annotated[str | None, typer.Option(help="JSON to write; with --suite a folder or s3:// prefix.")] = None,
    page: Annotated[Path | None, typer.Option(help="Without --suite: HTML to write, with the images.")] = None,
) -> None:
    """Judge a generator on held-out prompts: as its run does, or on a suite, by several scorers."""
    count, file = _prompts(prompts)
    if suite is None:
        given: dict[str, Any] = {"model": model, "steps": steps, "guidance": guidance, "scorer": scorer, "set": set_}
        given |= {"workers": workers, "prompts FILE": file, "shard": shard}
        if named := [name for name, value in given.items() if value is not None]:
            raise ConfigError(f"--{named[0]} needs a suite", hint="add --suite shapes, or geneval, ocr, …")
        _as_the_run_does(root, lora, iteration, count or 600, images_per_prompt or 1, split, seed, teacher, out, page)
        return
    if split != "test" or teacher or page is not None:
        raise ConfigError("--split, --teacher and --page go without --suite", hint="for the base, give --model")
    from tdm_r1.runtime.suites.command import Order, evaluate_suite
    from tdm_r1.runtime.suites.evaluation import share_of

    evaluate_suite(
        Order(
            root=root,
            lora=lora,
            iteration=iteration,
            model=model,
            revision=revision,
            suite=suite,
            file=file,
            count=count,
            images=images_per_prompt,
            steps=steps,
            guidance=guidance,
            scorers=tuple(scorer or ()),
            workers=workers,
            overrides=presets.parse_overrides(set_),
            seed=seed,
            out=out,
            share=share_of(shard),
        )
    )


def _prompts(given: list[str] | None) -> tuple[int | None, Path | None]:
    """`--prompts 60` is a number, anything else a file; it may be given once as each."""
    numbers = [int(text) for text in given or () if text.isdecimal()]
    files = [Path(text) for text in given or () if not text.isdecimal()]
    if len(numbers) > 1 or len(files) > 1 or 0 in numbers:
        raise ConfigError(f"--prompts {' --prompts '.join(given or ())}", hint="give one number above 0, and one file")
    return (numbers[0] if numbers else None), (files[0] if files else None)


def _as_the_run_does(
    root: str | None,
    lora: str | None,
    iteration: int | None,
    prompts: int,
    images: int,
    split: str,
    seed: int,
    teacher: bool,
    out: str | None,
    page: Path | None,
) -> None:
    from tdm_r1.runtime.generators import open_generator
    from tdm_r1.runtime.measure import measure, write_json

    generator = open_generator(root, lora, iteration)
    wanted = {"prompts": prompts, "images_per_prompt": images, "split": split}
    section = presets.replace(generator.config.evaluation, wanted)
    content = measure(generator, section, seed=seed, with_teacher=teacher, page=page)
    title = f"{content['generator']}: {content['prompts']} {split} prompts, seed {seed}"
    console.OUT.print(console.result_table(content["rows"], title))
    if out is not None:
        write_json(content, Path(out))


def compare(
    evaluations: Annotated[list[str], typer.Argument(help="Folders of `evaluate --suite`; the first is the baseline.")],
    out: Annotated[str | None, typer.Option(help="Folder for comparison.json, .parquet and .md.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 when a metric parts from the reward.")] = False,
) -> None:
    """Compare evaluations of the same prompts and noise, prompt by prompt, and warn where the reward is hacked."""
    from tdm_r1.runtime.suites.command import compare_evaluations

    if len(evaluations) < 2:
        raise ConfigError("one evaluation has nothing to be compared with", hint="give two or more folders")
    if compare_evaluations(evaluations, out) and strict:
        raise typer.Exit(1)
