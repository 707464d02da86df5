"""Noise levels and re-noised states of a batch of trajectory steps, drawn by key."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from tdm_r1.config import SamplerConfig
from tdm_r1.rng import Counter, Keys
from tdm_r1.sampling import renoise, sample_level, sigma_grid


@dataclass(frozen=True)
class Step:
    """Step j of the few-step grid: from σ_j to σ_n."""

    index: int
    sigma: float
    sigma_next: float
    shift: float


def steps(sampler: SamplerConfig) -> list[Step]:
    """The K steps of the generator."""
    grid = sigma_grid(sampler.steps, sampler.shift, replicate=sampler.replicate)
    return [Step(j, grid[j], grid[j + 1], sampler.shift) for j in range(sampler.steps)]


def dealt_steps(deck: Sequence[Step], number: int, hand: int) -> list[Step]:
    """Steps of the microbatch `number` of an optimizer step, dealt in turn so that all steps are trained alike.

    A fake score that is trained on some steps only forgets the others at once (docs/log.md).
    """
    return sorted((deck[(number * hand + i) % len(deck)] for i in range(hand)), key=lambda step: step.index)


def own_levels(
    step: Step, keys: Keys, purpose: str, ids: Sequence[Counter], *counters: Counter, mode: Literal["to_T", "separate"]
) -> Tensor:
    """[N] float64: one level above σ_n per sample."""
    u = keys.uniforms(f"{purpose}/level", ids, *counters)
    levels = sample_level(u, step.sigma_next, mode=mode, sigma_current=step.sigma, shift=step.shift)
    assert isinstance(levels, Tensor)
    return levels


def shared_noise(
    keys: Keys, purpose: str, groups: Sequence[Counter], *counters: Counter, shape: tuple[int, ...]
) -> Tensor:
    """[N, *shape]: one ε per group, repeated for its members."""
    distinct = list(dict.fromkeys(groups))
    noise = keys.normals(f"{purpose}/noise", distinct, *counters, shape=shape)
    row = {group: index for index, group in enumerate(distinct)}
    return noise[[row[group] for group in groups]]


def renoised(x_next: Tensor, noise: Tensor, step: Step, level: float | Tensor) -> Tensor:
    """x_τ of equation (2)."""
    return renoise(x_next, noise, step.sigma_next, level)
