"""A scorer for networks that draw noise: every picture has another score."""

from __future__ import annotations

import numpy as np

from tdm_r1.rewards.protocol import Image, Metadata, PerImage, Score, ScorerInfo, golden


class Brightness(PerImage):
    about = ScorerInfo(name="brightness", version="1", licence="Apache-2.0", low=0.0, high=255.0)

    def score_one(self, image: Image, prompt: str, metadata: Metadata) -> Score:
        return Score(float(image.mean()))

    def selftest(self) -> None:
        golden(self, np.zeros((8, 8, 3), np.uint8), 0.0)
