"""Microbatches that fit a memory budget: chosen once, before the run, and then part of its configuration.

A microbatch is part of the last bits of a result, so that no stage may choose its own: a replay on a smaller machine
would be another run.
"""

from __future__ import annotations

from typing import Final

from tdm_r1.config import RunConfig
from tdm_r1.errors import ConfigError
from tdm_r1.plan.memory import FRAGMENTED, GB, StageMemory, memory_plan
from tdm_r1.presets import revise

DECODED: Final = 64
"""Images of one decoder call, at most."""


def fitted(config: RunConfig, memory_gb: float, processes: int = 1) -> RunConfig:
    """The same run with the largest microbatches that the model of memory allows; the batches stay.

    Args:
        memory_gb: of one device, in 10⁹ bytes.
        processes: of a training stage, each with a device: a step has as much work for each of them.

    Raises:
        ConfigError: when a stage does not fit with the smallest microbatch, or stage 0's batch does not.
    """
    stages = {stage.stage: stage for stage in memory_plan(config, processes).stages}
    budget = memory_gb * GB
    fits = {name: _fitting(stage, budget) for name, stage in stages.items()}
    if (batch := config.distill.batch) > fits["distill_base"] and config.distill.steps:
        raise ConfigError(
            f"distill.batch={batch} does not fit {memory_gb:g} GB: {fits['distill_base']} would, but it is no "
            "microbatch, for the gradient is of all of it",
            hint=f"set distill.batch={fits['distill_base']}, or model.checkpointing=true",
        )
    groups, rows = config.surrogate.minibatch_groups, config.generator.minibatch
    together = fits["surrogate_update"] // config.rollout.group_size
    samples = config.rollout.groups * config.rollout.group_size // config.rollout.shards
    return revise(
        config,
        {
            "model.decode_batch": _decoded(config, stages["rollout"], budget),
            "rollout.microbatch": min(fits["rollout"], samples),
            "surrogate.microbatch_groups": _dealt(groups, together, processes),
            "generator.microbatch": _dealt(rows, fits["generator_update"], processes),
        },
    )


def _dealt(units: int, fit: int, processes: int) -> int:
    """Units of one call: as many as fit, or where processes share them, fewer, so that all have the same work."""
    if processes == 1:
        return min(fit, units)
    rounds = -(-units // (processes * fit))
    return -(-units // (processes * rounds))


def _fitting(stage: StageMemory, budget: float) -> int:
    found = stage.fitting(budget)
    if not found:
        raise ConfigError(
            f"`{stage.stage}` does not fit {budget / GB:g} GB with {stage.unit} rows at once",
            hint="set model.checkpointing=true, model.dtype=bfloat16 or a smaller rollout.group_size",
        )
    return found


def _decoded(config: RunConfig, rollout: StageMemory, budget: float) -> int:
    """Images that the decoder takes at once."""
    image = rollout.decode / rollout.decoded
    found = min(DECODED, int((budget - rollout.fixed) / (1 + FRAGMENTED) / image))
    if found < 1:
        raise ConfigError(
            f"decoding one image does not fit {budget / GB:g} GB", hint=f"model.resolution is {config.model.resolution}"
        )
    return found
