from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tdm_r1.advantages import Std, group_advantages


def batch(groups: int = 5, size: int = 24) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    offsets = torch.randn(groups, 1, generator=generator, dtype=torch.float64)
    rewards = offsets + torch.rand(groups, size, generator=generator, dtype=torch.float64)
    return rewards.flatten(), torch.arange(groups).repeat_interleave(size)


@pytest.mark.parametrize("std", ["global", "group", "none"])
def test_advantages_equal_a_plain_loop(std: Std) -> None:
    reward, group = batch()
    pairs = list(zip(reward.double().tolist(), group.tolist(), strict=True))
    actual = group_advantages(reward, group, std=std).advantage.tolist()
    for (value, own), advantage in zip(pairs, actual, strict=True):
        peers = [r for r, g in pairs if g == own]
        pool = {"global": [r for r, _ in pairs], "group": peers, "none": []}[std]
        centre = sum(peers) / len(peers)
        scale = 1.0
        if pool:
            scale = math.sqrt(sum((r - sum(pool) / len(pool)) ** 2 for r in pool) / len(pool)) + 1e-4
        assert advantage == pytest.approx((value - centre) / scale, abs=1e-12)


def test_every_group_sums_to_zero_and_so_do_the_weights_of_its_two_halves() -> None:
    reward, group = batch()
    result = group_advantages(reward, group, std="group")
    for g in range(5):
        mine = result.advantage[group == g]
        assert mine[mine > 0].sum().item() == pytest.approx(-mine[mine <= 0].sum().item(), rel=1e-12)
    assert result.largest_group_sum < 1e-12
    assert result.clipped_fraction == 0


def test_the_order_of_the_samples_changes_no_bit() -> None:
    reward, group = batch()
    order = torch.randperm(len(reward), generator=torch.Generator().manual_seed(1))
    plain, shuffled = group_advantages(reward, group), group_advantages(reward[order], group[order])
    assert torch.equal(plain.advantage[order], shuffled.advantage)
    assert plain.std == shuffled.std
    assert plain.advantage.dtype == torch.float64


def test_a_sample_without_a_reward_is_as_if_it_were_not_there() -> None:
    reward, group = batch(2, 4)
    broken = reward.clone()
    broken[1], broken[6] = float("nan"), float("inf")
    result = group_advantages(broken, group)
    rest = torch.tensor([0, 2, 3, 4, 5, 7])
    assert result.valid.tolist() == [True, False, True, True, True, True, False, True]
    assert torch.equal(result.advantage[rest], group_advantages(reward[rest], group[rest]).advantage)
    assert result.advantage[[1, 6]].tolist() == [0, 0]
    masked = group_advantages(reward, group, valid_N=result.valid)
    assert torch.equal(masked.advantage, result.advantage)


def test_groups_without_variance_give_zeros_and_are_counted() -> None:
    reward = torch.tensor([0.1, 0.1, 0.1, 1.0, 2.0, 3.0, 5.0, math.nan, math.nan, *[math.nan] * 3]).double()
    group = torch.arange(4).repeat_interleave(3)
    for std in ("global", "group", "none"):
        result = group_advantages(reward, group, std=std)
        assert result.zero_variance_groups == 3  # equal rewards; one reward left; none left
        assert result.advantage[group != 1].abs().max() == 0
        assert result.advantage[group == 1].abs().max() > 0


def test_all_samples_failed_is_no_crash() -> None:
    result = group_advantages(torch.full((4,), math.nan), torch.tensor([0, 0, 1, 1]))
    assert (result.advantage == 0).all()
    assert (result.std, result.zero_variance_groups, result.clipped_fraction) == (0.0, 2, 0.0)


def test_the_clip_keeps_signs_and_bounds_and_its_excess_is_reported() -> None:
    reward = torch.tensor([10.0] + [0.0] * 23 + [0.0] * 24 * 9).double()
    group = torch.arange(10).repeat_interleave(24)
    free = group_advantages(reward, group, clip=math.inf)
    clipped = group_advantages(reward, group)
    excess = free.advantage[0].item() - 5
    assert excess > 0
    assert clipped.advantage[0] == 5
    assert torch.equal(clipped.advantage[1:], free.advantage[1:])
    assert torch.equal(clipped.advantage.sign(), free.advantage.sign())
    assert clipped.clipped_fraction == pytest.approx(1 / 240)
    assert clipped.largest_group_sum == pytest.approx(excess)
    assert free.largest_group_sum < 1e-12


def test_groups_are_numbers_not_positions() -> None:
    reward, group = batch(3, 4)
    renamed = group * -1000 + 7
    assert torch.equal(group_advantages(reward, group).advantage, group_advantages(reward, renamed).advantage)
