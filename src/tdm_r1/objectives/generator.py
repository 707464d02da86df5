"""The generator's loss in R1: distillation towards the teacher plus the surrogate's reward direction.

Source: TDM-R1, arXiv 2603.07700; section 4 of the algorithm document.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tdm_r1.objectives.distillation import Directions, direction_error, normaliser
from tdm_r1.sampling import guide


@dataclass(frozen=True)
class Reward:
    """Where the surrogate reward wants x̂₀ to go, [N, …] in x₀-space at (x_τR, τ_R), detached."""

    direction: Tensor
    guided: Tensor
    """x0_φ,cfg(rl_cfg), the target of the normaliser W2."""


@torch.no_grad()
def reward_direction(x0_surrogate_c: Tensor, x0_surrogate_null: Tensor, x0_base_c: Tensor, *, rl_cfg: float) -> Reward:
    """δ_R = x0_φ,cfg(rl_cfg) − x0_base,c: a scaled gradient of the implicit reward; 0 for φ = base and rl_cfg = 1."""
    guided = guide(x0_surrogate_null, x0_surrogate_c, rl_cfg)
    return Reward(direction=guided - x0_base_c, guided=guided)


@dataclass(frozen=True)
class Generator:
    loss: Tensor
    """[] with gradient."""
    cfg_error: Tensor
    """[] mean over N of e(δ_CFG)/W1, before its weight; likewise the two below."""
    kl_error: Tensor
    reward_error: Tensor
    """e(δ_R)/W2; 0 where the step has no reward term."""


def generator_loss(
    x0: Tensor,
    directions: Directions,
    reward: Reward | None,
    *,
    step: int,
    trunc_steps: int,
    cfg_share: float = 0.3,
    reward_weight: float = 1.0,
    kl_weight: float = 1.0,
    huber: float | None = None,
) -> Generator:
    """L_θ = mean_N [λ e(δ_CFG)/W1 + ω (1−λ) e(δ_R)/W2 + κ e(δ_KL)/W1]; for j ≥ trunc_steps λ (e(δ_CFG) + e(δ_KL))/W1.

    e(δ) = mean_CHW (x̂₀ − sg(x̂₀+δ))², W1 = mean|x̂₀ − x0_real,cfg|, W2 = mean|x̂₀ − x0_φ,cfg|, per sample.

    Args:
        x0: [N, …] the student's x̂₀ of step j, requires grad.
        directions: of the teacher and the fake score, at τ.
        reward: of the surrogate, at τ_R; may be None for j ≥ trunc_steps.
        step: j = 0..K−1.
        trunc_steps: first step without a reward term; K for none.
        cfg_share: λ.
        reward_weight: ω, scales what was learned from rewards.
        kl_weight: κ, scales the tie to the base where there is a reward term.
        huber: c of the pseudo-Huber form of e, None for the square.
    """
    w1_N = normaliser(x0, directions.guided)
    cfg = (direction_error(x0, directions.cfg, huber) / w1_N).mean()
    kl = (direction_error(x0, directions.kl, huber) / w1_N).mean()
    if step >= trunc_steps:
        return Generator(cfg_share * (cfg + kl), cfg.detach(), kl.detach(), torch.zeros_like(kl).detach())
    if reward is None:
        raise ValueError(f"step {step} is before trunc_steps={trunc_steps} and needs a reward direction")
    w2_N = normaliser(x0, reward.guided)
    learned = (direction_error(x0, reward.direction, huber) / w2_N).mean()
    loss = cfg_share * cfg + reward_weight * (1 - cfg_share) * learned + kl_weight * kl
    return Generator(loss, cfg.detach(), kl.detach(), learned.detach())
