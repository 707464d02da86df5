"""The part of the command line about bases and adapters: `model`, `import-lora`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tdm_r1 import console, presets


def register(app: typer.Typer) -> None:
    """Add these commands."""
    app.command()(model)
    app.command(name="import-lora")(import_lora)


def model(
    source: Annotated[str, typer.Argument(help="A folder, embedded:NAME, hub:OWNER/NAME or s3://BUCKET/PREFIX.")],
    revision: Annotated[str, typer.Option(help="Commit of a hub source, or sha256:… of any other.")] = "",
) -> None:
    """Show what a base is: its parts, its licence, and the revision that pins it."""
    from tdm_r1.runtime.bases import show_base

    show_base(source, revision)


def import_lora(
    path: Annotated[Path, typer.Argument(help="Safetensors of diffusers or peft, or the authors' .ckpt; or a folder.")],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    preset: Annotated[str, typer.Option(help="Preset whose base, layers and rank the adapter has.")],
    set_: Annotated[list[str] | None, typer.Option("--set", help="Set a knob of the preset.")] = None,
    alpha: Annotated[float | None, typer.Option(help="LoRA alpha, when the file does not say.")] = None,
) -> None:
    """Make an adapter of another program one of ours, to start a run from or to sample."""
    from tdm_r1.runtime.import_lora import import_lora as convert

    digest = convert(path, out, presets.resolve(preset, presets.parse_overrides(set_)), alpha=alpha)
    pin = f"--set distill.adapter={out} --set distill.adapter_revision={digest} --set distill.steps=0"
    console.OUT.print(pin, soft_wrap=True)
