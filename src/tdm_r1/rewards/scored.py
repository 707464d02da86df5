"""Scored trajectories in memory: what the updates train on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tdm_r1.advantages import Advantages, group_advantages
from tdm_r1.artifacts.records import Paths, Rewards, Rollout
from tdm_r1.config import RewardConfig, SurrogateConfig
from tdm_r1.errors import SchemaError
from tdm_r1.models.samples import joined
from tdm_r1.rewards.aggregate import aggregate


@dataclass(frozen=True)
class Trajectories:
    """N trajectories, group-contiguous, from one or more iterations."""

    states: Tensor
    """[N, K+1, C, H, W] float32."""
    sample_ids: list[str]
    prompt_ids: list[str]
    groups: list[str]
    """Iteration and slot: a group is never a prompt text."""
    advantages: Tensor
    """[N] float64; zero where the scorer failed."""
    valid: Tensor
    """[N] bool."""

    def __len__(self) -> int:
        return len(self.sample_ids)

    def take(self, rows: list[int]) -> Trajectories:
        pick = torch.tensor(rows, dtype=torch.int64)
        return Trajectories(
            states=self.states[pick],
            sample_ids=[self.sample_ids[i] for i in rows],
            prompt_ids=[self.prompt_ids[i] for i in rows],
            groups=[self.groups[i] for i in rows],
            advantages=self.advantages[pick],
            valid=self.valid[pick],
        )

    def rows_by_group(self) -> list[list[int]]:
        """Row numbers of each group, groups in the order of their first row."""
        found: dict[str, list[int]] = {}
        for row, group in enumerate(self.groups):
            found.setdefault(group, []).append(row)
        return list(found.values())

    def informative(self) -> list[list[int]]:
        """Groups in which some advantage differs from zero: the others give no gradient."""
        nonzero = (self.advantages != 0).tolist()
        return [rows for rows in self.rows_by_group() if any(nonzero[row] for row in rows)]

    def group_numbers(self) -> Tensor:
        """[N] int64, 0..G−1."""
        number = {group: index for index, group in enumerate(dict.fromkeys(self.groups))}
        return torch.tensor([number[group] for group in self.groups], dtype=torch.int64)


def join(parts: Sequence[Trajectories]) -> Trajectories:
    """All of them; a single one itself, not a copy."""
    if len(parts) == 1:
        return parts[0]
    return Trajectories(
        states=joined([p.states for p in parts]),
        sample_ids=[s for p in parts for s in p.sample_ids],
        prompt_ids=[s for p in parts for s in p.prompt_ids],
        groups=[s for p in parts for s in p.groups],
        advantages=torch.cat([p.advantages for p in parts]),
        valid=torch.cat([p.valid for p in parts]),
    )


def _check_same_samples(rollout: Rollout | Paths, rewards: Rewards) -> None:
    expected, found = rollout.index["sample_id"], rewards.samples["sample_id"]
    if not expected.equals(found):
        raise SchemaError(
            f"the rewards hold {len(found)} samples that are not the rollout's {len(expected)} in the same order",
            hint="score the rollout again: delete nothing, start a new run root if the rollout changed",
        )


def score(
    shards: Sequence[tuple[Rollout | Paths, Rewards]], iteration: int, config: SurrogateConfig, rewards: RewardConfig
) -> tuple[Trajectories, Advantages]:
    """All shards of one iteration with their group advantages.

    Raises:
        SchemaError: when a shard's rewards are not those of its rollout.
    """
    for rollout, verdicts in shards:
        _check_same_samples(rollout, verdicts)
    table = [row for _, verdicts in shards for row in aggregate(verdicts, rewards).to_pylist()]
    reward = torch.tensor([float("nan") if r["reward"] is None else r["reward"] for r in table], dtype=torch.float64)
    group = torch.tensor([r["group"] for r in table], dtype=torch.int64)
    advantages = group_advantages(reward, group, std=config.advantage_std, clip=config.advantage_clip)
    trajectories = Trajectories(
        states=joined([rollout.states for rollout, _ in shards]),
        sample_ids=[r["sample_id"] for r in table],
        prompt_ids=[r["prompt_id"] for r in table],
        groups=[f"{iteration:05d}-{r['group']:04d}" for r in table],
        advantages=advantages.advantage,
        valid=advantages.valid,
    )
    return trajectories, advantages
