"""The path, the sampler and the re-noising of TDM-R1, as pure functions of latents and noise levels.

Convention: x_σ = (1−σ) x₀ + σ ε with σ = t/1000 in [0, 1], σ = 1 noise; the network predicts v ≈ ε − x₀.
A level is a float, or an [N] tensor with one level per sample, broadcast over the trailing dims of x, whatever
these are. Latents are [N, …] in fp32 (or fp64 in tests). Equation numbers (1)–(3) are those of the algorithm document.
"""

from __future__ import annotations

import math
from typing import Literal, overload

import torch
from torch import Tensor

Level = float | Tensor
TRAIN_STEPS = 1000
LEVEL_MARGIN = 0.02
"""Least distance, in unshifted time, of a drawn level from the state it re-noises: keeps b of (2) away from 0."""


def broadcast(level: Level, x: Tensor) -> Level:
    """A float as it is; an [N] tensor as [N, 1, …, 1] in the precision (at least fp32) and on the device of x."""
    if not isinstance(level, Tensor):
        return level
    level = level.to(x.device, torch.promote_types(x.dtype, torch.float32))
    return level.reshape(level.shape + (1,) * (x.ndim - level.ndim)) if level.ndim else level


@overload
def shift(u: float, s: float = 3.0) -> float: ...
@overload
def shift(u: Tensor, s: float = 3.0) -> Tensor: ...
def shift(u: Level, s: float = 3.0) -> Level:
    """σ = s u / (1 + (s−1) u): more steps at high noise for s > 1. Source: SD3, arXiv 2403.03206."""
    return s * u / (1 + (s - 1) * u)


@overload
def unshift(sigma: float, s: float = 3.0) -> float: ...
@overload
def unshift(sigma: Tensor, s: float = 3.0) -> Tensor: ...
def unshift(sigma: Level, s: float = 3.0) -> Level:
    """Inverse of `shift`: u = σ / (s − (s−1) σ)."""
    return sigma / (s - (s - 1) * sigma)


_shift = shift  # where a parameter is named `shift`


def sigma_grid(steps: int, shift: float = 3.0, *, replicate: bool = False) -> tuple[float, ...]:
    """K+1 levels σ_0 > … > σ_K = 0 with σ_k = shift(0.999 (1 − k/K)).

    This is the flow grid of diffusers' DPM-Solver++ (u from 0.999, not 1): for K = 4 and shift 3
    σ = .99967, .89964, .74962, .49967, 0 and 1000σ truncates to 999, 899, 749, 499, 0.
    `replicate` returns these truncated values over 1000, as the authors' code uses them.
    """
    if steps < 1:
        raise ValueError(f"a grid needs at least one step, found {steps}")
    sigmas = [_shift((1 - 1 / TRAIN_STEPS) * (1 - k / steps), shift) for k in range(steps)] + [0.0]
    return tuple(math.floor(TRAIN_STEPS * sigma) / TRAIN_STEPS if replicate else sigma for sigma in sigmas)


def predict_x0(x: Tensor, v: Tensor, sigma: Level) -> Tensor:
    """x̂₀ = x_σ − σ v."""
    return x - broadcast(sigma, x) * v


def predict_noise(x: Tensor, v: Tensor, sigma: Level) -> Tensor:
    """ε̂ = x_σ + (1−σ) v."""
    return x + (1 - broadcast(sigma, x)) * v


def guide(v_null: Tensor, v_cond: Tensor, weight: float) -> Tensor:
    """v_∅ + w (v_c − v_∅): w = 1 is conditional only. As x̂₀ is affine in v, it guides estimates x̂₀ just as well."""
    return torch.lerp(v_null, v_cond, weight)


def euler_step(x: Tensor, v: Tensor, sigma: Level, sigma_next: Level) -> Tensor:
    """(1): x_{k+1} = x_k − (σ_k − σ_{k+1}) v, equal to (1−σ_{k+1}) x̂₀ + σ_{k+1} ε̂ and to first-order DPM-Solver++."""
    return x - (broadcast(sigma, x) - broadcast(sigma_next, x)) * v


