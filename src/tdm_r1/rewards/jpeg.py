"""The scorer `jpeg`: how large a picture is as a JPEG file. It needs no weights, so it tests a loop end to end."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Literal

import numpy as np
from PIL import Image as Pillow
from pydantic import Field

from tdm_r1.config import Section
from tdm_r1.rewards.protocol import Image, Metadata, PerImage, Score, ScorerInfo


class JpegOptions(Section):
    kind: Literal["compressibility", "incompressibility"] = "compressibility"
    """Whether a small or a large file is better."""
    quality: Annotated[int, Field(ge=1, le=100)] = 95
    """Of the JPEG encoder."""


class JpegSize(PerImage):
    """Kilobytes (1000) of the picture as JPEG; less is better, or more (DDPO, arXiv 2305.13301)."""

    about = ScorerInfo(
        name="jpeg", version="1", licence="Apache-2.0", low=0.0, higher_is_better=False, batch=16, cpu_seconds=0.002
    )
    Options = JpegOptions
    options: JpegOptions

    def describe(self) -> ScorerInfo:
        return replace(self.about, higher_is_better=self.options.kind == "incompressibility")

    def libraries(self) -> Sequence[str]:
        return ("pillow",)

    def score_one(self, image: Image, prompt: str, metadata: Metadata) -> Score:
        del prompt, metadata
        buffer = io.BytesIO()
        Pillow.fromarray(image).save(buffer, format="JPEG", quality=self.options.quality)
        return Score(len(buffer.getvalue()) / 1000)

    def selftest(self) -> None:
        noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        flat, busy = self.score([np.zeros_like(noise), noise], ["", ""], [{}, {}])
        if flat.value is None or busy.value is None or not 0 < flat.value < 2 < busy.value:
            raise ValueError(f"a flat picture has {flat.value} kB and noise {busy.value} kB, expected 0 < a < 2 < b")
