"""A model of memory and work: what each stage of a run needs on its device and its host, and which microbatch fits.

Computed, not measured on a GPU. Activations and operations come from diffusers' own networks on the meta device
(`plan/passes.py`); weights, gradients and optimizers are counted. What a stage keeps at once follows its code: latents,
losses, and without DeepSpeed the float32 masters, gradients and moments of a role lie on the host.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Final

from tdm_r1.config import AdamConfig, RunConfig
from tdm_r1.errors import ConfigError
from tdm_r1.models.shapes import shapes_of
from tdm_r1.plan.passes import BYTES, PassCost, decode_cost, pass_cost, path_bytes
from tdm_r1.runtime.dry_run import trained

GB: Final = 1_000_000_000


@dataclass(frozen=True)
class Gpu:
    """One card."""

    memory_gb: float
    """That CUDA reports, in 10⁹ bytes."""
    tflops: float
    """Dense bfloat16, by the data sheet."""


GPUS: Final = {"A100-80": Gpu(84.9, 312), "H100": Gpu(84.9, 989)}
USED: Final = 0.4
"""Share of a card's operations that training reaches: an assumption."""
TEACHER: Final = 3
"""Frozen queries of a generator's step: teacher with and without the prompt, fake score."""
RESERVE_GB: Final = 2.0
"""CUDA context, cuBLAS and cuDNN workspaces: an assumption."""
FRAGMENTED: Final = 0.1
"""Share of the activations that the allocator holds beside what is asked for: an assumption."""
FLOAT: Final = 4
MOMENTS: Final = 8
"""Bytes of both float32 moments of a number."""
BLOCK: Final = 256
"""Numbers of an 8-bit moment that share a float32 (`models/adam8bit.py`)."""


@dataclass(frozen=True, kw_only=True)
class StageMemory:
    """One stage; bytes, at its configured microbatch."""

    stage: str
    knob: str
    """Which configuration value is the microbatch."""
    rows: int
    """Trajectories of one network call."""
    weights: float
    """The frozen base with its buffers, and the decoder where images are made."""
    trained: float
    """Masters, gradients and moments on the device: of DeepSpeed's share, else 0."""
    copies: float
    """Of roles, in the precision of the base."""
    decode: float
    """Of the decoder's call, which comes after the network's."""
    decoded: int
    """Images of that call."""
    host: float
    """Masters, gradients and moments on the host."""
    flops: float
    """Of one optimizer step of each role of the stage, or of the rollout of one shard."""
    unit: int
    """The microbatch is a multiple of this many rows."""
    row: Callable[[int], float]
    """Activations of so many rows."""

    @property
    def activations(self) -> float:
        """The most at once."""
        return self.row(self.rows)

    @property
    def fixed(self) -> float:
        """Bytes that no microbatch changes."""
        return self.weights + self.trained + self.copies + RESERVE_GB * GB

    @property
    def peak(self) -> float:
        """Bytes on the device."""
        return self.fixed + (1 + FRAGMENTED) * max(self.activations, self.decode)

    def fitting(self, budget: float) -> int:
        """The largest microbatch within so many bytes, at most 4096 rows; 0 when not even one unit fits."""
        room = budget - self.fixed
        fits = [r for r in range(self.unit, 4096 + 1, self.unit) if (1 + FRAGMENTED) * self.row(r) <= room]
        return max(fits, default=0)


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """All stages that need the network."""

    preset: str
    base_parameters: int
    roles: dict[str, int]
    """Trained parameters by role."""
    prompt_bytes: int
    """Cached embeddings of one prompt, on the host."""
    stages: tuple[StageMemory, ...]


def memory_plan(config: RunConfig, processes: int = 1) -> MemoryPlan:
    """Predict a run's memory and work. Nothing is fetched.

    Args:
        processes: over which DeepSpeed shards.

    Raises:
        ConfigError: for a base whose shapes are not known here, or that has no blocks.
    """
    require_countable(config)
    base = shapes_of(config.model)
    adapters = {"generator": config.model.adapter, "fake": config.fake_adapter, "surrogate": config.surrogate_adapter}
    roles = {role: trained(adapter, base.base) for role, adapter in adapters.items()}
    costs = {role: pass_cost(config.model, adapter) for role, adapter in adapters.items()}
    width = BYTES[config.model.dtype]
    parameters = sum(prod(tensor.shape) for tensor in base.base.values())
    weights = width * parameters + costs["generator"].buffers
    sizes = _Sizes(config, processes, weights, roles, costs)
    return MemoryPlan(
        preset=config.preset,
        base_parameters=parameters,
        roles=roles,
        prompt_bytes=FLOAT * base.prompt_floats,
        stages=(sizes.rollout(), sizes.distill(), sizes.surrogate(), sizes.generator()),
    )


def require_countable(config: RunConfig) -> None:
    """Refuse what has no network that the meta device runs.

    Raises:
        ConfigError: for the plane, and for autocast.
    """
    if config.model.backbone == "plane" or config.model.autocast != "none":
        what = "the plane has no blocks" if config.model.backbone == "plane" else "torch.autocast has no meta device"
        raise ConfigError(f"the memory of `{config.preset}` cannot be planned: {what}", hint="plan another preset")


