"""Trajectories of an iteration as the generator trains on them, and the order in which optimizer steps take them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Literal

import torch
from torch import Tensor

from tdm_r1.artifacts.records import Paths, Rollout


@dataclass(frozen=True)
class Samples:
    """The trajectories of this iteration; the generator needs no rewards, the surrogate has them."""

    states: Tensor
    """[N, K+1, C, H, W]."""
    sample_ids: list[str]
    prompt_ids: list[str]
    groups: list[int]

    @staticmethod
    def of(shards: Sequence[Rollout | Paths]) -> Samples:
        rows = [row for shard in shards for row in shard.index.to_pylist()]
        return Samples(
            states=joined([shard.states for shard in shards]),
            sample_ids=[row["sample_id"] for row in rows],
            prompt_ids=[row["prompt_id"] for row in rows],
            groups=[row["group"] for row in rows],
        )


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Rows of all parts; a single part itself, not a copy."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def rows_by_group(groups: Sequence[int], order: Sequence[int], minibatch_of: Literal["groups", "samples"]) -> list[int]:
    """Rows in the order in which optimizer steps take them: group after group, or one of every group in turn.

    Args:
        groups: of each row.
        order: of the groups.
    """
    members: dict[int, list[int]] = {group: [] for group in order}
    for row, group in enumerate(groups):
        members[group].append(row)
    if minibatch_of == "groups":
        return [row for rows in members.values() for row in rows]
    return [row for turn in zip_longest(*members.values()) for row in turn if row is not None]
