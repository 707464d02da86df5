"""The command `pretrain`: from the name of a world to its trainer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from tdm_r1.errors import ConfigError

WORLDS = ("shapes", "plane", "words")


def pretrain_world(world: str, out: Path, *, seed: int, steps: int | None, log: Callable[[str], None]) -> None:
    """Train an embedded world's base model from scratch and write its folder.

    Args:
        steps: of the teacher; None for those that made the committed weights.

    Raises:
        ConfigError: for a world that is not embedded.
    """
    if world == "shapes":
        from tdm_r1.pretrain.shapes import PretrainPlan, pretrain_shapes

        torch.set_num_threads(2)
        plan = PretrainPlan(seed=seed)
        pretrain_shapes(out, plan if steps is None else plan.shortened(steps), log)
    elif world == "words":
        from tdm_r1.pretrain.words import WordsPlan, pretrain_words

        torch.set_num_threads(1)
        words = WordsPlan(seed=seed)
        pretrain_words(out, words if steps is None else words.shortened(steps), log)
    elif world == "plane":
        from tdm_r1.pretrain.plane import PlanePlan, pretrain_plane

        torch.set_num_threads(1)
        pretrain_plane(out, PlanePlan(seed=seed) if steps is None else PlanePlan(seed=seed, steps=steps), log)
    else:
        raise ConfigError(f"there is no embedded world `{world}`", hint=f"the worlds are {', '.join(WORLDS)}")
