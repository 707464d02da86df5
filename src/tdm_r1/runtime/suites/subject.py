"""Who is measured: a committed or released generator, or any pipeline folder, at some steps and guidance."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import torch
from PIL import Image
from torch import Tensor

from tdm_r1.config import ModelConfig, RunConfig, SamplerConfig
from tdm_r1.errors import ConfigError
from tdm_r1.models.adapters import Adapter
from tdm_r1.models.backbone import Weights
from tdm_r1.models.open import BACKBONES, pipeline_backbone
from tdm_r1.models.pipeline import INDEX, pipeline_index
from tdm_r1.models.sampler import guided_sample, trajectory
from tdm_r1.models.sources import open_source, source_folder
from tdm_r1.presets import revise
from tdm_r1.rng import Keys
from tdm_r1.runtime import numerics
from tdm_r1.runtime.generators import Generator
from tdm_r1.runtime.run_file import digest_of_config
from tdm_r1.worlds.world import WorldPrompt

NOISE: Final = "suite/noise"
MOST_STEPS: Final = 1000
NO_RUN: Final = "none"
"""In place of a preset: a pipeline that no run trained, and that has no training reward."""


@dataclass(frozen=True)
class Subject:
    """A generator and how it is sampled. Steps and guidance need not be those it was trained at."""

    generator: Generator
    steps: int
    guidance: float
    """w of classifier-free guidance; 1 is none, and costs one network evaluation per step instead of two."""

    @property
    def nfe(self) -> int:
        """Network evaluations per image."""
        return self.steps if self.guidance == 1 else 2 * self.steps

    @property
    def title(self) -> str:
        return f"{self.generator.name} ({self.generator.origin}), {self.nfe} NFE"

    @cached_property
    def weights(self) -> Weights:
        """Of the role; nothing for a base as it is."""
        if not self.generator.role:
            return {}
        return Adapter(self.generator.backbone.base(), self.generator.config.model.adapter).apply(self.generator.role)

    def facts(self) -> dict[str, Any]:
        """Who it is, by content: for `suite.json`."""
        one = self.generator
        return {
            "name": one.name,
            "iteration": one.iteration,
            "record": one.record,
            "base": open_source(one.config.model).facts()["revision"],
            "weights": _digest(one.role),
            "model": one.config.model.model_dump(mode="json"),
            "sampler": one.config.sampler.model_dump(mode="json") | {"steps": self.steps},
            "guidance": self.guidance,
            "nfe": self.nfe,
            "numerics": one.config.numerics.model_dump(mode="json"),
            "microbatch": one.config.rollout.microbatch,
        }

    @torch.no_grad()
    def draw(self, prompts: Sequence[WorldPrompt], images: Sequence[str], seed: int) -> list[bytes]:
        """PNG of each image. Its noise depends on the seed and its name alone.

        Args:
            prompts: one per image.
            images: names, `prompt/number`.
        """
        backbone, config = self.generator.backbone, self.generator.config
        texts = ["", *dict.fromkeys(row.text for row in prompts)]
        position = {text: row for row, text in enumerate(texts)}
        embedded = backbone.encode_prompts(texts)
        condition = embedded.take(torch.tensor([position[row.text] for row in prompts], dtype=torch.int64))
        noise = Keys(seed, 0).normals(NOISE, images, shape=backbone.latent_shape)
        if self.guidance == 1:
            sampler = config.sampler.model_copy(update={"steps": self.steps})
            path = trajectory(backbone, noise, condition, self.weights, sampler, config.rollout.microbatch)
            latents: Tensor = path[:, -1]
        else:
            latents = guided_sample(
                backbone,
                noise,
                condition,
                embedded.take(slice(0, 1)),
                self.weights,
                steps=self.steps,
                shift=config.sampler.shift,
                guidance=self.guidance,
                microbatch=config.rollout.microbatch,
            )
        return [_png(image) for image in backbone.decode(latents)]


def subject_of(
    generator: Generator, *, steps: int | None, guidance: float | None, overrides: Mapping[str, Any]
) -> Subject:
    """A generator with some knobs set, at these steps and this guidance.

    Args:
        steps: None for those it was trained at.
        guidance: None for none.

    Raises:
        ConfigError: for an unknown knob, or steps or guidance that cannot be.
    """
    config = revise(generator.config, overrides) if overrides else generator.config
    steps = config.sampler.steps if steps is None else steps
    if not 1 <= steps <= MOST_STEPS:
        raise ConfigError(f"--steps is {steps}, expected 1 to {MOST_STEPS}")
    guidance = 1.0 if guidance is None else guidance
    if not 0 <= guidance < float("inf"):
        raise ConfigError(f"--guidance is {guidance}, expected a number of at least 0", hint="1 is no guidance")
    if guidance != 1 and config.sampler.solver != "euler":
        raise ConfigError(f"with guidance there are Euler steps only, not {config.sampler.solver}")
    return Subject(_with(generator, config), steps, guidance)


def _with(generator: Generator, config: RunConfig) -> Generator:
    numerics.require_device(config.numerics, config.model.dtype)
    numerics.apply(config.numerics)
    one = generator
    return Generator(one.name, one.origin, config, one.role, one.config_digest, one.root, one.iteration, one.record)


def open_model(source: str, revision: str, overrides: Mapping[str, Any]) -> Generator:
    """A pipeline as it is, such as a teacher, in the form of a generator without a role.

    Raises:
        ConfigError: when it is not there, of no known pipeline, or its scheduler's shift depends on the picture.
    """
    folder = source_folder(ModelConfig(source=source, revision=revision))
    model = ModelConfig.model_validate({"source": source, "revision": revision, "backbone": _backbone_of(folder)})
    sampler = SamplerConfig() if "sampler.shift" in overrides else SamplerConfig(shift=_shift_of(folder))
    config = revise(RunConfig(preset=NO_RUN, model=model, sampler=sampler), overrides)
    open_source(config.model)
    return Generator("base", source, config, {}, digest_of_config(config))


def _backbone_of(folder: Path) -> str:
    if not (folder / INDEX).is_file() and (folder / "config.json").is_file():
        return "plane"  # which is no pipeline
    kind = pipeline_index(folder).get("_class_name")
    known = {pipeline_backbone(name).pipeline: name for name in BACKBONES}
    if kind not in known:
        raise ConfigError(f"`{folder}` holds a {kind}", hint=f"there are backbones for {', '.join(known)}")
    return known[str(kind)]


def _shift_of(folder: Path) -> float:
    """Of the σ grid, as the pipeline's own scheduler has it."""
    file = folder / "scheduler" / "scheduler_config.json"
    found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if found.get("use_dynamic_shifting"):
        raise ConfigError(
            f"the shift in `{file}` depends on the size of the picture", hint="say which: --set sampler.shift=3"
        )
    return float(found.get("shift", SamplerConfig().shift))


def _png(image: Tensor) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image.numpy()).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def _digest(role: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(role.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
