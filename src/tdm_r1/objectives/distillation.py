"""Trajectory distribution matching: the fake score's loss and the generator's distillation directions.

Everything is said of one step j of the student: x̂₀ is its estimate from x_j, x_τ its next state re-noised to σ_τ.
Source: TDM, arXiv 2503.06674, in flow form.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tdm_r1.sampling import Level, broadcast, guide

NORMALISER_FLOOR = 1e-6
"""Keeps a normaliser from zero when the student already equals its target."""


def per_sample(value: Tensor) -> Tensor:
    """[N] means over all dims but the first."""
    return value.flatten(1).mean(1)


@dataclass(frozen=True)
class FakeScore:
    loss: Tensor
    """[] with gradient."""
    score_error: Tensor
    """[] mean squared error to the target velocity, unweighted."""
    teacher_error: Tensor
    """[] mean squared distance to the teacher's velocity."""
    errors: Tensor
    """[N] of which `score_error` is the mean."""
    levels: Tensor
    """[N] the levels it was asked at."""


def min_snr_weight(sigma: Level, gamma: float) -> Level:
    """σ² min(SNR, γ) = min((1−σ)², γ σ²), SNR = ((1−σ)/σ)²: the min-SNR weight of an x₀ error, for a velocity error.

    The x₀ error is σ² times the velocity error. Source: Min-SNR, arXiv 2303.09556, carried to the flow path here.
    """
    if isinstance(sigma, Tensor):
        return torch.minimum((1 - sigma) ** 2, gamma * sigma**2)
    return min((1 - sigma) ** 2, gamma * sigma**2)


def fake_score_loss(
    prediction: Tensor,
    teacher_prediction: Tensor,
    x0: Tensor,
    x_level: Tensor,
    sigma: Level,
    *,
    teacher_weight: float = 0.02,
    min_snr: float | None = None,
    importance_N: Tensor | None = None,
    importance_clip: float = 20.0,
) -> FakeScore:
    """L_ψ = mean_N [w_N ‖u* − v_ψ‖² + 0.02 ‖v_teacher − v_ψ‖²], u* = (x_τ − x̂₀)/σ_τ, norms are means over C, H, W.

    w = 1 by default; times σ² min(SNR, γ) with `min_snr` = γ; times min(importance, 20) with `importance_N`.
    The weight acts on the first term only.

    Args:
        prediction: [N, …] v_ψ(x_τ, τ, c), requires grad.
        teacher_prediction: [N, …] v_teacher(x_τ, τ, c).
        x0: [N, …] the student's x̂₀ of the step.
        x_level: [N, …] x_τ.
        sigma: σ_τ, float or [N].
        teacher_weight: of the pull to the teacher.
        min_snr: γ (5 in stage 0), None for no SNR weight.
        importance_N: [N] density ratio of the caller's choice, None for none.
        importance_clip: its upper bound.
    """
    target = ((x_level - x0) / broadcast(sigma, x_level)).detach()
    score_N = per_sample((target - prediction) ** 2)
    teacher_N = per_sample((teacher_prediction.detach() - prediction) ** 2)
    weight_N: Level = 1.0 if min_snr is None else broadcast(min_snr_weight(sigma, min_snr), score_N)
    if importance_N is not None:
        weight_N = weight_N * importance_N.detach().to(score_N).clamp_max(importance_clip)
    loss = (weight_N * score_N + teacher_weight * teacher_N).mean()
    sigma_N = sigma.to(score_N) if isinstance(sigma, Tensor) else torch.full_like(score_N, sigma)
    return FakeScore(loss, score_N.detach().mean(), teacher_N.detach().mean(), score_N.detach(), sigma_N.detach())


@dataclass(frozen=True)
class Directions:
    """Where the teacher and the fake score want x̂₀ to go, [N, …] each, in x₀-space at (x_τ, τ), detached."""

    kl: Tensor
    cfg: Tensor
    guided: Tensor
    """x0_real,cfg(w), the target of the normaliser."""


@torch.no_grad()
def distillation_directions(
    x0_real_c: Tensor, x0_real_null: Tensor, x0_fake_c: Tensor, guidance: float = 4.5
) -> Directions:
    """δ_KL = x0_real,c − x0_fake,c; δ_CFG = (w−1) (x0_real,c − x0_real,∅); their teacher's guided estimate.

    δ_KL + δ_CFG = x0_real,cfg(w) − x0_fake,c, the direction of distribution matching against the guided teacher.
    """
    cfg = (guidance - 1) * (x0_real_c - x0_real_null)
    return Directions(kl=x0_real_c - x0_fake_c, cfg=cfg, guided=guide(x0_real_null, x0_real_c, guidance))


@torch.no_grad()
def normaliser(x0: Tensor, target: Tensor) -> Tensor:
    """W [N] = mean_CHW |x̂₀ − target|, detached, at least 1e-6. Source: DMD, arXiv 2311.18828."""
    return per_sample((x0 - target).abs()).clamp_min(NORMALISER_FLOOR)


def direction_error(x0: Tensor, direction: Tensor, huber: float | None = None) -> Tensor:
    """e(δ) [N] = mean_CHW (x̂₀ − sg(x̂₀ + δ))², whose gradient is −2δ/CHW; with huber c, mean_CHW √(·² + c²) − c."""
    square = (x0 - (x0 + direction).detach()) ** 2
    return per_sample(square if huber is None else (square + huber**2).sqrt() - huber)


@dataclass(frozen=True)
class Directed:
    loss: Tensor
    """[] with gradient."""
    kl_error: Tensor
    """[] mean over N of e(δ_KL)/W."""
    cfg_error: Tensor
    """[] mean over N of e(δ_CFG)/W."""


def directed_loss(x0: Tensor, directions: Directions, normaliser_N: Tensor, huber: float | None = None) -> Directed:
    """L_θ = mean_N [(e(δ_KL) + e(δ_CFG)) / W]: stage 0's generator loss.

    Args:
        x0: [N, …] the student's x̂₀, requires grad.
        directions: δ_KL and δ_CFG, constant.
        normaliser_N: [N] W = `normaliser(x0, directions.guided)`.
        huber: c of the pseudo-Huber form (1e-3 in TDM), None for the square.
    """
    kl = (direction_error(x0, directions.kl, huber) / normaliser_N).mean()
    cfg = (direction_error(x0, directions.cfg, huber) / normaliser_N).mean()
    return Directed(kl + cfg, kl.detach(), cfg.detach())
