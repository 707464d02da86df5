"""Stage 0 in the plane: what its warm-up and its further fake-score steps do, and what they leave alone."""

from __future__ import annotations

from collections import Counter
from functools import cache
from typing import Any

import pytest
import torch

from tdm_r1.artifacts.records import Base, PromptSet, role_tensors
from tdm_r1.models.backbone import Backbone
from tdm_r1.models.open import open_backbone
from tdm_r1.models.progress import silent
from tdm_r1.presets import resolve
from tdm_r1.rng import Keys
from tdm_r1.stages.distill_base import distill_base
from tdm_r1.stages.encode_prompts import encode_prompts
from tdm_r1.worlds.world import open_world


@cache
def opened() -> tuple[Backbone, PromptSet]:
    config = resolve("plane", {})
    backbone = open_backbone(config.model, "cpu")
    return backbone, encode_prompts(open_world("plane"), backbone=backbone)


def distilled(**knobs: Any) -> Base:
    backbone, prompts = opened()
    config = resolve("plane", {f"distill.{name}": value for name, value in {"batch": 16, **knobs}.items()})
    return distill_base(prompts, start=None, backbone=backbone, config=config, keys=Keys(0, 0), progress=silent)


def same(a: Base, b: Base, role: str) -> bool:
    one, two = role_tensors(a.state, role), role_tensors(b.state, role)
    return all(torch.equal(one[name], two[name]) for name in one)


def counted(base: Base) -> Counter[str]:
    """Optimizer steps by role."""
    return Counter(row["name"].partition("/")[0] for row in base.metrics.to_pylist() if "gradient_norm" in row["name"])


def test_only_the_fake_score_learns_during_the_warm_up() -> None:
    begun, warm = distilled(steps=0), distilled(steps=0, warmup=3)
    assert same(begun, warm, "generator")
    assert same(begun, warm, "generator_ema")
    assert not same(begun, warm, "fake")


@pytest.mark.parametrize(("warmup", "steps", "fake_updates", "fake"), [(0, 3, 1, 3), (2, 3, 1, 5), (2, 3, 4, 20)])
def test_every_role_takes_as_many_steps_as_the_configuration_says(
    warmup: int, steps: int, fake_updates: int, fake: int
) -> None:
    found = distilled(warmup=warmup, steps=steps, fake_updates=fake_updates)
    assert counted(found) == {"fake": fake, "generator": steps}
    section = resolve("plane", {"distill.warmup": warmup, "distill.steps": steps, "distill.fake_updates": fake_updates})
    assert section.distill.fake_steps == fake


def test_a_further_fake_score_step_draws_other_noise() -> None:
    rows = distilled(steps=1, fake_updates=2).metrics.to_pylist()
    losses = [row["value"] for row in rows if row["name"] == "fake/loss"]
    assert len(losses) == len(set(losses)) == 2
