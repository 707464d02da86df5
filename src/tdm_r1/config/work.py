"""How much an iteration draws, measures, and divides among processes."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from tdm_r1.config.base import Count, NonNegative, Positive, Section


class RolloutConfig(Section):
    groups: Positive = 48
    """Prompts per iteration."""
    group_size: Annotated[int, Field(ge=2)] = 24
    """G, trajectories per prompt [paper]."""
    tag_shares: dict[str, NonNegative] = {}
    """How often prompts of a tag are drawn, relative to the others; a tag that is absent has 1."""
    world_shares: dict[str, NonNegative] = {}
    """How often prompts of a world of a mix are drawn, relative to the others; one that is absent has 1. Empty: as
    often as their tags are."""
    shards: Annotated[int, Field(ge=1, le=10_000)] = 1
    """Parts that roll out and are scored independently."""
    microbatch: Positive = 256
    """Trajectories per network call; a fixed partition, so part of the last bits."""

    @model_validator(mode="after")
    def _shards_hold_whole_groups(self) -> RolloutConfig:
        if self.shards > self.groups:
            raise ValueError(f"shards={self.shards} is above groups={self.groups}; a group is never split")
        if self.groups % self.shards:
            raise ValueError(f"groups={self.groups} is not a multiple of shards={self.shards}; a group is never split")
        return self


class EvaluationConfig(Section):
    every: Count = 1
    """Evaluate after every this many iterations, and after the last; 0 only after the last."""
    prompts: Positive = 600
    """Held-out prompts, spread over the tags as the split has them."""
    images_per_prompt: Positive = 1
    """Images per prompt."""
    teacher_images_per_prompt: Count = 0
    """Images per prompt of the rows that sample with guidance, the first of the others'; 0 and more mean all [ours]."""
    teacher_steps: Count = 40
    """Steps of the teacher's row at iteration 0; two network evaluations each. 0 leaves the row out."""
    teacher_guidance: NonNegative = 4.5
    """CFG weight of the teacher's rows."""
    bootstrap: Positive = 1000
    """Resamples of the 95% interval."""
    surrogate_steps: Count = 0
    """Steps of a row that samples from the surrogate itself; 0 leaves it out. A health check: it never generates."""
    split: Literal["test", "train"] = "test"
    """Held-out prompts, or training prompts for tuning without touching the held-out ones."""


class DistributedConfig(Section):
    engine: Literal["none", "deepspeed"] = "none"
    """`none` holds a role and its optimizer whole in every process, `deepspeed` shards the optimizer (ZeRO)."""
    zero_stage: Literal[1, 2, 3] = 2
    """What DeepSpeed shards: 1 the optimizer, 2 the gradients too, 3 the trained role too, between its uses."""
    offload: bool = False
    """Whether DeepSpeed keeps the optimizer in the memory of the host."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """In which DeepSpeed holds and reduces a role that is trained; its masters are float32."""
    checkpoint_every: Count = 0
    """Optimizer steps between checkpoints inside a training stage; 0 stores none, for most stages are short [ours]."""
    timeout_seconds: Positive = 1800
    """How long a rank waits for the others before all of them give up; a rank that dies is noticed at once [ours]."""
