"""What leaves a run: pictures of a committed generator, and the generator itself in the format of stock diffusers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from tdm_r1.artifacts.manifest import Manifest, sha256_of
from tdm_r1.artifacts.records import Evaluation, PromptSet
from tdm_r1.artifacts.repository import read_manifest
from tdm_r1.config import AdapterConfig, RunConfig, SamplerConfig
from tdm_r1.errors import ConfigError
from tdm_r1.models.adapters import Adapter
from tdm_r1.models.backbone import Condition
from tdm_r1.models.sampler import trajectory
from tdm_r1.models.sd3 import lacks_t5
from tdm_r1.report.card import Card, model_card
from tdm_r1.report.sheet import contact_sheet
from tdm_r1.rng import Keys
from tdm_r1.runtime.generators import (
    PREFIX,
    SUFFIX,
    WEIGHTS_FILE,
    Generator,
    generator_name,
    load_generator,
    newest_generator,
)
from tdm_r1.runtime.layout import RUN_FILE, Task, evaluation_due, generator_after
from tdm_r1.runtime.results import rows_of
from tdm_r1.runtime.run import Run, config_bytes, open_run
from tdm_r1.sampling import sigma_grid, unshift
from tdm_r1.statistics import OVERALL


def sample_images(generator: Generator, prompts: Sequence[str], out: Path, *, count: int, seed: int) -> Path:
    """Sample `count` images per prompt into one labelled PNG.

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
    contact_sheet(rows, title).save(out, format="PNG")
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


def diffusers_lora(role: Mapping[str, Tensor], adapter: AdapterConfig) -> dict[str, Tensor]:
    """The tensors of a role by the names of diffusers and peft.

    peft applies (lora_alpha / r) · B · A, and diffusers takes lora_alpha = r when the file does not say
    otherwise; so our α/r is multiplied into B, and every loader agrees about the product.
    """
    scale, found = adapter.alpha / adapter.rank, {}
    for name, tensor in role.items():
        stored = tensor * scale if name.endswith(".lora_B") else tensor
        found[f"{PREFIX}{name}{SUFFIX}"] = stored.contiguous()
    return found


def stock_sigmas(sampler: SamplerConfig) -> list[float]:
    """`sigmas=` for a FlowMatchEulerDiscreteScheduler of our shift, which then walks our σ grid.

    The scheduler shifts what it is given, and appends the final 0 by itself.
    """
    grid = sigma_grid(sampler.steps, sampler.shift, replicate=sampler.replicate)
    return [round(unshift(sigma, sampler.shift), 9) for sigma in grid[:-1]]


def export_lora(root: str, out: Path, *, iteration: int | None) -> Path:
    """Write a committed generator as a folder that stock diffusers loads, with a model card.

    The folder holds the LoRA, `scheduler/scheduler_config.json`, README.md, whose code samples without this
    package, and run.json, with which `tdm-r1 sample --lora` and `evaluate --lora` open it.

    Args:
        iteration: whose generator; None for the newest, 0 for the one before any reward.

    Raises:
        ConfigError: when this generator is no LoRA of an SD3 base sampled by Euler steps.
    """
    run = open_run(root)
    require_exportable(run.config)
    iteration = newest_generator(run) if iteration is None else iteration
    role, manifest = load_generator(run, iteration)
    scheduler = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000}
    scheduler |= {"shift": run.config.sampler.shift, "use_dynamic_shifting": False}
    (out / "scheduler").mkdir(parents=True, exist_ok=True)
    (out / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler, indent=2) + "\n")
    origin = {"format": "pt", "name": generator_name(iteration), "iteration": str(iteration), "record": manifest.digest}
    save_file(diffusers_lora(role, run.config.model.adapter), out / WEIGHTS_FILE, metadata=origin)
    (out / RUN_FILE).write_bytes(config_bytes(run.config))
    (out / "README.md").write_text(model_card(_card(run, out, iteration, manifest)), encoding="utf-8")
    return out


def require_exportable(config: RunConfig) -> None:
    """Refuse what stock diffusers could not sample as we do."""
    model = config.model
    if model.backbone != "sd3":
        raise ConfigError(
            f"model.backbone is `{model.backbone}`, which is no diffusers pipeline: nothing could load the export",
            hint="export a run of an `sd3` preset, such as shapes_cpu",
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
        t5=not lacks_t5(folder),
        row=row,
        suite=config.reward.scorer,
        judged=judged,
        split=config.evaluation.split,
    )


def base_expression(config: RunConfig) -> str:
    """Python that names the base's folder: inside the installed package, or as the configuration gives it."""
    kind, _, name = config.model.source.partition(":")
    return f'str(files("tdm_r1") / "assets" / "{name}")' if kind == "embedded" else repr(config.model.source)


def _example_prompt(run: Run) -> str:
    rows = run.load(Task("encode_prompts"), PromptSet)[0].prompts.to_pylist()
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
