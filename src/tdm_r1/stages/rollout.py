"""Stage `rollout`: groups of deterministic trajectories of the live generator."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import torch

from tdm_r1.artifacts.records import PromptSet, Rollout
from tdm_r1.config import RunConfig
from tdm_r1.models.adapters import Adapter, RoleTensors
from tdm_r1.models.backbone import Backbone
from tdm_r1.models.prompts import PromptTable, PromptTexts
from tdm_r1.models.sampler import trajectory
from tdm_r1.rng import Keys


def slots_of(shard: int, config: RunConfig) -> range:
    """Prompt slots of a shard."""
    per_shard = config.rollout.groups // config.rollout.shards
    return range(shard * per_shard, (shard + 1) * per_shard)


def drawn_prompts(texts: PromptTexts, *, shard: int, config: RunConfig, keys: Keys) -> list[str]:
    """A prompt id for each slot of this shard."""
    shares = texts.shares(config.rollout.tag_shares, config.rollout.world_shares)
    return texts.draw(slots_of(shard, config), keys, shares)


@torch.no_grad()
def rollout(
    prompts: PromptSet,
    drawn: Sequence[str],
    generator: RoleTensors,
    *,
    shard: int,
    backbone: Backbone,
    config: RunConfig,
    keys: Keys,
) -> Rollout:
    """Sample `group_size` K-step trajectories for each prompt slot of this shard, and decode their ends.

    Each sample has its own initial noise, also inside a group.

    Args:
        prompts: at least those of `drawn`.
        drawn: as `drawn_prompts` gives them.

    Returns:
        N = slots · group_size trajectories, group-contiguous, states [N, K+1, C, H, W].
    """
    size = config.rollout.group_size
    slots, table = slots_of(shard, config), PromptTable(prompts)
    prompt_ids = [prompt_id for prompt_id in drawn for _ in range(size)]
    groups = [slot for slot in slots for _ in range(size)]
    samples = [f"{keys.iteration:05d}-{slot:04d}-{member:03d}" for slot in slots for member in range(size)]

    weights = Adapter(backbone.base(), config.model.adapter).apply(generator)
    noise = keys.normals("rollout/noise", samples, shape=backbone.latent_shape)
    states = trajectory(
        backbone, noise, table.condition(prompt_ids), weights, config.sampler, config.rollout.microbatch
    )
    return Rollout(
        index=pa.table(
            {
                "sample_id": pa.array(samples, pa.string()),
                "prompt_id": pa.array(prompt_ids, pa.string()),
                "group": pa.array(groups, pa.int64()),
            }
        ),
        images=backbone.decode(states[:, -1]),
        states=states,
    )
