"""What stage 0 and reinforcement share: the fake score's loss and the student's replayed step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tdm_r1.config import FakeScoreConfig, SamplerConfig
from tdm_r1.models.adapters import Adapter
from tdm_r1.models.backbone import Backbone, Condition, Weights
from tdm_r1.models.levels import Step, own_levels
from tdm_r1.models.sampler import Query, answers, path, velocity_at
from tdm_r1.objectives.distillation import Directions, FakeScore, distillation_directions, fake_score_loss
from tdm_r1.rng import Counter, Keys
from tdm_r1.sampling import predict_noise, predict_x0, renoise

Interval = Literal["to_T", "separate"]


@dataclass(frozen=True)
class Batch:
    """One step of some trajectories: where it began, where it ended, for which prompts."""

    step: Step
    x: Tensor
    """[N, C, H, W] x_j."""
    x_next: Tensor
    """[N, C, H, W] x_{j+1} as the rollout stored it."""
    noise: Tensor
    """[N, C, H, W] where the trajectory began."""
    condition: Condition
    sample_ids: Sequence[Counter]

    @property
    def x0(self) -> Tensor:
        """x̂_0 of the stored Euler step: x_j − σ_j (x_j − x_n)/(σ_j − σ_n)."""
        velocity = (self.x - self.x_next) / (self.step.sigma - self.step.sigma_next)
        return predict_x0(self.x, velocity, self.step.sigma)


def fake_loss(
    backbone: Backbone,
    batch: Batch,
    weights: Weights,
    config: FakeScoreConfig,
    keys: Keys,
    *counters: int,
    mode: Interval,
) -> FakeScore:
    """Denoise the student's re-noised states with the fake score; gradient flows into `weights`."""
    ids = batch.sample_ids
    level = own_levels(batch.step, keys, "fake", ids, *counters, mode=mode)
    noise = keys.normals("fake/noise", ids, *counters, shape=tuple(batch.x.shape[1:]))
    x_level = renoise(batch.x_next, noise, batch.step.sigma_next, level)
    with torch.no_grad():
        teacher = velocity_at(backbone, x_level, level, batch.condition, {}) if config.teacher_weight else None
    prediction = velocity_at(backbone, x_level, level, batch.condition, weights)
    return fake_score_loss(
        prediction,
        prediction.detach() if teacher is None else teacher,
        batch.x0,
        x_level,
        level,
        teacher_weight=config.teacher_weight,
        min_snr=config.min_snr or None,
    )


@dataclass(frozen=True)
class Student:
    """The replayed step with gradient."""

    x0: Tensor
    x_next: Tensor


def replay(backbone: Backbone, batch: Batch, weights: Weights) -> Student:
    """x̂_0 and x_n of the live generator from the stored x_j; equals the rollout's step for unchanged weights."""
    step = batch.step
    velocity = velocity_at(backbone, batch.x, step.sigma, batch.condition, weights)
    x0, noise = predict_x0(batch.x, velocity, step.sigma), predict_noise(batch.x, velocity, step.sigma)
    return Student(x0=x0, x_next=(1 - step.sigma_next) * x0 + step.sigma_next * noise)


def replay_path(backbone: Backbone, batch: Batch, weights: Weights, sampler: SamplerConfig) -> Student:
    """The final image of the live generator from the stored noise; its gradient reaches every step of the path."""
    image = path(backbone, batch.noise, batch.condition, weights, sampler)[-1]
    return Student(x0=image, x_next=image)


@torch.no_grad()
def teacher_queries(
    student: Student, batch: Batch, empty: Condition, fake: Weights, keys: Keys, *counters: int, mode: Interval
) -> list[Query]:
    """Teacher with and without the prompt, and fake score, at a fresh level τ above the student's own next state."""
    ids = batch.sample_ids
    level = own_levels(batch.step, keys, "generator", ids, *counters, mode=mode)
    noise = keys.normals("generator/noise", ids, *counters, shape=tuple(batch.x.shape[1:]))
    x_level = renoise(student.x_next, noise, batch.step.sigma_next, level)
    base: Weights = {}
    asked = ((batch.condition, base), (batch.condition.null(empty), base), (batch.condition, fake))
    return [Query(x_level, level, condition, weights) for condition, weights in asked]


@torch.no_grad()
def estimates(queries: Sequence[Query], velocities: Sequence[Tensor]) -> list[Tensor]:
    """x̂_0 of each query from its answer."""
    return [predict_x0(query.x, v, query.sigma) for query, v in zip(queries, velocities, strict=True)]


@torch.no_grad()
def teacher_directions(backbone: Backbone, queries: Sequence[Query], guidance: float) -> Directions:
    """δ_KL and δ_CFG of `teacher_queries`."""
    real_c, real_null, fake_c = estimates(queries, answers(backbone, queries))
    return distillation_directions(real_c, real_null, fake_c, guidance)


def effective(adapter: Adapter, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a role without gradient."""
    with torch.no_grad():
        return adapter.apply(params)
