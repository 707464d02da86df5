"""Complete configurations, one function each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

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
    SurrogateConfig,
)
from tdm_r1.errors import ConfigError


def shapes_cpu() -> RunConfig:
    """The demonstration: a 3.6 M-parameter SD3 learns the GenEval rule on two CPU cores."""
    fake = FakeScoreConfig(optimizer=AdamConfig(learning_rate=1e-3))
    return RunConfig(
        preset="shapes_cpu",
        iterations=20,
        distill=DistillConfig(steps=150, batch=64, guidance=3.0, fake=fake, generator=AdamConfig(learning_rate=3e-4)),
        rollout=RolloutConfig(groups=16, group_size=16, shards=2, microbatch=128),
        surrogate=SurrogateConfig(
            optimizer=AdamConfig(learning_rate=5e-4, betas=(0.9, 0.999)),
            beta=10.0,
            t_min=0.3,
            interval="separate",
            updates=6,
            minibatch_groups=16,
            microbatch_groups=16,
            draw_per="group",
            probe_draws=4,
            replay=7,
            ppo_clip=0.0,
            drift_gate=0.05,
        ),
        generator=GeneratorConfig(
            optimizer=AdamConfig(learning_rate=6e-4),
            fake=FakeScoreConfig(optimizer=AdamConfig(learning_rate=2e-3)),
            fake_start="distilled",
            interval="separate",
            updates=10,
            steps_per_trajectory=1,
            minibatch=128,
            microbatch=32,
            guidance=3.0,
        ),
        evaluation=EvaluationConfig(every=10, teacher_guidance=2.0),
    )


def shapes_cpu_full() -> RunConfig:
    """The long run of the same world, at most four hours."""
    return shapes_cpu().model_copy(update={"preset": "shapes_cpu_full", "iterations": 400})


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
            optimizer=fast, minibatch_groups=4, microbatch_groups=2, updates=1, replay=1, reference="ema", beta=2000.0
        ),
        generator=GeneratorConfig(optimizer=fast, minibatch=16, microbatch=8),
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
        reward=RewardConfig(scorer="plane"),
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
    {function.__name__: function for function in (shapes_cpu, shapes_cpu_full, shapes_smoke, plane)}
)


def resolve(preset: str, overrides: Mapping[str, Any]) -> RunConfig:
    """A preset with some knobs set, validated as a whole.

    Args:
        overrides: values by dotted key, e.g. `{"surrogate.beta": 10}`.

    Raises:
        ConfigError: for an unknown preset or key, or a value that its knob refuses.
    """
    if preset not in PRESETS:
        raise ConfigError(f"there is no preset `{preset}`", hint=f"the presets are {', '.join(PRESETS)}")
    tree = PRESETS[preset]().model_dump()
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
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the configuration"
        given = "does not fit together" if isinstance(first["input"], dict) else f"is {first['input']!r}"
        raise ConfigError(
            f"`{place}` {given}: {first['msg']}",
            hint=f"see what it may be with `tdm-r1 config show {preset}`, and in src/tdm_r1/config.py",
        ) from error
