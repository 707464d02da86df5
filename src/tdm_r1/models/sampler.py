"""Whole trajectories of a backbone: the few-step generator's, and the teacher's under guidance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

import torch
from torch import Tensor

from tdm_r1.config import SamplerConfig
from tdm_r1.models.backbone import Backbone, Condition, Weights, concatenate
from tdm_r1.models.factored import Factors, Rows, Share
from tdm_r1.sampling import dpmpp2m_step, euler_step, guide, predict_x0, sigma_grid


def velocity_at(backbone: Backbone, x: Tensor, sigma: float | Tensor, condition: Condition, weights: Weights) -> Tensor:
    """The network at one level for the whole batch, or at [N] levels."""
    levels = sigma.to(x) if isinstance(sigma, Tensor) else torch.full((len(x),), sigma, dtype=x.dtype)
    return backbone.velocity(x, levels, condition, weights)


def paired_velocity(
    backbone: Backbone, x: Tensor, sigma: float | Tensor, condition: Condition, empty: Condition, weights: Weights
) -> tuple[Tensor, Tensor]:
    """v_c and v_∅ in one call of twice the batch."""
    both = concatenate(condition, condition.null(empty))
    levels = torch.cat([sigma, sigma]) if isinstance(sigma, Tensor) else sigma
    v_c, v_null = velocity_at(backbone, torch.cat([x, x]), levels, both, weights).chunk(2)
    return v_c, v_null


@dataclass(frozen=True)
class Query:
    """One role asked about one batch."""

    x: Tensor
    """[N, C, H, W]."""
    sigma: Tensor
    """[N]."""
    condition: Condition
    weights: Weights


def answers(backbone: Backbone, queries: Sequence[Query]) -> list[Tensor]:
    """The velocity of each query.

    Roles beside the base are asked in one pass over the rows of all queries; other roles one after the other, where
    queries of one role that follow each other share a call.
    """
    if any(isinstance(query.weights, Factors) for query in queries) and all(
        isinstance(query.weights, Factors) or not query.weights for query in queries
    ):
        roles = [query.weights if isinstance(query.weights, Factors) else None for query in queries]
        return _asked(backbone, queries, Rows([Share(len(q.x), r) for q, r in zip(queries, roles, strict=True)]))
    found: list[Tensor] = []
    for _, same in groupby(queries, key=lambda query: id(query.weights)):
        together = list(same)
        found += _asked(backbone, together, together[0].weights)
    return found


def _asked(backbone: Backbone, queries: Sequence[Query], weights: Weights) -> list[Tensor]:
    """One call for the rows of all these."""
    x, sigma = torch.cat([query.x for query in queries]), torch.cat([query.sigma for query in queries])
    condition = concatenate(*(query.condition for query in queries))
    return list(velocity_at(backbone, x, sigma, condition, weights).split([len(query.x) for query in queries]))


def path(
    backbone: Backbone, noise: Tensor, condition: Condition, weights: Weights, sampler: SamplerConfig
) -> list[Tensor]:
    """The K+1 states, [N, C, H, W] each, of the deterministic path from `noise`; gradients pass through every step."""
    grid = sigma_grid(sampler.steps, sampler.shift, replicate=sampler.replicate)
    states, previous, previous_sigma = [noise], None, 1.0
    for sigma, sigma_next in pairwise(grid):
        x = states[-1]
        v = velocity_at(backbone, x, sigma, condition, weights)
        if sampler.solver == "euler":
            x = euler_step(x, v, sigma, sigma_next)
        else:
            x0 = predict_x0(x, v, sigma)
            x = dpmpp2m_step(x, x0, sigma, sigma_next, x0_previous=previous, sigma_previous=previous_sigma)
            previous, previous_sigma = x0, sigma
        states.append(x)
    return states


@torch.no_grad()
def trajectory(
    backbone: Backbone, noise: Tensor, condition: Condition, weights: Weights, sampler: SamplerConfig, microbatch: int
) -> Tensor:
    """The deterministic K-step path of each sample, without guidance.

    Args:
        noise: [N, C, H, W] float32, the state at σ_0.

    Returns:
        [N, K+1, C, H, W] float32; entry 0 is the noise, entry K the clean latent.
    """
    parts = []
    for start in range(0, len(noise), microbatch):
        rows = slice(start, start + microbatch)
        parts.append(torch.stack(path(backbone, noise[rows], condition.take(rows), weights, sampler), dim=1))
    return torch.cat(parts)


@torch.no_grad()
def guided_sample(
    backbone: Backbone,
    noise: Tensor,
    condition: Condition,
    empty: Condition,
    weights: Weights,
    *,
    steps: int,
    shift: float,
    guidance: float,
    microbatch: int,
) -> Tensor:
    """Clean latents [N, C, H, W] after `steps` Euler steps with CFG: two network evaluations per step."""
    grid = sigma_grid(steps, shift)
    parts = []
    for start in range(0, len(noise), microbatch):
        rows = slice(start, start + microbatch)
        x, cond = noise[rows], condition.take(rows)
        for sigma, sigma_next in pairwise(grid):
            v_c, v_null = paired_velocity(backbone, x, sigma, cond, empty, weights)
            x = euler_step(x, guide(v_null, v_c, guidance), sigma, sigma_next)
        parts.append(x)
    return torch.cat(parts)