@dataclass(frozen=True)
class _Sizes:
    config: RunConfig
    processes: int
    weights: float
    roles: dict[str, int]
    costs: dict[str, PassCost]

    def states(self, **adams: AdamConfig) -> tuple[float, float]:
        """Bytes of the roles that are trained by these optimizers: on the device, on the host.

        Whole: float32 masters, gradients and both moments, in 8 bits as if every parameter were large. DeepSpeed: the
        role in its own precision and float32 gradients, then masters and moments, from stage 2 on gradients and in
        stage 3 the role, by the number of processes. The copies that a pass makes of a role are whole in every stage,
        and counted there. Every process has masters and moments whole on its host when it starts and when it commits.
        """
        count, told = sum(self.roles[name] for name in adams), self.config.distributed
        if told.engine == "none":
            moments = {"adamw": float(MOMENTS), "adamw8bit": 2 * (1 + FLOAT / BLOCK)}
            return 0.0, sum((2 * FLOAT + moments[adam.kind]) * self.roles[name] for name, adam in adams.items())
        parts, record = self.processes, (FLOAT + MOMENTS) * float(count)
        optimizer = record / parts
        gradients = FLOAT * count / (parts if told.zero_stage >= 2 else 1)
        device = BYTES[told.dtype] * count / (parts if told.zero_stage == 3 else 1) + gradients
        return (device, record + optimizer) if told.offload else (device + optimizer, record)

    def copies(self, *names: str) -> float:
        return sum(self.costs[name].copies for name in names)

    def rollout(self) -> StageMemory:
        """A shard: K passes of the generator, then the decoder."""
        section, cost = self.config.rollout, self.costs["generator"]
        samples = section.groups * section.group_size // section.shards
        parameters, image, flops = decode_cost(self.config.model)
        return StageMemory(
            stage="rollout",
            knob="rollout.microbatch",
            rows=min(section.microbatch, samples),
            weights=self.weights + BYTES[self.config.model.dtype] * parameters,
            trained=0.0,
            copies=self.copies("generator"),
            row=lambda rows: cost.asked * rows,
            decode=image * min(self.config.model.decode_batch, samples),
            decoded=min(self.config.model.decode_batch, samples),
            host=float(FLOAT * self.roles["generator"]),
            flops=samples * (self.config.sampler.steps * cost.flops_asked + flops),
            unit=1,
        )

    def distill(self) -> StageMemory:
        """A batch is sampled at once, then trained on in K parts: fake score, then generator."""
        section, steps = self.config.distill, self.config.sampler.steps
        generator, fake = self.costs["generator"], self.costs["fake"]

        def row(rows: int) -> float:
            part = rows / steps
            return max(generator.asked * rows, generator.waiting(TEACHER) * part, fake.trained * part)

        device, host = self.states(generator=section.generator, fake=section.fake.optimizer)
        once = generator.flops_trained + TEACHER * generator.flops_asked
        return StageMemory(
            stage="distill_base",
            knob="distill.batch",
            rows=section.batch,
            weights=self.weights,
            trained=device,
            copies=self.copies("generator", "fake"),
            row=row,
            decode=0.0,
            decoded=0,
            host=host,
            flops=section.batch * (steps * generator.flops_asked + section.fake_updates * self._fake() + once),
            unit=steps,
        )

    def surrogate(self) -> StageMemory:
        """Base, and if asked lag and reference, without gradient; then the surrogate with it."""
        section, cost = self.config.surrogate, self.costs["surrogate"]
        size = self.config.rollout.group_size
        frozen = 1 + bool(section.ppo_clip) + (section.reference == "ema")
        device, host = self.states(surrogate=section.optimizer)
        rows = section.minibatch_groups * size * section.draws
        return StageMemory(
            stage="surrogate_update",
            knob="surrogate.microbatch_groups",
            rows=min(section.microbatch_groups, section.minibatch_groups) * size,
            weights=self.weights,
            trained=device,
            copies=self.copies("surrogate"),
            row=lambda rows: max(cost.asked, cost.trained) * rows,
            decode=0.0,
            decoded=0,
            host=host,
            flops=rows * (frozen * cost.flops_asked + cost.flops_trained),
            unit=size,
        )

    def generator(self) -> StageMemory:
        """Fake score; then the student's step or path, which waits for the frozen queries: one pass beside the base."""
        section, cost, fake = self.config.generator, self.costs["generator"], self.costs["fake"]
        asked = TEACHER + (2 if section.surrogate_guidance == 1 else 3)
        device, host = self.states(generator=section.optimizer, fake=section.fake.optimizer)
        rows = section.minibatch * section.steps_per_trajectory
        steps = self.config.sampler.steps if section.path == "trajectory" else 1
        later = pass_cost(self.config.model, self.config.model.adapter, chained=True) if steps > 1 else cost
        student = path_bytes(cost, later, steps, asked)
        once = steps * cost.flops_trained + asked * cost.flops_asked
        return StageMemory(
            stage="generator_update",
            knob="generator.microbatch",
            rows=min(section.microbatch, section.minibatch),
            weights=self.weights,
            trained=device,
            copies=self.copies("generator", "fake", "surrogate"),
            row=lambda rows: max(student, fake.trained) * rows,
            decode=0.0,
            decoded=0,
            host=host + FLOAT * self.roles["surrogate"],
            flops=rows * (section.fake_updates * self._fake() + once),
            unit=1,
        )

    def _fake(self) -> float:
        """Operations of one row of the fake score: the teacher's pass, where it counts, and its own."""
        teacher = self.config.generator.fake.teacher_weight > 0
        return teacher * self.costs["fake"].flops_asked + self.costs["fake"].flops_trained
