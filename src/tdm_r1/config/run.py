"""All sections of a run, and what must hold between them."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import Field, PrivateAttr, model_validator

from tdm_r1.config.base import Count, Section
from tdm_r1.config.model import AdapterConfig, ModelConfig, NumericsConfig, SamplerConfig
from tdm_r1.config.reward import RewardConfig
from tdm_r1.config.training import DistillConfig, GeneratorConfig, SurrogateConfig
from tdm_r1.config.work import DistributedConfig, EvaluationConfig, RolloutConfig

WORLDS: Final = ("shapes", "plane", "geneval", "ocr", "words")


MOST_ITERATIONS: Final = 99_999
"""Of a run: their folders have five digits."""


class RunConfig(Section):
    preset: str
    """Name of the preset that this configuration started from."""
    seed: Count = 0
    """Root of every random draw."""
    world: str = "shapes"
    """Prompts of both splits, with what a scorer must know to judge their images; `geneval+ocr` mixes two worlds."""
    iterations: Annotated[int, Field(ge=1, le=MOST_ITERATIONS)] = 100
    """Iterations of reinforcement; `tdm-r1 extend` adds more to a run."""
    numerics: NumericsConfig = NumericsConfig()
    """What the last bits of a result depend on."""
    model: ModelConfig = ModelConfig()
    """The frozen base, and how a role differs from it."""
    sampler: SamplerConfig = SamplerConfig()
    """The few-step path of the generator."""
    distill: DistillConfig = DistillConfig()
    """Stage 0: from the base to the few-step generator."""
    rollout: RolloutConfig = RolloutConfig()
    """How many trajectories an iteration draws, and in which parts."""
    reward: RewardConfig = RewardConfig()
    """Which black boxes score an image, and how their values become one reward."""
    surrogate: SurrogateConfig = SurrogateConfig()
    """How the differentiable reward is learned."""
    generator: GeneratorConfig = GeneratorConfig()
    """How the generator follows it."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """When and on what the generator is measured."""
    distributed: DistributedConfig = DistributedConfig()
    """How the processes of one training stage work together; `torchrun` says how many they are."""

    _declared: int | None = PrivateAttr(default=None)

    @property
    def declared(self) -> RunConfig:
        """As `run.json` has it: `iterations` without what `tdm-r1 extend` added, which no digest counts."""
        return self if self._declared is None else self.extended(self._declared)

    def extended(self, iterations: int) -> RunConfig:
        """The same configuration with another length; `declared` still tells the first one."""
        found = self.model_copy(update={"iterations": iterations})
        first = self._declared or self.iterations
        found._declared = None if iterations == first else first
        return found

    @property
    def worlds(self) -> tuple[str, ...]:
        """Those that are mixed, in order; usually one."""
        return tuple(self.world.split("+"))

    @property
    def surrogate_adapter(self) -> AdapterConfig:
        """Of the surrogate."""
        return self.surrogate.adapter or self.model.adapter

    @property
    def fake_adapter(self) -> AdapterConfig:
        """Of the fake score."""
        return self.model.fake_adapter or self.model.adapter

    @model_validator(mode="after")
    def _worlds_are_judged(self) -> RunConfig:
        worlds = self.worlds
        if unknown := [name for name in worlds if name not in WORLDS]:
            raise ValueError(
                f"there is no world `{unknown[0]}`, only {', '.join(WORLDS)} and mixes such as geneval+ocr"
            )
        if len(set(worlds)) < len(worlds):
            raise ValueError(f"world={self.world} names a world twice")
        named = {f"reward.scorers.{name}.worlds": section.worlds for name, section in self.reward.scorers.items()}
        for key, names in {**named, "rollout.world_shares": self.rollout.world_shares}.items():
            if strange := [name for name in names if name not in worlds]:
                raise ValueError(f"{key} has `{strange[0]}`, but the world is {self.world}")
        scorers = list(self.reward.scorers.values())
        asked = [one.worlds or worlds for one in [one for one in scorers if one.weight] or scorers]
        if alone := [name for name in worlds if not any(name in judged for judged in asked)]:
            raise ValueError(f"no scorer with a weight is asked about prompts of `{alone[0]}`")
        return self

    @model_validator(mode="after")
    def _steps_exist(self) -> RunConfig:
        if self.generator.steps_per_trajectory > self.sampler.steps:
            raise ValueError(
                f"generator.steps_per_trajectory={self.generator.steps_per_trajectory} "
                f"but sampler.steps={self.sampler.steps}"
            )
        return self

    @model_validator(mode="after")
    def _optimizers_fit(self) -> RunConfig:
        distill, generator = self.distill, self.generator
        adams = (distill.fake.optimizer, distill.generator, self.surrogate.optimizer, generator.optimizer)
        eight = any(adam.kind == "adamw8bit" for adam in (*adams, generator.fake.optimizer))
        if eight and self.distributed.engine == "deepspeed":
            raise ValueError(
                "an optimizer has kind=adamw8bit, but distributed.engine=deepspeed shards moments in float32"
            )
        return self

    @model_validator(mode="after")
    def _generator_can_follow(self) -> RunConfig:
        section, steps = self.generator, self.sampler.steps
        if section.start > self.iterations:
            raise ValueError(f"generator.start={section.start} but iterations={self.iterations}: it would never move")
        if section.path == "trajectory" and (section.steps_per_trajectory, section.trunc_steps) != (1, steps):
            raise ValueError(
                "generator.path=trajectory judges the final image alone: it needs generator.steps_per_trajectory=1 and "
                f"generator.trunc_steps={steps}, not {section.steps_per_trajectory} and {section.trunc_steps}"
            )
        return self
