"""The surrogate reward: a diffusion model trained to tell a group's good samples from its bad ones.

Source: DGPO, arXiv 2510.08425 (the group likelihood); TDM-R1, arXiv 2603.07700 (on a deterministic trajectory).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tdm_r1.objectives.distillation import per_sample


def velocity_error(prediction: Tensor, target: Tensor) -> Tensor:
    """ℓ [N] = mean_CHW (u − v)²."""
    return per_sample((target.detach() - prediction) ** 2)


def drift(prediction: Tensor, base_prediction: Tensor) -> Tensor:
    """D [N] = mean_CHW (v_φ − v_base)², the distance of the surrogate from where it began."""
    return per_sample((prediction - base_prediction.detach()) ** 2)


@torch.no_grad()
def ratio_gate(error_N: Tensor, old_error_N: Tensor, advantage_N: Tensor, clip: float) -> Tensor:
    """[N] bool, True where PPO's clip keeps the gradient, with the likelihood ratio ρ = exp(ℓ_old − ℓ).

    A sample with A > 0 is closed at ρ > 1 + c, one with A < 0 at ρ < 1 − c: it already moved as far as it may.
    """
    ratio_N = (old_error_N - error_N).exp()
    moved_N = torch.where(advantage_N > 0, ratio_N > 1 + clip, ratio_N < 1 - clip)
    return ~(moved_N & (advantage_N != 0))


def membership(group_N: Tensor, valid_N: Tensor) -> Tensor:
    """[G, N] bool: sample n is a valid member of the g-th group number in sorted order. G counts empty groups too."""
    groups_G = torch.tensor(sorted(set(group_N.tolist())), dtype=group_N.dtype, device=group_N.device)
    return (group_N == groups_G[:, None]) & valid_N


@torch.no_grad()
def group_logits(
    error_N: Tensor, reference_error_N: Tensor, advantage_N: Tensor, member_GN: Tensor, *, beta: float
) -> Tensor:
    """s_g [G] = (β/|g|) Σ_{i∈g} A_i (ℓ_i − ℓ_ref,i), detached: positive while the surrogate ranks g wrongly.

    As Σ_g A = 0, a constant added to the errors of a group, that is to its implicit rewards, cancels.
    """
    gain_N = advantage_N * (error_N - reference_error_N)
    return beta * torch.where(member_GN, gain_N, 0).sum(1) / member_GN.sum(1).clamp_min(1)


@dataclass(frozen=True)
class Gates:
    """Which samples get no gradient, and why. A default gate closes nothing."""

    old_error: Tensor | None = None
    """[N] ℓ_old of the lagged copy φ_old, for `ratio_gate`; None for no such gate."""
    clip: float = 1e-3
    """Range c of the ratio."""
    drift: Tensor | None = None
    """[N] D, for the drift gate; None for no such gate."""
    drift_limit: float = 0.05
    """A sample with D above it is closed."""

    @torch.no_grad()
    def closed(self, error_N: Tensor, advantage_N: Tensor) -> tuple[Tensor, Tensor]:
        """Two [N] bool masks: closed by the ratio, closed by the drift."""
        none_N = torch.zeros_like(error_N, dtype=torch.bool)
        ratio = none_N if self.old_error is None else ~ratio_gate(error_N, self.old_error, advantage_N, self.clip)
        return ratio, none_N if self.drift is None else self.drift > self.drift_limit


@dataclass(frozen=True)
class GroupPreference:
    loss: Tensor
    """[] with gradient: L_pref of (4)."""
    logits: Tensor
    """[G] s_g, detached, in the order of the sorted group numbers."""
    clipped_fraction: Tensor
    """[] share of the valid samples whose gradient the ratio gate set to zero."""
    drifted_fraction: Tensor
    """[] share of the valid samples whose gradient the drift gate set to zero."""


def group_preference_loss(
    error_N: Tensor,
    reference_error_N: Tensor,
    advantage_N: Tensor,
    group_N: Tensor,
    *,
    beta: float,
    gates: Gates | None = None,
    negative_weight: float = 1.0,
    weight_N: Tensor | None = None,
    valid_N: Tensor | None = None,
) -> GroupPreference:
    """Lower the denoising error of better-than-average samples, raise that of the rest: equation (4).

    L = mean_g (1/|g|) Σ_{i∈g} sg σ(s_g) A_i ℓ_i, where |g| counts the valid samples; for equal groups this is the
    mean over all samples. Ungated, its gradient is that of mean_g −log σ(−s_g), over β (see
    `test_the_gradient_is_that_of_the_group_likelihood`). Gates and weights act on the gradient of ℓ_i, never on s_g.
    A group without valid samples counts in mean_g, so that ranks with equally many groups average as one.

    Args:
        error_N: [N] ℓ of the trained model, requires grad.
        reference_error_N: [N] ℓ_ref, of the base or of the moving reference.
        advantage_N: [N] zero mean within each group, in reward standard deviations.
        group_N: [N] int64; each group must be complete.
        beta: sharpness of the preference, unitless.
        gates: the PPO clip and the drift gate, none by default.
        negative_weight: scale of the gradient of samples with A < 0; other than 1 breaks Σ_{G⁺}w = Σ_{G⁻}w.
        weight_N: [N] further scale of each sample's gradient, such as (j+1)/K where samples differ in j.
        valid_N: [N] bool, False for samples without a reward.
    """
    valid_N = torch.ones_like(error_N, dtype=torch.bool) if valid_N is None else valid_N.to(error_N.device)
    advantage_N, member_GN = advantage_N.to(error_N), membership(group_N.to(error_N.device), valid_N)
    logits_G = group_logits(error_N, reference_error_N, advantage_N, member_GN, beta=beta)
    clipped_N, drifted_N = (gates or Gates()).closed(error_N, advantage_N)

    share_G = logits_G.sigmoid() / member_GN.sum(1).clamp_min(1)
    scale_N = torch.where(member_GN, share_G[:, None], 0).sum(0) * advantage_N
    scale_N = torch.where(advantage_N < 0, negative_weight * scale_N, scale_N)
    scale_N = scale_N if weight_N is None else scale_N * weight_N.to(scale_N)
    loss = torch.where(valid_N & ~clipped_N & ~drifted_N, scale_N * error_N, 0).sum() / len(member_GN)
    count = valid_N.sum().clamp_min(1)
    return GroupPreference(loss, logits_G, (valid_N & clipped_N).sum() / count, (valid_N & drifted_N).sum() / count)


@dataclass(frozen=True)
class Surrogate:
    loss: Tensor
    """[] with gradient: L_φ."""
    preference: Tensor
    """[] L_pref."""
    drift: Tensor
    """[] mean D."""


def surrogate_loss(
    preference: GroupPreference, drift_N: Tensor, *, step: int, steps: int, kl_weight: float = 1e-3
) -> Surrogate:
    """L_φ = ((j+1)/K) (L_pref + β_kl mean_N D), for a microbatch whose states come from step j = 0..K−1.

    The gates do not act on D: a sample that drifted too far is still drawn back.
    """
    mean_drift = drift_N.mean()
    loss = (step + 1) / steps * (preference.loss + kl_weight * mean_drift)
    return Surrogate(loss, preference.loss.detach(), mean_drift.detach())
