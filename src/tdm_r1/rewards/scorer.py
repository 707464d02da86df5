"""What a black-box reward is to the stages."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from tdm_r1.config import RewardConfig

Image = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Score:
    """The verdict on one image."""

    reward: float | None
    """None when the scorer failed; then `error` says why. A failure is never a reward of 0."""
    correct: bool | None = None
    strict: bool | None = None
    partial: float | None = None
    parts: tuple[tuple[str, float], ...] = ()
    error: str | None = None


class Scorer(Protocol):
    """A function of pixels and metadata."""

    def __call__(self, image: Image, metadata: Mapping[str, Any]) -> Score:
        """Score one image [height, width, 3] uint8, RGB."""


def score_one(scorer: Scorer, image: Image, metadata: Mapping[str, Any]) -> Score:
    """Score an image; what the scorer raises, and a number that is none, becomes that row's error."""
    try:
        return require_numbers(scorer(image, metadata))
    except Exception as error:
        return Score(reward=None, error=f"{type(error).__name__}: {error}"[:500])


def require_numbers(score: Score) -> Score:
    """Refuse NaN and infinities: as an advantage one of them would poison its whole group.

    Raises:
        ValueError: naming the term.
    """
    named = (("reward", score.reward), ("partial", score.partial), *score.parts)
    for name, value in named:
        if value is not None and not math.isfinite(value):
            raise ValueError(f"the scorer returned {name}={value}")
    return score


def score_all(scorer: Scorer, images: Image, metadata: Sequence[Mapping[str, Any]], workers: int) -> list[Score]:
    """Scores in the order of the images, the same for any number of workers.

    Args:
        images: [N, height, width, 3] uint8.
        workers: processes; 0 scores in this one.
    """
    if workers == 0:
        return [score_one(scorer, image, row) for image, row in zip(images, metadata, strict=True)]
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        chunk = max(1, -(-len(images) // (4 * workers)))
        return list(pool.map(score_one, [scorer] * len(images), images, metadata, chunksize=chunk))


def open_scorer(config: RewardConfig) -> Scorer:
    """The scorer that a configuration names."""
    if config.scorer == "shapes":
        from tdm_r1.rewards.shapes import ShapesScorer

        return ShapesScorer(kind=config.kind, replicate=config.replicate)
    from tdm_r1.rewards.plane import PlaneScorer

    return PlaneScorer()
