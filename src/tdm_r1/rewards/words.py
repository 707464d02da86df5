"""Reward of the world `words`: does RapidOCR, which knows nothing of it, read the string that was asked for?"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from tdm_r1.config import Section
from tdm_r1.rewards import ocr_engines, ocr_text
from tdm_r1.rewards.extras import need
from tdm_r1.rewards.ocr_engines import RapidReader
from tdm_r1.rewards.ocr_text import plain, read
from tdm_r1.rewards.protocol import Image, Metadata, PerImage, Score, ScorerInfo, golden
from tdm_r1.worlds import words


class WordsOptions(Section):
    kind: Literal["similarity", "correct"] = "similarity"
    """Share of characters that are right, or 1 for all of them and nothing else."""


class WordsScorer(PerImage):
    """The whole picture is one line; case does not count."""

    about = ScorerInfo(
        name="words",
        version="1",
        licence="Apache-2.0 (code, RapidOCR and its weights)",
        needs=("image", "metadata"),
        low=0.0,
        high=1.0,
        batch=16,
        cpu_seconds=0.006,
        memory_mb=300,
        extra="ocr",
    )
    Options = WordsOptions
    code: ClassVar = (ocr_engines, ocr_text, words)
    options: WordsOptions

    def __init__(self, **options: object) -> None:
        super().__init__(**options)
        self._reader = RapidReader()

    def libraries(self) -> Sequence[str]:
        return [*self._reader.libraries, "rapidfuzz", "opencv-python-headless"]

    def files(self) -> Sequence[Path]:
        return self._reader.files()

    def load(self, threads: int) -> None:
        need("rapidfuzz", extra="ocr")
        self._reader.load(threads)

    def score_one(self, image: Image, prompt: str, metadata: Metadata) -> Score:
        del prompt
        target = _target(metadata)
        text, confidence = self._reader.text(image)
        reading = read(text, target)
        values = {"correct": float(reading.exact), "similarity": reading.similarity}
        return Score(
            value=values[self.options.kind],
            parts=(("correct", values["correct"]), ("strict", values["correct"]), ("similarity", reading.similarity)),
            detail=json.dumps({"text": text, "confidence": round(confidence, 4)}, ensure_ascii=False),
        )

    def selftest(self) -> None:
        picture = words.render(words.Prompt("K4", "white", "navy"), np.random.default_rng(0))
        for asked, value in (("K4", 1.0), ("73", 0.0)):
            golden(self, picture, value, metadata={"text": asked})


def _target(metadata: Metadata) -> str:
    text = metadata.get("text")
    if not isinstance(text, str) or not plain(text):
        raise ValueError(f"metadata.text is {text!r}, expected the string to be read")
    return text
