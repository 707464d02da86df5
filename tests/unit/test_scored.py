"""Claims about scored trajectories, and about how well a surrogate orders them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tdm_r1.artifacts.records import Rewards, Rollout
from tdm_r1.config import RewardConfig, SurrogateConfig
from tdm_r1.errors import SchemaError
from tdm_r1.rewards.scored import Trajectories, join, score
from tdm_r1.stages.surrogate_update import pair_accuracy
from tests.unit.artifact_examples import raw_scores

CONFIG, REWARD = SurrogateConfig(), RewardConfig()
Shard = tuple[Rollout, Rewards]


def shard(values: list[float | None], *, first: int = 0, size: int = 2, names: str = "s", **change: Any) -> Shard:
    """A rollout and its rewards; groups of `size`, numbered from `first`."""
    count = len(values)
    groups = [first + row // size for row in range(count)]
    samples = [f"{names}{first}-{row}" for row in range(count)]
    keys: dict[str, Any] = {"sample_id": samples, "prompt_id": [f"p{group}" for group in groups], "group": groups}
    rollout = Rollout(
        index=Rollout.table("index", **keys),
        images=torch.zeros(count, 1, 1, 3, dtype=torch.uint8),
        states=torch.arange(count * 8.0).reshape(count, 2, 1, 2, 2),
    )
    errors = ["it failed" if value is None else None for value in values]
    return rollout, raw_scores({"shapes": values}, error=errors, **{**keys, **change})


def trajectories(values: list[float | None], **more: Any) -> Trajectories:
    return score([shard(values, **more)], 1, CONFIG, REWARD)[0]


@pytest.mark.parametrize(
    "samples", [["s0-1", "s0-0", "s0-2", "s0-3"], ["s0-0", "s0-1", "s0-2", "x"], ["a", "b", "c", "d"]]
)
def test_rewards_of_other_samples_or_in_another_order_are_refused(samples: list[str]) -> None:
    with pytest.raises(SchemaError, match="not the rollout's 4 in the same order") as caught:
        score([shard([1.0, 0.0, 1.0, 0.0], sample_id=samples)], 1, CONFIG, REWARD)
    assert caught.value.hint


def test_rewards_of_fewer_samples_are_refused() -> None:
    rollout, _ = shard([1.0, 0.0, 1.0, 0.0])
    with pytest.raises(SchemaError, match="hold 2 samples"):
        score([(rollout, shard([1.0, 0.0])[1])], 1, CONFIG, REWARD)


def test_cutting_an_iteration_into_shards_changes_nothing() -> None:
    values: list[float | None] = [1.0, 0.0, 0.5, 0.25, None, 0.0]
    whole, _ = score([shard(values)], 3, CONFIG, REWARD)
    parts, _ = score([shard(values[:2]), shard(values[2:], first=1)], 3, CONFIG, REWARD)
    assert torch.equal(whole.advantages, parts.advantages)
    assert torch.equal(whole.valid, parts.valid)
    assert whole.groups == parts.groups == [f"00003-{group:04d}" for group in (0, 0, 1, 1, 2, 2)]


def test_a_better_sample_has_the_larger_advantage_and_a_failed_one_none() -> None:
    found = trajectories([1.0, 0.0, None, 0.5])
    assert found.advantages[0] > 0 > found.advantages[1]
    assert found.advantages[2:].tolist() == [0, 0]
    assert found.valid.tolist() == [True, True, False, True]


def test_a_group_of_equal_rewards_gives_no_gradient_and_is_left_out() -> None:
    assert trajectories([1.0, 0.0, 0.5, 0.5, 0.2, 0.1]).informative() == [[0, 1], [4, 5]]


def test_the_same_prompt_in_two_iterations_is_two_groups() -> None:
    first, second = (score([shard([1.0, 0.0])], iteration, CONFIG, REWARD)[0] for iteration in (1, 2))
    both = join([first, second])
    assert both.prompt_ids == ["p0"] * 4
    assert both.group_numbers().tolist() == [0, 0, 1, 1]
    assert both.rows_by_group() == [[0, 1], [2, 3]]


def test_taking_rows_takes_them_from_every_column() -> None:
    found = trajectories([1.0, 0.0, 0.5, 0.25]).take([3, 0])
    assert (found.sample_ids, found.prompt_ids) == (["s0-3", "s0-0"], ["p1", "p0"])
    assert found.states[:, 0, 0, 0, 0].tolist() == [24.0, 0.0]
    assert len(found.groups) == len(found) == len(found.advantages) == len(found.valid) == 2


@pytest.mark.parametrize(
    ("gain", "accuracy"),
    [
        ([3.0, 2.0, 1.0, 9.0, 0.0, 0.0], 1.0),
        ([1.0, 2.0, 3.0, 0.0, 9.0, 9.0], 0.0),
        ([0.0, 0.0, 0.0, 0.0, 0.0, 0.0], 0.5),
        ([3.0, 1.0, 2.0, 9.0, 0.0, 0.0], 4 / 5),
        ([3.0, 2.0, 2.0, 9.0, 0.0, 0.0], 4.5 / 5),
        ([103.0, 102.0, 101.0, 9.0, 0.0, 0.0], 1.0),
    ],
)
def test_pair_accuracy_is_the_share_of_pairs_inside_groups_that_are_ordered_rightly(
    gain: list[float], accuracy: float
) -> None:
    batch = trajectories([1.0, 0.5, 0.0, 1.0, 0.0, 0.0], size=3)  # 3 pairs, and 2: equal rewards are no pair
    assert pair_accuracy(torch.tensor(gain), batch) == pytest.approx(accuracy)


def test_without_any_pair_the_accuracy_is_that_of_a_coin() -> None:
    assert pair_accuracy(torch.tensor([1.0, 0.0]), trajectories([0.5, 0.5])) == 0.5
