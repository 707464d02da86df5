"""Complete configurations, one function each."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final, TypeVar

from pydantic import ValidationError

from tdm_r1.config import (
    AdamConfig,
    AdapterConfig,
    DistillConfig,
    EvaluationConfig,
    FakeScoreConfig,
    GeneratorConfig,
    ModelConfig,
    NumericsConfig,
    RewardConfig,
    RolloutConfig,
    RunConfig,
    ScorerConfig,
    Section,
    SurrogateConfig,
)
from tdm_r1.errors import ConfigError
from tdm_r1.published import PUBLISHED

AnySection = TypeVar("AnySection", bound=Section)


def shapes_cpu_full() -> RunConfig:
    """The long run of the world `shapes`, at most four hours: a 3.6 M-parameter SD3 learns the GenEval rule."""
    fake = FakeScoreConfig(optimizer=AdamConfig(learning_rate=2e-4), teacher_weight=0.0)
    feed_forward = ("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2")
    lora = AdapterConfig(targets=(*AdapterConfig().targets, *feed_forward))
    generator = AdamConfig(learning_rate=3e-4)
    return RunConfig(
        preset="shapes_cpu_full",
        iterations=240,
        model=ModelConfig(adapter=lora, fake_adapter=AdapterConfig(kind="full")),
        distill=DistillConfig(steps=400, fake_updates=3, batch=64, guidance=3.0, fake=fake, generator=generator),
        rollout=RolloutConfig(
            groups=64,
            group_size=16,
            shards=2,
            microbatch=128,
            tag_shares={"two_object": 2.0, "counting": 1.5, "position": 0.75, "color_attr": 2.0},
        ),
        surrogate=SurrogateConfig(
            adapter=AdapterConfig(kind="full"),
            optimizer=AdamConfig(learning_rate=2e-4, betas=(0.9, 0.999)),
            beta=100.0,
            beta_kl=1.0,
            t_min=0.6,
            state_weighting="last",
            minibatch_groups=64,
            microbatch_groups=8,
            draw_per="group",
            draws=4,
            probe_draws=1,
            average=0.97,
            ppo_clip=0.0,
            drift_gate=0.2,
        ),
        generator=GeneratorConfig(
            optimizer=AdamConfig(learning_rate=2e-4),
            fake=fake,
            fake_start="distilled",
            fake_updates=2,
            start=9,
            updates=8,
            path="trajectory",
            steps_per_trajectory=1,
            minibatch=128,
            minibatch_of="samples",
            microbatch=64,
            guidance=5.0,
            surrogate_guidance=1.0,
            t_min=0.55,
            cfg_share=0.5,
            reward_weight=12.0,
        ),
        reward=RewardConfig(
            scorers={
                "shapes": ScorerConfig(weight=0.5),
                "whole": ScorerConfig(use="shapes", options={"kind": "correct"}, weight=0.5),
            },
            workers=0,
        ),
        evaluation=EvaluationConfig(every=10, images_per_prompt=4, teacher_images_per_prompt=2, teacher_guidance=3.0),
    )


def shapes_cpu() -> RunConfig:
    """The demonstration: twenty minutes of the long run on two CPU cores, from the TDM that it distilled."""
    full = shapes_cpu_full()
    start = full.distill.model_copy(update={"adapter": "embedded:shapes_tdm", "steps": 0, "warmup": 40})
    return full.model_copy(update={"preset": "shapes_cpu", "iterations": 20, "distill": start})


def words_cpu() -> RunConfig:
    """The world `words`, judged by RapidOCR: distillation and reinforcement within an hour on two CPU cores."""
    full = shapes_cpu_full()
    return full.model_copy(
        update={
            "preset": "words_cpu",
            "world": "words",
            "iterations": 60,
            "model": full.model.model_copy(update={"source": "embedded:words"}),
            "distill": full.distill.model_copy(update={"steps": 250}),
            "rollout": full.rollout.model_copy(update={"tag_shares": {}}),
            "surrogate": full.surrogate.model_copy(update={"updates": 4, "minibatch_groups": 16}),
            "generator": full.generator.model_copy(
                update={"optimizer": AdamConfig(learning_rate=1e-4), "start": 5, "guidance": 4.0, "reward_weight": 30.0}
            ),
            "reward": RewardConfig(scorers={"words": ScorerConfig(parts={"similarity": 0.5, "correct": 0.5})}),
        }
    )


def shapes_smoke() -> RunConfig:
    """Every stage twice in under a minute: for tests of the machinery, not of learning."""
    fast = AdamConfig(learning_rate=3e-4)
    return RunConfig(
        preset="shapes_smoke",
        iterations=2,
        numerics=NumericsConfig(threads=1),
        model=ModelConfig(adapter=AdapterConfig(rank=4, alpha=8.0)),
        distill=DistillConfig(steps=2, batch=8),
        rollout=RolloutConfig(groups=4, group_size=4, shards=2, microbatch=8),
        surrogate=SurrogateConfig(
            adapter=AdapterConfig(kind="full"),
            optimizer=fast,
            minibatch_groups=4,
            microbatch_groups=2,
            updates=1,
            replay=1,
            reference="ema",
            beta=2000.0,
        ),
        generator=GeneratorConfig(optimizer=fast, minibatch=16, microbatch=8),
        reward=RewardConfig(workers=0),
        evaluation=EvaluationConfig(every=1, prompts=12, teacher_steps=2, bootstrap=50),
    )


def plane() -> RunConfig:
    """The wind tunnel: points in a plane, a whole reinforcement in under a minute on one core."""
    fake = FakeScoreConfig(optimizer=AdamConfig(learning_rate=3e-3))
    generator = AdamConfig(learning_rate=1e-3)
    return RunConfig(
        preset="plane",
        iterations=60,
        numerics=NumericsConfig(threads=1),
        model=ModelConfig(backbone="plane", source="embedded:plane", adapter=AdapterConfig(kind="full")),
        world="plane",
        reward=RewardConfig(scorers={"plane": ScorerConfig()}, workers=0),
        distill=DistillConfig(steps=300, batch=128, interval="separate", guidance=1.25, fake=fake, generator=generator),
        rollout=RolloutConfig(groups=16, group_size=16),
        surrogate=SurrogateConfig(
            minibatch_groups=16, microbatch_groups=16, updates=8, beta=10.0, t_min=0.25, ppo_clip=0.0
        ),
        generator=GeneratorConfig(
            optimizer=generator,
            fake=fake,
            fake_start="distilled",
            interval="separate",
            updates=4,
            minibatch=256,
            guidance=1.25,
            surrogate_guidance=1.0,
            cfg_share=0.0,
            reward_weight=2.0,
        ),
        evaluation=EvaluationConfig(every=20, prompts=8, images_per_prompt=128, teacher_guidance=1.0),
    )


PRESETS: Final[Mapping[str, Callable[[], RunConfig]]] = MappingProxyType(
    {
        function.__name__: function
        for function in (shapes_cpu, shapes_cpu_full, shapes_smoke, words_cpu, plane, *PUBLISHED)
    }
)


def parse_overrides(pairs: list[str] | None, flag: str = "--set", example: str = "surrogate.beta=10") -> dict[str, Any]:
    """`a.b=c` pairs of a repeated flag to values; what is not JSON is a string."""
    overrides: dict[str, Any] = {}
    for pair in pairs or ():
        key, separator, text = pair.partition("=")
        if not separator:
            raise ConfigError(f"{flag} {pair!r} has no `=`", hint=f"write {flag} {example}")
        try:
            overrides[key] = json.loads(text)
        except json.JSONDecodeError:
            overrides[key] = text
    return overrides


def resolve(preset: str, overrides: Mapping[str, Any]) -> RunConfig:
    """A preset with some knobs set, validated as a whole.

    Args:
        overrides: values by dotted key, e.g. `{"surrogate.beta": 10}`.

    Raises:
        ConfigError: for an unknown preset or key, or a value that its knob refuses.
    """
    if preset not in PRESETS:
        raise ConfigError(f"there is no preset `{preset}`", hint=f"the presets are {', '.join(PRESETS)}")
    return revise(PRESETS[preset](), overrides)


def revise(config: RunConfig, overrides: Mapping[str, Any]) -> RunConfig:
    """A configuration with some knobs set, validated as a whole.

    Raises:
        ConfigError: for an unknown key, or a value that its knob refuses.
    """
    tree = config.model_dump()
    for key, value in overrides.items():
        node = tree
        *folders, leaf = key.split(".")
        for depth, name in enumerate(folders):
            if not isinstance(node.get(name), dict):
                raise ConfigError(
                    f"`{key}` is no knob: there is no section `{'.'.join(folders[: depth + 1])}`",
                    hint=f"at that place there are {', '.join(node)}",
                )
            node = node[name]
        if leaf not in node:
            raise ConfigError(f"`{key}` is no knob", hint=f"its section has {', '.join(node)}")
        node[leaf] = value
    return _validated(RunConfig, tree, hint=f"see what it may be with `tdm-r1 config show {config.preset}`, and")


def replace(section: AnySection, values: Mapping[str, Any]) -> AnySection:
    """A section with some knobs set, validated.

    Raises:
        ConfigError: for an unknown knob, or a value that its knob refuses.
    """
    return _validated(type(section), {**section.model_dump(), **values}, hint="see what it may be")


def _validated(section: type[AnySection], tree: Mapping[str, Any], *, hint: str) -> AnySection:
    try:
        return section.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the configuration"
        given = "does not fit together" if isinstance(first["input"], dict) else f"is {first['input']!r}"
        raise ConfigError(f"`{place}` {given}: {first['msg']}", hint=f"{hint} in src/tdm_r1/config/") from error
