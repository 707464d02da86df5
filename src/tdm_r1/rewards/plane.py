"""Reward of the world `plane`: 1 for a point on a right mode of its class, else 0."""

from __future__ import annotations

import math
from typing import ClassVar, Final

import torch

from tdm_r1.models import plane as pixels
from tdm_r1.rewards.protocol import Image, Metadata, PerImage, Score, ScorerInfo, golden
from tdm_r1.worlds import plane
from tdm_r1.worlds.plane import LANDED, MODES, centre

_CENTRES: Final = tuple(centre(mode) for mode in range(MODES))


class PlaneScorer(PerImage):
    """`parts` hold the nearest mode and the distance to it: the spread of a model is the mean of the latter."""

    about = ScorerInfo(
        name="plane",
        version="2",
        licence="Apache-2.0",
        needs=("image", "metadata"),
        low=0.0,
        high=1.0,
        min_side=1,
        batch=256,
        cpu_seconds=0.0001,
    )
    code: ClassVar = (pixels, plane)

    def score_one(self, image: Image, prompt: str, metadata: Metadata) -> Score:
        del prompt
        x, y = pixels.images_to_points(image).tolist()
        distance, mode = min((math.dist((x, y), place), mode) for mode, place in enumerate(_CENTRES))
        landed = distance <= LANDED
        right = float(landed and mode in metadata["modes"])
        verdicts = (("correct", right), ("strict", right))
        return Score(
            value=right, parts=(*verdicts, ("landed", float(landed)), ("distance", distance), ("mode", float(mode)))
        )

    def selftest(self) -> None:
        picture = pixels.points_to_images(torch.tensor([_CENTRES[2]]))[0].numpy()
        for modes, value in (((2, 5), 1.0), ((3, 6), 0.0)):
            golden(self, picture, value, metadata={"modes": modes})
