"""Reward of the world `plane`: 1 for a point on a right mode of its class, else 0."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from tdm_r1.models.plane import images_to_points
from tdm_r1.rewards.scorer import Image, Score
from tdm_r1.worlds.plane import LANDED, MODES, centre

_CENTRES: Final = tuple(centre(mode) for mode in range(MODES))


@dataclass(frozen=True)
class PlaneScorer:
    """`parts` hold the nearest mode and the distance to it: the spread of a model is the mean of the latter."""

    def __call__(self, image: Image, metadata: Mapping[str, Any]) -> Score:
        x, y = images_to_points(image).tolist()
        distance, mode = min((math.dist((x, y), place), mode) for mode, place in enumerate(_CENTRES))
        landed = distance <= LANDED
        right = landed and mode in metadata["modes"]
        return Score(
            reward=float(right),
            correct=right,
            strict=right,
            partial=float(right),
            parts=(("landed", float(landed)), ("distance", distance), ("mode", float(mode))),
        )
