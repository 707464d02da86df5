"""From a file that left a run back to the run: a picture of `sample`, or what `export` wrote."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from tdm_r1.artifacts.picture import pixel_digest, read_png
from tdm_r1.artifacts.store import open_store
from tdm_r1.errors import ConfigError
from tdm_r1.runtime.generators import load_generator
from tdm_r1.runtime.layout import RUN_FILE
from tdm_r1.runtime.lineage import Lineage, Released, trace
from tdm_r1.runtime.lora_folder import WEIGHTS_FILE, ExportedLora, diffusers_lora, read_lora
from tdm_r1.runtime.run import Run, open_run
from tdm_r1.runtime.run_file import digest_of, read_config


def trace_file(path: Path, root: str | None) -> tuple[Run, Lineage]:
    """The lineage of the generator that a released file names, with what about the file is not as the run says.

    Args:
        root: of the run; None to take what the file names.

    Raises:
        ConfigError: when it is no such file, or neither it nor `root` names a run.
        CorruptArtifactError: when it cannot be read.
    """
    released, weights = read_released(path)
    place = root or released.root
    if place is None:
        raise ConfigError(
            f"`{path}` does not say where its run lies",
            hint=f"write `tdm-r1 lineage {path} --root RUN` with the run that it came from",
        )
    if released.iteration is None:
        raise ConfigError(
            f"`{path}` does not say which generator it came from",
            hint=f"ask the run itself: `tdm-r1 lineage --root {place}`",
        )
    run = open_run(place)
    lineage = trace(run, iteration=released.iteration)
    faults = (*released.faults, *_against_run(run, released, lineage, weights))
    return run, replace(lineage, released=released, faults=(*faults, *lineage.faults))


def read_released(path: Path) -> tuple[Released, dict[str, Tensor]]:
    """What the file says of itself, and its tensors if it has any."""
    weights = path / WEIGHTS_FILE if path.is_dir() else path
    if not weights.is_file():
        raise ConfigError(f"`{weights}` is not there", hint="give a PNG of `tdm-r1 sample` or a folder of `export`")
    if weights.suffix == ".safetensors":
        exported = read_lora(weights)
        return _lora(weights, exported), exported.tensors
    return _image(path), {}


def _image(path: Path) -> Released:
    picture, stamp = read_png(path)
    if stamp is None:
        raise ConfigError(
            f"`{path}` says nothing about its origin",
            hint="`tdm-r1 sample` writes it into the PNG; programs that save a picture again often drop it",
        )
    drawn = pixel_digest(picture) == stamp.pixels
    about = [f"{stamp.count} images per prompt, seed {stamp.seed}, by tdm-r1 {stamp.code_version}"]
    about += [f"prompt {prompt!r}" for prompt in stamp.prompts]
    fault = f"the pixels of {path} are not those that were drawn: it was changed afterwards"
    return Released(
        path=str(path),
        kind="image",
        root=stamp.run,
        iteration=stamp.iteration,
        record=stamp.record,
        config=stamp.config,
        about=tuple(about),
        faults=() if drawn else (fault,),
    )


def _lora(weights: Path, exported: ExportedLora) -> Released:
    config = None
    if (weights.parent / RUN_FILE).is_file():
        config = digest_of(read_config(open_store(str(weights.parent))).model_dump(mode="json"))
    return Released(
        path=str(weights),
        kind="lora",
        root=None,
        iteration=exported.iteration,
        record=exported.record,
        config=config,
        about=(f"{len(exported.tensors)} tensors, {sum(t.numel() for t in exported.tensors.values()):,} numbers",),
    )


def _against_run(run: Run, released: Released, lineage: Lineage, weights: dict[str, Tensor]) -> Iterator[str]:
    found = next((node.digest for node in lineage.nodes if node.location == lineage.head), None)
    if released.record != found:
        yield f"{released.path} was made from record {released.record}, but at {lineage.head} stands {found}"
    if released.config not in (None, run.config_digest, lineage.config_digest):
        yield f"{released.path} was made with configuration {released.config}, not with that of {run.root}"
    if weights and released.iteration is not None:
        role = diffusers_lora(load_generator(run, released.iteration)[0], run.config.model.adapter)
        different = sorted(
            name for name in role.keys() | weights.keys() if not _equal(role.get(name), weights.get(name))
        )
        if different:
            yield f"{len(different)} tensors of {released.path} are not those of {lineage.head}, first {different[0]}"


def _equal(a: Tensor | None, b: Tensor | None) -> bool:
    return a is not None and b is not None and a.dtype == b.dtype and torch.equal(a, b)
