"""Claims about the numbers of the result table."""

from __future__ import annotations

import numpy as np
import pytest

from tdm_r1.statistics import OVERALL, tag_intervals


def bernoulli(rng: np.random.Generator, share: float, count: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return (rng.random(count) < share).astype(np.float64)


def test_the_overall_value_is_the_unweighted_mean_of_the_tags() -> None:
    found = tag_intervals({"a": np.ones(90), "b": np.zeros(10)}, resamples=20, seed=0)
    assert found[OVERALL].value == 0.5
    assert found[OVERALL].count == 100
    assert (found["a"].value, found["b"].value) == (1.0, 0.0)


def test_equal_values_have_an_interval_of_no_width() -> None:
    found = tag_intervals({"a": np.ones(9)}, resamples=50, seed=0)["a"]
    assert (found.low, found.value, found.high, found.count) == (1.0, 1.0, 1.0, 9)


def test_about_95_of_100_intervals_cover_the_truth() -> None:
    rng = np.random.default_rng(0)
    truth = {"a": 0.3, "b": 0.6, "c": 0.8}
    hits = 0
    for seed in range(300):
        sample = {tag: bernoulli(rng, share, 80) for tag, share in truth.items()}
        overall = tag_intervals(sample, resamples=300, seed=seed)[OVERALL]
        hits += int(overall.low <= np.mean(list(truth.values())) <= overall.high)
    assert 0.90 <= hits / 300 <= 0.98


def test_the_width_of_the_interval_is_that_of_the_normal_approximation() -> None:
    sample = np.array([1.0] * 120 + [0.0] * 280)
    found = tag_intervals({"a": sample}, resamples=4000, seed=1)["a"]
    expected = 2 * 1.96 * np.sqrt(0.3 * 0.7 / 400)
    assert found.high - found.low == pytest.approx(expected, rel=0.06)


def test_neither_the_order_of_the_tags_nor_another_call_changes_an_interval() -> None:
    rng = np.random.default_rng(2)
    a, b = bernoulli(rng, 0.5, 30), bernoulli(rng, 0.5, 40)
    assert tag_intervals({"a": a, "b": b}, resamples=50, seed=3) == tag_intervals(
        {"b": b, "a": a}, resamples=50, seed=3
    )
    assert tag_intervals({"a": a}, resamples=50, seed=3) != tag_intervals({"a": a}, resamples=50, seed=4)
