"""What leaves a run: pictures of a committed generator, and the generator itself in the format of stock diffusers."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tdm_r1.artifacts.manifest import Manifest, sha256_of
from tdm_r1.artifacts.picture import Stamp, pixel_digest, write_png
from tdm_r1.artifacts.records import Evaluation, PromptSet
from tdm_r1.artifacts.repository import read_manifest
from tdm_r1.config import RunConfig, SamplerConfig
from tdm_r1.errors import ConfigError
from tdm_r1.models.adapters import Adapter, RoleTensors
from tdm_r1.models.backbone import Condition
from tdm_r1.models.lora_files import LIST_KEY, list_of
from tdm_r1.models.open import BACKBONES, pipeline_backbone
from tdm_r1.models.sampler import trajectory
from tdm_r1.report.card import Card, model_card
from tdm_r1.report.sheet import contact_sheet
from tdm_r1.rng import Keys
from tdm_r1.runtime.archive import newest_generator
from tdm_r1.runtime.generators import Generator, generator_name, load_generator
from tdm_r1.runtime.layout import Task, evaluation_due, generator_after
from tdm_r1.runtime.lora_folder import write_folder
from tdm_r1.runtime.results import gain_of, remarks, rows_of
from tdm_r1.runtime.run import Run, open_run
from tdm_r1.sampling import sigma_grid, unshift
from tdm_r1.statistics import OVERALL

AUTHORS_SCALE = 2.0
"""α/r of rank 32 and α 64, with which the authors' code reads a list [code]."""


def sample_images(generator: Generator, prompts: Sequence[str], out: Path, *, count: int, seed: int) -> Path:
    """Sample `count` images per prompt into one labelled PNG that carries where it comes from.

    The noise of an image depends on the seed, its prompt and its number alone: two iterations of one
    run, sampled with the same seed, start from the same noise.

    Returns:
        The path written, `out`.
    """
    if count < 1 or not prompts:
        raise ConfigError(f"nothing to sample: {len(prompts)} prompts, {count} images each", hint="give --count 1")
    images = _draw(generator, prompts, count=count, keys=Keys(seed, 0))
    rows = [(prompt, list(images[row * count : (row + 1) * count])) for row, prompt in enumerate(prompts)]
    title = f"{generator.name}, {generator.origin}, {generator.config.sampler.steps} NFE, seed {seed}"
    out.parent.mkdir(parents=True, exist_ok=True)
    sheet = contact_sheet(rows, title)
    stamp = Stamp(
        run=generator.root,
        iteration=generator.iteration,
        record=generator.record,
        config=generator.config_digest,
        prompts=tuple(prompts),
        count=count,
        seed=seed,
        code_version=version("tdm-r1"),
        pixels=pixel_digest(sheet),
    )
    write_png(sheet, out, stamp)
    return out


def _draw(generator: Generator, prompts: Sequence[str], *, count: int, keys: Keys) -> Tensor:
    """[prompts · count, height, width, 3] uint8, prompt by prompt."""
    backbone, config = generator.backbone, generator.config
    embedded = backbone.encode_prompts(list(prompts))
    condition = Condition(
        embedded.sequence.repeat_interleave(count, dim=0), embedded.pooled.repeat_interleave(count, dim=0)
    )
    ids = [f"{prompt}/{number}" for prompt in prompts for number in range(count)]
    noise = keys.normals("sample/noise", ids, shape=backbone.latent_shape)
    weights = Adapter(backbone.base(), config.model.adapter).apply(generator.role)
    path = trajectory(backbone, noise, condition, weights, config.sampler, config.rollout.microbatch)
    return backbone.decode(path[:, -1])


def stock_sigmas(sampler: SamplerConfig) -> list[float]:
    """`sigmas=` for a FlowMatchEulerDiscreteScheduler of our shift, which then walks our σ grid.

    The scheduler shifts what it is given, and appends the final 0 by itself.
    """
    grid = sigma_grid(sampler.steps, sampler.shift, replicate=sampler.replicate)
    return [round(unshift(sigma, sampler.shift), 9) for sigma in grid[:-1]]


def export_lora(root: str, out: Path, *, iteration: int | None, ema_list: Path | None = None) -> Path:
    """Write a committed generator as a folder that stock diffusers loads, with a model card.

    The folder holds the LoRA, `scheduler/scheduler_config.json`, README.md, whose code samples without this
    package, and run.json, with which `tdm-r1 sample --lora` and `evaluate --lora` open it.

    Args:
        iteration: whose generator; None for the newest, 0 for the one before any reward.
        ema_list: file to write as well, the list without names that the authors' code starts from.

    Raises:
        ConfigError: when this generator is no LoRA of a diffusers pipeline sampled by Euler steps.
    """
    run = open_run(root)
    require_exportable(run.config)
    iteration = newest_generator(run) if iteration is None else iteration
    role, manifest = load_generator(run, iteration)
    origin = {"name": generator_name(iteration), "iteration": str(iteration), "record": manifest.digest}
    base = {"base_source": run.source.address, "base_revision": run.source.revision}
    write_folder(out, role, run.config, {**origin, **base})
    if ema_list is not None:
        write_ema_list(ema_list, role, Adapter(run.backbone.base(), run.config.model.adapter))
    (out / "README.md").write_text(model_card(_card(run, out, iteration, manifest)), encoding="utf-8")
    return out


