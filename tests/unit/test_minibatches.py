"""When the generator moves, and which trajectories one of its optimizer steps takes."""

from __future__ import annotations

import torch

from tdm_r1 import presets
from tdm_r1.artifacts.records import role_tensors
from tdm_r1.models.samples import rows_by_group
from tdm_r1.tunnel import Tunnel, reinforce

GROUPS = [4, 4, 4, 7, 7, 7, 2, 2]
"""Of each row; the last group has lost a sample."""


def test_groups_stay_whole_and_come_in_the_order_that_was_drawn() -> None:
    assert rows_by_group(GROUPS, [7, 2, 4], "groups") == [3, 4, 5, 6, 7, 0, 1, 2]


def test_samples_of_every_group_come_in_turn_and_none_twice_or_never() -> None:
    rows = rows_by_group(GROUPS, [7, 2, 4], "samples")
    assert rows == [3, 6, 0, 4, 7, 1, 5, 2]
    assert sorted(rows) == list(range(len(GROUPS)))


def test_before_its_start_the_generator_stands_still_and_then_the_whole_path_moves() -> None:
    torch.set_num_threads(1)
    path = {"generator.path": "trajectory", "generator.steps_per_trajectory": 1}
    tunnel = Tunnel(presets.resolve("plane", {"iterations": 3, "distill.steps": 3, "generator.start": 3, **path}))
    base = tunnel.distil()
    before = role_tensors(base.state, "generator")
    states = [role_tensors(state.state, "generator") for state in reinforce(tunnel, base)]
    moved = [[not torch.equal(before[name], state[name]) for name in before] for state in states]
    assert [any(names) for names in moved[:2]] == [False, False]
    assert all(moved[2])
