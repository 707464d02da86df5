"""Claims about how raw scores become rewards: weights, scales, directions and errors, without scoring again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest
import torch

from tdm_r1.artifacts.records import Rewards
from tdm_r1.config import RewardConfig, ScorerConfig
from tdm_r1.errors import SchemaError
from tdm_r1.presets import resolve
from tdm_r1.rewards.aggregate import SCHEMA, aggregate
from tdm_r1.rewards.judges import Judges
from tdm_r1.stages.reward_scoring import reward_scoring
from tests.unit.artifact_examples import prompt_set, raw_scores, rollout

KEYS: dict[str, Any] = {"sample_id": ["s0", "s1", "s2", "s3"], "prompt_id": ["p"] * 4, "group": [0, 0, 1, 1]}


def reward_of(values: Mapping[str, Sequence[float | None]], record: Rewards | None = None, **weighted: Any) -> Any:
    config = RewardConfig(scorers={name: ScorerConfig(**section) for name, section in weighted.items()})
    errors = ["broken" if value is None else None for own in values.values() for value in own]
    found = record or raw_scores(values, **KEYS, errors=errors)
    return aggregate(found, config).column("reward").to_pylist()


A, B = [0.0, 0.25, 0.5, 1.0], [10.0, 20.0, 30.0, 40.0]


def test_one_scorer_with_the_defaults_is_the_reward_bit_for_bit() -> None:
    values = [0.1, 1 / 3, -1e-300, 1e300]
    assert reward_of({"a": values}, a={}) == values


def test_the_reward_is_the_weighted_sum_of_what_was_scaled_and_clipped() -> None:
    found = reward_of({"a": A, "b": B}, a={"weight": 2.0}, b={"scale": 0.1, "shift": -2.0, "low": 0.0, "high": 1.5})
    assert found == pytest.approx([0.0, 0.5, 1.0 + 1.0, 2.0 + 1.5])


def test_a_record_is_weighted_again_without_being_scored_again() -> None:
    record = raw_scores({"a": A, "b": B}, **KEYS)
    digest = record.scores
    for weight in (0.0, 1.0, 3.0):
        assert reward_of({}, record, a={}, b={"weight": weight}) == [a + weight * b for a, b in zip(A, B, strict=True)]
    assert record.scores.equals(digest)


def parted(*rows: Mapping[str, float]) -> Rewards:
    """A record of one scorer whose value is 7, with these parts."""
    parts = [[{"name": name, "value": value} for name, value in row.items()] for row in rows]
    return raw_scores({"a": [7.0] * 4}, **KEYS, parts=parts)


def test_weighted_parts_stand_for_the_value_before_scale_and_bounds() -> None:
    record = parted(
        *({"similarity": half, "correct": whole} for half, whole in zip(A, (0.0, 0.0, 1.0, 1.0), strict=True))
    )
    parts = {"similarity": 0.5, "correct": 2.0}
    assert reward_of({}, record, a={"parts": parts, "weight": 2.0, "high": 2.3}) == [0.0, 0.25, 4.5, 4.6]
    assert reward_of({}, record, a={"parts": {"correct": -1.0}}) == [0.0, 0.0, -1.0, -1.0]
    assert reward_of({}, record, a={}) == [7.0] * 4


def test_a_part_that_a_scorer_does_not_give_is_refused() -> None:
    record = parted({"correct": 1.0}, {"correct": 1.0}, {}, {"correct": 1.0})
    with pytest.raises(SchemaError, match="scorer `a` gave s2 no part `correct`, only a value"):
        reward_of({}, record, a={"parts": {"correct": 1.0}})


def test_a_stage_whose_scorer_does_not_give_a_weighted_part_fails_itself() -> None:
    config = resolve("shapes_smoke", {"reward.scorers": {"jpeg": {"parts": {"sharpness": 1.0}}}})
    grey = replace(rollout(2), images=torch.full((2, 16, 16, 3), 128, dtype=torch.uint8))
    with pytest.raises(SchemaError, match="scorer `jpeg` gave s0 no part `sharpness`"):
        reward_scoring(prompt_set().prompts, grey, judges=Judges(config.reward), config=config)


def test_parts_of_a_row_without_a_value_are_not_missed() -> None:
    assert reward_of({"a": [None] * 4}, a={"parts": {"correct": 1.0}}) == [None] * 4


def test_a_scorer_of_which_less_is_better_counts_with_a_minus() -> None:
    record = raw_scores({"a": A}, **KEYS)
    column = record.scorers.column_names.index("higher_is_better")
    scorers = record.scorers.set_column(column, "higher_is_better", pa.array([False]))
    assert reward_of({}, Rewards(scores=record.scores, scorers=scorers), a={"weight": 2.0}) == [0.0, -0.5, -1.0, -2.0]


@pytest.mark.parametrize(
    ("on_error", "expected"),
    [("drop", [10.0, None, None, None]), ("fail", [10.0, None, None, None]), ("group_mean", [10.0, 20.0, None, None])],
)
def test_an_error_is_dropped_or_takes_the_mean_of_its_group_and_is_never_a_zero(on_error: str, expected: Any) -> None:
    values: dict[str, list[float | None]] = {"a": [0.0, None, None, None], "b": [10.0, 20.0, 30.0, 40.0]}
    assert reward_of(values, a={"on_error": on_error}, b={}) == expected


def test_the_group_mean_is_of_the_scaled_values() -> None:
    values: dict[str, list[float | None]] = {"a": [None, 4.0, 8.0, 8.0]}
    assert reward_of(values, a={"on_error": "group_mean", "high": 3.0}) == [3.0, 3.0, 3.0, 3.0]


def test_a_scorer_without_weight_only_records_and_its_errors_cost_nothing() -> None:
    assert reward_of({"a": list(A), "b": [None] * 4}, a={}, b={"weight": 0.0}) == A


def test_the_error_of_a_row_names_its_scorer() -> None:
    record = raw_scores({"a": [1.0, None, 1.0, 1.0]}, **KEYS, error=[None, "broken", None, None])
    table = aggregate(record, RewardConfig(scorers={"a": ScorerConfig()}))
    assert table.schema == SCHEMA
    assert table["error"].to_pylist() == [None, "a: broken", None, None]


def test_a_weight_for_a_scorer_that_was_never_asked_is_refused() -> None:
    with pytest.raises(SchemaError, match="no score of `c` is stored, only of a, b"):
        reward_of({"a": list(A), "b": list(B)}, a={}, c={})


def test_verdicts_are_those_of_the_first_scorer_that_gives_any() -> None:
    parts = [[{"name": "correct", "value": value}] for value in (1.0, 0.0, 1.0)] + [[]]
    record = raw_scores({"a": A, "b": B}, **KEYS, parts=parts)
    blank = record.scores.set_column(5, "parts", pa.array([[]] * 4 + parts, record.scores.schema.field("parts").type))
    config = RewardConfig(scorers={"a": ScorerConfig(), "b": ScorerConfig()})
    table = aggregate(Rewards(scores=blank, scorers=record.scorers), config)
    assert table["correct"].to_pylist() == [True, False, True, None]
    assert table["strict"].to_pylist() == [None] * 4