def dpmpp2m_step(
    x: Tensor,
    x0: Tensor,
    sigma: float,
    sigma_next: float,
    *,
    x0_previous: Tensor | None = None,
    sigma_previous: float = 1.0,
) -> Tensor:
    """One step of DPM-Solver++ 2M (midpoint) on the flow path; first order without a previous estimate or to σ = 0.

    With λ = log((1−σ)/σ), h = λ_next − λ, r = (λ − λ_previous)/h and c = σ_next (1−σ)/σ − (1−σ_next):
    x_next = (σ_next/σ) x − c (x̂₀ + (x̂₀ − x̂₀_previous)/(2r)).
    Source: DPM-Solver++, arXiv 2211.01095; diffusers' `lower_order_final` for at most 14 steps that end at 0.
    """
    c = sigma_next * (1 - sigma) / sigma - (1 - sigma_next)
    if x0_previous is not None and sigma_next > 0 and sigma_previous < 1:
        previous, here, ahead = (math.log((1 - level) / level) for level in (sigma_previous, sigma, sigma_next))
        x0 = x0 + (x0 - x0_previous) * ((ahead - here) / (here - previous) / 2)
    return (sigma_next / sigma) * x - c * x0


def sample_level(
    u01: Level,
    sigma_next: float,
    *,
    floor: float = 0.0,
    mode: Literal["to_T", "separate"] = "to_T",
    sigma_current: float | None = None,
    shift: float = 3.0,
) -> Level:
    """σ_τ = shift(u) with u uniform in (unshift(max(σ_next, floor)) + 0.02, upper), from u01 ~ U[0, 1).

    upper = 1 for `to_T`, unshift(σ_current) − 0.01 for `separate`. A float u01 gives one level, an [N] tensor N levels.
    A floor above the interval leaves its upper end. To clamp the level instead of the interval, use `at_least`.
    """
    upper = 1.0
    if mode == "separate":
        if sigma_current is None:
            raise ValueError("level mode 'separate' needs sigma_current, the level at which the step began")
        upper = unshift(sigma_current, shift) - LEVEL_MARGIN / 2
    lower = min(unshift(max(sigma_next, floor), shift) + LEVEL_MARGIN, upper)
    return _shift(lower + (upper - lower) * u01, shift)


def at_least(level: Level, floor: float) -> Level:
    """max(σ, floor), elementwise: the clamp of τ_R."""
    return level.clamp_min(floor) if isinstance(level, Tensor) else max(level, floor)


def renoise_coefficients(sigma_next: Level, sigma_level: Level) -> tuple[Level, Level]:
    """(a, b) of (2): a = (1−σ_τ)/(1−σ_n), b = √(σ_τ² − (a σ_n)²), for σ_n ≤ σ_τ and σ_n < 1."""
    if not bool(torch.as_tensor(sigma_next <= sigma_level).all() & torch.as_tensor(sigma_next < 1).all()):
        raise ValueError(f"cannot re-noise from σ={sigma_next} to σ={sigma_level}: σ must not fall, nor start at 1")
    a = (1 - sigma_level) / (1 - sigma_next)
    variance = sigma_level**2 - (a * sigma_next) ** 2
    return a, variance.clamp_min(0).sqrt() if isinstance(variance, Tensor) else math.sqrt(max(variance, 0.0))


def renoise(x_next: Tensor, noise: Tensor, sigma_next: Level, sigma_level: Level) -> Tensor:
    """(2): x_τ = a x_n + b ε. If x_n lies on the path at σ_n, x_τ lies on the path at σ_τ."""
    a, b = renoise_coefficients(sigma_next, sigma_level)
    return broadcast(a, x_next) * x_next + broadcast(b, x_next) * noise


def conditional_velocity(x_next: Tensor, noise: Tensor, sigma_next: Level, sigma_level: Level) -> Tensor:
    """(3): d x_τ / d σ_τ of (2) at fixed x_n and ε, the target of the surrogate; ε − x₀ for σ_n = 0.

    u = −x_n/(1−σ_n) + (ε/b) (σ_τ + σ_n² a/(1−σ_n)), by `test_the_conditional_velocity_is_the_derivative_of_the_path`.
    """
    a, b = renoise_coefficients(sigma_next, sigma_level)
    drift, spread = 1 / (1 - sigma_next), (sigma_level + sigma_next**2 * a / (1 - sigma_next)) / b
    return broadcast(spread, x_next) * noise - broadcast(drift, x_next) * x_next