def write_ema_list(file: Path, role: RoleTensors, adapter: Adapter) -> None:
    """`ema_parameters` for α/r = 2, which the authors' code applies, and the decay it resumes with."""
    scale = adapter.config.alpha / adapter.config.rank / AUTHORS_SCALE
    scaled = {name: tensor * scale if name.endswith(".lora_B") else tensor for name, tensor in role.items()}
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"decay": 0.9, LIST_KEY: list_of(scaled, adapter.modules())}, file)


def require_exportable(config: RunConfig) -> None:
    """Refuse what stock diffusers could not sample as we do."""
    model = config.model
    if model.backbone not in BACKBONES:
        raise ConfigError(
            f"model.backbone is `{model.backbone}`, which is no diffusers pipeline: nothing could load the export",
            hint="export a run of a diffusers backbone, such as shapes_cpu",
        )
    if model.adapter.kind != "lora":
        raise ConfigError(
            f"model.adapter.kind is `{model.adapter.kind}`, but the export is a LoRA and this generator has none",
            hint="train with --set model.adapter.kind=lora; the full weights are role `generator_ema` of "
            "generator_update/state.safetensors",
        )
    if config.sampler.solver != "euler":
        raise ConfigError(
            f"sampler.solver is `{config.sampler.solver}`, but the exported scheduler takes Euler steps",
            hint="train with --set sampler.solver=euler",
        )


def _card(run: Run, out: Path, iteration: int, manifest: Manifest) -> Card:
    config, folder = run.config, run.source.folder
    row, judged = _result_row(run, iteration)
    backbone = pipeline_backbone(config.model.backbone)
    sampler = config.sampler
    return Card(
        name=generator_name(iteration),
        source=config.model.source,
        revision=run.source.revision,
        licence=run.source.licence,
        base_python=base_expression(config),
        base_digests={
            f"transformer/{file.name}": sha256_of(file)
            for file in sorted((folder / "transformer").glob("*.safetensors"))
        },
        adapter=str(out),
        rank=config.model.adapter.rank,
        preset=config.preset,
        seed=config.seed,
        iteration=iteration,
        location=generator_after(iteration).location,
        digest=manifest.digest,
        code_version=version("tdm-r1"),
        prompt=_example_prompt(run),
        steps=sampler.steps,
        shift=sampler.shift,
        sigmas=stock_sigmas(sampler),
        grid=[round(sigma, 5) for sigma in sigma_grid(sampler.steps, sampler.shift, replicate=sampler.replicate)],
        pipeline=backbone.pipeline,
        absent=backbone.absent(folder),
        call=backbone.stock_call(folder, config.model),
        row=row,
        suite=config.world,
        judged=judged,
        split=config.evaluation.split,
        remarks=_remarks(run, iteration) if row else (),
    )


def base_expression(config: RunConfig) -> str:
    """Python that names the base: inside the installed package, on the hub, or as the configuration gives it."""
    kind, _, name = config.model.source.partition(":")
    if kind == "hub":
        return f"{name!r}  # at revision {config.model.revision}"
    return f'str(files("tdm_r1") / "assets" / "{name}")' if kind == "embedded" else repr(config.model.source)


def _example_prompt(run: Run) -> str:
    rows = run.load_table(Task("encode_prompts"), PromptSet, "prompts")[0].to_pylist()
    held_out: list[str] = [row["text"] for row in rows if row["split"] == "test"]
    return held_out[-1] if held_out else "a photo of a circle"


def _result_row(run: Run, iteration: int) -> tuple[dict[str, Any] | None, int]:
    """The generator's own row of its evaluation and the number of images, or None when there is none."""
    task = Task("evaluation", iteration)
    if not evaluation_due(iteration, run.config) or read_manifest(run.store, task.location) is None:
        return None, 0
    record, _ = run.load(task, Evaluation)
    count = next(cell["count"] for cell in record.metrics.to_pylist() if cell["tag"] == OVERALL)
    return rows_of(record)[-1], count


def _remarks(run: Run, iteration: int) -> list[str]:
    """Where the run's first generator came from, and what this evaluated one gained over it, prompt by prompt."""
    gained = None
    if iteration and read_manifest(run.store, Task("evaluation", 0).location) is not None:
        before, after = (run.load(Task("evaluation", n), Evaluation)[0] for n in (0, iteration))
        gained = gain_of(run, before, after)
    return remarks(run.config, gained)
