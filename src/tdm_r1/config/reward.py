"""Which black boxes judge an image, and how their values become one reward."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, JsonValue, model_validator

from tdm_r1.addresses import require_no_credentials
from tdm_r1.config.base import Count, NonNegative, Positive, Rate, Section, Share


class ScorerConfig(Section):
    use: str = ""
    """Registered name of the scorer, or `module:Class`; empty is the key under `reward.scorers`."""
    options: dict[str, JsonValue] = {}
    """What the scorer itself can be told; it refuses what it does not know. See `tdm-r1 scorer list`."""
    worlds: tuple[str, ...] = ()
    """Worlds of a mix about whose prompts it is asked; empty is all. Of others it has no value, and no share."""
    parts: dict[str, float] = {}
    """Weights of parts of the score, such as `correct`, whose sum stands for its value. Empty is the value itself."""
    weight: NonNegative = 1.0
    """Share in the reward; 0 only records. A scorer of which less is better counts with a minus sign."""
    scale: float = 1.0
    """The reward takes weight · clip(scale · value + shift, low, high); what is stored stays raw."""
    shift: float = 0.0
    """Added after the scale."""
    low: float | None = None
    """Lower bound of the scaled value; none is unbounded."""
    high: float | None = None
    """Upper bound of the scaled value; none is unbounded."""
    on_error: Literal["drop", "group_mean", "fail"] = "drop"
    """A row that cannot be scored leaves its group, takes the mean of its group, or fails the stage. Never 0."""

    @model_validator(mode="after")
    def _no_credentials(self) -> ScorerConfig:
        require_no_credentials(self.options, "the options of a scorer")
        return self

    @model_validator(mode="after")
    def _bounds_are_ordered(self) -> ScorerConfig:
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(f"low={self.low} is above high={self.high}")
        return self


class RewardConfig(Section):
    scorers: Annotated[dict[str, ScorerConfig], Field(min_length=1)] = {"shapes": ScorerConfig()}
    """Black boxes by name. The first that is asked about a prompt is the one that `evaluation` measures."""
    max_error_rate: Share = 0.1
    """Share of the rows of a shard that a scorer may fail on, before the stage fails."""
    workers: Count | None = None
    """Scoring processes; none is one per core with memory for it, 0 the stage's own process. Never changes a result."""
    time_limit: Rate = 30.0
    """Seconds for one call of a scorer, or 5 × its stated cost if that is more; then its process is killed."""
    recycle_rows: Positive = 4096
    """Rows after which a scoring process is replaced by a fresh one."""
    recycle_memory_mb: Positive = 8192
    """Resident memory above which a scoring process is replaced by a fresh one."""

    @property
    def people(self) -> tuple[str, ...]:
        """Scorers that read what people said: their stage waits for the stage `feedback`."""
        return tuple(name for name, section in self.scorers.items() if (section.use or name) == "feedback")

    @model_validator(mode="after")
    def _something_measures(self) -> RewardConfig:
        if (first := next(iter(self.scorers))) in self.people:
            raise ValueError(
                f"`{first}` is the first scorer, which `evaluation` measures, but nobody judges its images;"
                " name another one before it, with weight 0 if it shall only measure"
            )
        return self
