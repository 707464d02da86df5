"""What a run will do, store and fetch, computed from its configuration and from nothing else."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import prod
from typing import Final

from torch import Tensor

from tdm_r1.config import AdamConfig, AdapterConfig, RunConfig
from tdm_r1.errors import ConfigError
from tdm_r1.models.adapters import Adapter
from tdm_r1.models.shapes import DOWNLOAD_BYTES, Shapes, shapes_of
from tdm_r1.models.sources import kind_of, require_pinned, source_folder
from tdm_r1.runtime.layout import STAGES, all_tasks
from tdm_r1.runtime.numerics import require_trainable
from tdm_r1.stages.evaluation import guided_images
from tdm_r1.worlds.world import open_world

FLOAT: Final = 4
"""Bytes; everything that is stored is float32, but for the images."""


@dataclass(frozen=True)
class Plan:
    """A run before it begins. Sizes are of tensors, before Parquet compresses them; tables of text are left out."""

    tasks: dict[str, int]
    """How often each stage runs."""
    images: dict[str, int]
    """Images drawn, by what they are drawn for."""
    optimizer_steps: dict[str, int]
    """By role, over the whole run."""
    stored: dict[str, int]
    """Bytes of one record of each stage."""
    parameters: dict[str, int]
    """Of the frozen base, and of the trained roles."""
    prompts: dict[str, tuple[int, int, tuple[str, ...]]]
    """By world: how many to train on, how many held out, and the scorers that are asked about them."""
    download: int | None
    """Bytes, about; None when nobody knows, 0 when the base is here."""

    @property
    def total_bytes(self) -> int:
        """Of every record of the run."""
        return sum(self.stored.get(stage, 0) * count for stage, count in self.tasks.items())


def plan(config: RunConfig) -> Plan:
    """Count and add up. Nothing is fetched, loaded or written.

    Raises:
        ConfigError: for a base that is not pinned, or whose shapes are not known here, or targets that it lacks, or a
            precision that does not train.
    """
    require_pinned(config.model)
    require_trainable(config.model.dtype)
    shapes = shapes_of(config.model)
    generator = trained(config.model.adapter, shapes.base)
    fake = trained(config.fake_adapter, shapes.base)
    surrogate = trained(config.surrogate_adapter, shapes.base)
    tasks = Counter(task.stage for task in all_tasks(config))
    return Plan(
        tasks={stage: tasks[stage] for stage in STAGES},
        images=_images(config, tasks["evaluation"]),
        optimizer_steps=_steps(config),
        stored=_stored(config, shapes, generator, fake, surrogate),
        parameters={
            "base": sum(prod(tensor.shape) for tensor in shapes.base.values()),
            "generator": generator,
            "fake score": fake,
            "surrogate": surrogate,
        },
        prompts={world: _prompts(world, config) for world in config.worlds},
        download=_download(config),
    )


def _prompts(world: str, config: RunConfig) -> tuple[int, int, tuple[str, ...]]:
    splits = Counter(prompt.split for prompt in open_world(world).prompts())
    scorers = config.reward.scorers.items()
    return splits["train"], splits["test"], tuple(n for n, s in scorers if not s.worlds or world in s.worlds)


def trained(adapter: AdapterConfig, base: dict[str, Tensor]) -> int:
    """Parameters of one role."""
    if adapter.kind == "full":
        return sum(prod(tensor.shape) for tensor in base.values())
    layers = Adapter(base, adapter).targets()
    return sum(adapter.rank * sum(base[f"{name}.weight"].shape) for name in layers)


def _images(config: RunConfig, evaluations: int) -> dict[str, int]:
    asked = config.evaluation
    guided = (2 if asked.teacher_steps else 0) + (evaluations - 1 if asked.surrogate_steps else 0)
    per_prompt = evaluations * asked.images_per_prompt + guided * guided_images(config)
    return {
        "stage 0": (config.distill.warmup + config.distill.steps) * config.distill.batch,
        "rollout": config.iterations * config.rollout.groups * config.rollout.group_size,
        "evaluation, at most": per_prompt * asked.prompts,
    }


def _steps(config: RunConfig) -> dict[str, int]:
    first, generator = config.distill, config.generator.all_updates * config.iterations
    return {
        "fake score": first.fake_steps + generator * config.generator.fake_updates,
        "generator": first.steps + generator,
        "surrogate": config.surrogate.updates * config.iterations,
    }


def _stored(config: RunConfig, shapes: Shapes, generator: int, fake: int, surrogate: int) -> dict[str, int]:
    samples = config.rollout.groups * config.rollout.group_size // config.rollout.shards
    latents = (config.sampler.steps + 1) * prod(shapes.latent) * FLOAT
    texts = {row.text for row in open_world(config.world).prompts()} | {""}
    learned, section = config.surrogate, config.generator
    copies = 1 + bool(learned.ppo_clip) + (learned.reference == "ema") + bool(learned.average)
    return {
        "encode_prompts": len(texts) * shapes.prompt_floats * FLOAT,
        "distill_base": _roles(generator, config.distill.generator, fake, config.distill.fake.optimizer),
        "rollout": samples * (latents + prod(shapes.image)),
        "surrogate_update": FLOAT * surrogate * (copies + _moments(learned.optimizer)),
        "generator_update": _roles(generator, section.optimizer, fake, section.fake.optimizer),
    }


def _roles(generator: int, generator_adam: AdamConfig, fake: int, fake_adam: AdamConfig) -> int:
    """Live and averaged generator and the fake score, with the moments of both."""
    return FLOAT * (generator * (2 + _moments(generator_adam)) + fake * (1 + _moments(fake_adam)))


def _moments(adam: AdamConfig) -> int:
    """That are stored of each parameter."""
    return 2 if adam.betas[0] else 1


def _download(config: RunConfig) -> int | None:
    if kind_of(config.model.source) not in ("hub", "s3"):
        return 0
    try:
        source_folder(config.model, fetch=False)
    except ConfigError:
        return DOWNLOAD_BYTES.get(config.model.source)
    return 0
