"""Which scorers an evaluation asks: the suite's own, those of the training reward, and those that were named."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import numpy as np
from pydantic import ValidationError

from tdm_r1.config import RewardConfig, RunConfig, ScorerConfig
from tdm_r1.errors import ConfigError
from tdm_r1.rewards.ask import Question
from tdm_r1.rewards.judges import Judges
from tdm_r1.runtime.suites.subject import NO_RUN
from tdm_r1.runtime.suites.suite import Suite

SIDE = 64
"""Of the picture that every scorer is asked about before anything is drawn."""


def named_scorers(pairs: Sequence[str], known: Mapping[str, ScorerConfig]) -> dict[str, ScorerConfig]:
    """`NAME` or `NAME=JSON` of a repeated flag; a bare name that the run knows has the run's options.

    Raises:
        ConfigError: for JSON that is no scorer's section.
    """
    found = {}
    for pair in pairs:
        name, separator, text = pair.partition("=")
        try:
            own = ScorerConfig.model_validate(json.loads(text)) if separator else known.get(name, ScorerConfig())
        except (ValidationError, ValueError) as error:
            first = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
            raise ConfigError(
                f"--scorer {name}=… is no section of a scorer: {first}",
                hint="""write --scorer 'clipscore={"options": {"weights": "FOLDER"}}'""",
            ) from error
        found[name] = own.model_copy(update={"worlds": own.worlds if separator else ()})
    return found


def reward_of(suite: Suite, config: RunConfig) -> RewardConfig | None:
    """The training reward on this suite's prompts, when the run was trained on prompts of such a world; None else."""
    shared = set(config.worlds) & set(suite.worlds)
    if config.preset == NO_RUN or not shared:
        return None
    asked = {n: one for n, one in config.reward.scorers.items() if shared & set(one.worlds or config.worlds)}
    return config.reward.model_copy(update={"scorers": asked})


def judging(
    suite: Suite, config: RunConfig, named: Mapping[str, ScorerConfig], workers: int | None
) -> tuple[RewardConfig, RewardConfig | None]:
    """All scorers of an evaluation, and the training reward if it is measured here.

    The suite's own scorers come first, with the run's options where the run uses them too.

    Raises:
        ConfigError: when there is none, or one of the training reward is told something else.
    """
    reward, known = reward_of(suite, config), config.reward.scorers
    scorers: dict[str, ScorerConfig] = {}
    for world in suite.worlds:  # a world's own scorer has its name
        own = named.get(world) or known.get(world) or ScorerConfig()
        scorers[world] = own.model_copy(update={"worlds": (world,) if len(suite.worlds) > 1 else ()})
    for name, section in (reward.scorers if reward else {}).items():
        shared = tuple(world for world in section.worlds or config.worlds if world in suite.worlds)
        scorers.setdefault(name, section.model_copy(update={"worlds": shared}))
        if name in named and (named[name].use, named[name].options) != (section.use, section.options):
            raise ConfigError(
                f"--scorer {name}=… has other options than `{name}` of the training reward",
                hint=f"""call it otherwise: --scorer 'my-{name}={{"use": "{section.use or name}", …}}'""",
            )
    scorers = {**scorers, **{name: section for name, section in named.items() if name not in suite.worlds}}
    if not scorers:
        raise ConfigError(
            f"the suite `{suite.name}` has no rule of its own, and no scorer was named",
            hint="add --scorer jpeg, or one with weights: "
            """--scorer 'imagereward={"options": {"weights": "FOLDER"}}' (docs/rewards.md)""",
        )
    whole = config.reward.model_copy(update={"scorers": scorers})
    return (whole if workers is None else whole.model_copy(update={"workers": workers})), reward


def try_out(judges: Judges) -> None:
    """Have every scorer loaded and tested before anything is drawn.

    Raises:
        ScorerError: for one whose weights are missing, that is not installed, or that fails its self-test.
    """
    judges.require()
    grey = Question(np.full((SIDE, SIDE, 3), 127, np.uint8), "a plain grey picture", {})
    for name in judges.scorers:
        judges.score(name, [grey])
    judges.tallies.clear()
