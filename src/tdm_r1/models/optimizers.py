"""From `distributed.engine` to the optimizer of a role."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from tdm_r1.config import AdamConfig, DistributedConfig
from tdm_r1.models.optimizer import RoleOptimizer
from tdm_r1.models.world import World


def open_optimizer(
    role: str,
    tensors: Mapping[str, Tensor],
    config: AdamConfig,
    state: Mapping[str, Tensor],
    world: World,
    sharding: DistributedConfig,
) -> RoleOptimizer:
    """Whole in every rank, or sharded over them.

    Args:
        state: what `state()` returned at the end of the stage before; empty for a fresh start.
    """
    if sharding.engine == "none":
        return RoleOptimizer(role, tensors, config, state, world)
    if sharding.zero_stage == 3:
        from tdm_r1.models.partitioned import PartitionedOptimizer

        return PartitionedOptimizer(role, tensors, config, state, world, sharding)
    from tdm_r1.models.sharded import ShardedOptimizer

    return ShardedOptimizer(role, tensors, config, state, world, sharding)
