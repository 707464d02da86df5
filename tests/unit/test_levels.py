"""Which steps of a trajectory an optimizer step trains on."""

from __future__ import annotations

from collections import Counter

import pytest

from tdm_r1.config import SamplerConfig
from tdm_r1.models.levels import dealt_steps, steps


@pytest.mark.parametrize(("hand", "microbatches"), [(1, 4), (1, 8), (2, 2), (2, 6), (3, 4), (4, 1), (4, 3)])
def test_microbatches_together_train_every_step_equally_often(hand: int, microbatches: int) -> None:
    grid = steps(SamplerConfig(steps=4))
    deck = [grid[2], grid[0], grid[3], grid[1]]
    hands = [dealt_steps(deck, number, hand) for number in range(microbatches)]
    times = Counter(step.index for held in hands for step in held)
    assert times == dict.fromkeys(range(4), hand * microbatches // 4)
    assert all(len({step.index for step in held}) == hand for held in hands)


def test_a_microbatch_trains_its_steps_in_the_order_of_the_trajectory() -> None:
    grid = steps(SamplerConfig(steps=4))
    assert [step.index for step in dealt_steps([grid[3], grid[1], grid[0], grid[2]], 0, 3)] == [0, 1, 3]
