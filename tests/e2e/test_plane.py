"""The claim of the method, in the wind tunnel: rewards teach the generator, and through the surrogate only."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from tdm_r1 import presets
from tdm_r1.artifacts.records import Base, role_tensors
from tdm_r1.tunnel import Landing, Tunnel, curve, measure, reinforce, reinforce_directly

GAIN, WIDENING = 0.15, 1.25
SHORT = {"iterations": 45, "distill.steps": 200}
"""Three quarters of the preset's iterations, two thirds of its distillation: about 30 s per seed with the control."""


@cache
def start(seed: int) -> tuple[Tunnel, Base, Landing]:
    """A tunnel, its TDM generator and where that lands."""
    torch.set_num_threads(1)
    tunnel = Tunnel(presets.resolve("plane", {**SHORT, "seed": seed}))
    base = tunnel.distil()
    return tunnel, base, measure(tunnel, role_tensors(base.state, "generator_ema"))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_reinforcement_raises_the_success_without_widening_the_modes(seed: int) -> None:
    tunnel, base, before = start(seed)
    last = tunnel.config.iterations
    after = curve(reinforce(tunnel, base), lambda role: measure(tunnel, role), last)[last]
    assert after.success >= before.success + GAIN, f"{before} → {after}"
    assert after.spread <= WIDENING * before.spread, f"{before} → {after}"


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_reward_loss_on_the_student_itself_does_not(seed: int) -> None:
    tunnel, base, before = start(seed)
    last = tunnel.config.iterations
    after = curve(reinforce_directly(tunnel, base), lambda role: measure(tunnel, role), last)[last]
    gained, sharp = after.success >= before.success + GAIN, after.spread <= WIDENING * before.spread
    assert not (gained and sharp), f"{before} → {after}"
