"""Rewards to group-relative advantages, in float64, the same for any order of the samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Std = Literal["global", "group", "none"]
EPSILON = 1e-4
"""Added to the standard deviation, in units of the reward."""


@dataclass(frozen=True)
class Advantages:
    """What the surrogate trains on, one row per sample in the order of the rewards given."""

    advantage: Tensor
    """[N] float64. Zero for a sample without a reward."""
    valid: Tensor
    """[N] bool. False where the scorer failed; such a sample takes no part in its group."""
    std: float
    """Population standard deviation of all valid rewards, whatever `std` was chosen."""
    zero_variance_groups: int
    """Groups whose valid rewards are all equal (also those with one or none): no gradient comes from them."""
    clipped_fraction: float
    """Share of the valid samples whose advantage the clip changed."""
    largest_group_sum: float
    """max_g |Σ_g A| after the clip: rounding only where nothing was clipped, else log Z is not cancelled exactly."""


def mean(values: Sequence[float]) -> float:
    """The mean from the exactly rounded sum, so that the order of the values cannot matter."""
    return math.fsum(values) / len(values)


def population_std(values: Sequence[float]) -> float:
    """√(mean (v − mean)²), and exactly 0 for equal values, or none."""
    if not values or min(values) == max(values):
        return 0.0
    centre = mean(values)
    return math.sqrt(mean([(value - centre) ** 2 for value in values]))


def rows_by_group(group_N: Tensor, scored_N: Tensor) -> dict[int, list[int]]:
    """The scored rows of every group; a group of which no row was scored keeps its place, empty."""
    rows: dict[int, list[int]] = {group: [] for group in group_N.tolist()}
    for row, (group, scored) in enumerate(zip(group_N.tolist(), scored_N.tolist(), strict=True)):
        if scored:
            rows[group].append(row)
    return rows


def standardise(values: Sequence[float], scale: float) -> list[float]:
    """(v − mean)/scale, and exactly 0 for equal values."""
    if population_std(values) == 0:
        return [0.0] * len(values)
    centre = mean(values)
    return [(value - centre) / scale for value in values]


def group_advantages(
    reward_N: Tensor, group_N: Tensor, *, std: Std = "global", clip: float = 5.0, valid_N: Tensor | None = None
) -> Advantages:
    """A = clip((r − mean of the group) / (std + 1e-4), ±5).

    Before the clip Σ_group A = 0, which cancels log Z(c) of the implicit reward. After it only this holds:
    the sign of each A is kept, |A| ≤ clip, and |Σ_group A| is at most what the clip took from that group.
    Source: TDM-R1, arXiv 2603.07700; GRPO's advantage, arXiv 2402.03300.

    Args:
        reward_N: [N] rewards; NaN or ±∞ marks a sample that could not be scored.
        group_N: [N] int64, one value per (iteration, prompt slot), never per prompt text.
        std: scale by the population std of all valid rewards, by the group's, or not at all.
        clip: largest |A|, ∞ for none.
        valid_N: [N] bool, a further mask of the samples that count.
    """
    scored_N = reward_N.isfinite() if valid_N is None else reward_N.isfinite() & valid_N
    rewards: list[float] = reward_N.double().tolist()
    groups = {group: (rows, [rewards[row] for row in rows]) for group, rows in rows_by_group(group_N, scored_N).items()}
    spread = population_std([value for _, values in groups.values() for value in values])

    advantage, clipped, sums = [0.0] * len(rewards), 0, [0.0]
    for rows, values in groups.values():
        scale = {"global": spread + EPSILON, "group": population_std(values) + EPSILON, "none": 1.0}[std]
        for row, raw in zip(rows, standardise(values, scale), strict=True):
            advantage[row] = max(-clip, min(clip, raw))
            clipped += abs(raw) > clip
        sums.append(abs(math.fsum(advantage[row] for row in rows)))
    return Advantages(
        advantage=torch.tensor(advantage, dtype=torch.float64),
        valid=scored_N,
        std=spread,
        zero_variance_groups=sum(population_std(values) == 0 for _, values in groups.values()),
        clipped_fraction=clipped / max(int(scored_N.sum()), 1),
        largest_group_sum=max(sums),
    )
