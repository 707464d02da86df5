"""Accuracy per tag with bootstrap intervals, GenEval's way: overall is the unweighted mean of the tags."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

OVERALL = "overall"


@dataclass(frozen=True)
class Interval:
    """A mean with its 95% percentile interval, over `count` values."""

    value: float
    low: float
    high: float
    count: int


def tag_intervals(correct: Mapping[str, npt.NDArray[np.float64]], *, resamples: int, seed: int) -> dict[str, Interval]:
    """Mean and interval per tag, and of the unweighted mean over tags.

    Args:
        correct: by tag, one value per prompt: the share of its images that are right, or a difference of two shares.
        resamples: bootstrap draws; values are resampled inside each tag, since the tags' sizes are fixed.
    """
    rng = np.random.default_rng(seed)
    draws: dict[str, npt.NDArray[np.float64]] = {}
    found: dict[str, Interval] = {}
    for tag in sorted(correct):
        values = np.asarray(correct[tag], dtype=np.float64)
        index = rng.integers(len(values), size=(resamples, len(values)))
        draws[tag] = values[index].mean(axis=1)
        found[tag] = _interval(float(values.mean()), draws[tag], len(values))
    overall = np.mean([found[tag].value for tag in found])
    count = sum(interval.count for interval in found.values())
    found[OVERALL] = _interval(float(overall), np.mean(list(draws.values()), axis=0), count)
    return found


def _interval(value: float, draws: npt.NDArray[np.float64], count: int) -> Interval:
    low, high = np.percentile(draws, [2.5, 97.5])
    return Interval(value, float(low), float(high), count)
