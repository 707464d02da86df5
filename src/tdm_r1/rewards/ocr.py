"""The scorer `ocr`: is the text in quotation marks written in the picture?

Source: Flow-GRPO, arXiv 2505.05470; TDM-R1, arXiv 2603.07700, "visual text rendering".
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from PIL import Image as Pillow
from PIL import ImageDraw, ImageFont

from tdm_r1.config import Count, NonNegative, Section, Share
from tdm_r1.rewards import ocr_engines, ocr_text
from tdm_r1.rewards.extras import need
from tdm_r1.rewards.ocr_engines import Engine, PaddleEngine, RapidEngine, TesseractEngine, side_of
from tdm_r1.rewards.ocr_text import Line, in_reading_order, read, target_of
from tdm_r1.rewards.protocol import Image, Metadata, PerImage, Score, ScorerInfo, golden


class OcrOptions(Section):
    engine: Literal["rapidocr", "paddleocr", "tesseract"] = "rapidocr"
    """What reads: `rapidocr` has its weights in its wheel, `paddleocr` is told folders, `tesseract` is a program."""
    detection: str = ""
    """Folder of PaddleOCR's detection model: `inference.yml` and weights."""
    recognition: str = ""
    """Folder of PaddleOCR's recognition model."""
    runtime: Literal["onnxruntime", "paddle"] = "onnxruntime"
    """What runs PaddleOCR's models."""
    side: Count = 0
    """Pixels of the shorter side in which text is looked for; 0 is half of the picture's, within 160 and 480."""
    confidence: Share = 0.5
    """Lines of which the engine is less sure are not read."""
    length_penalty: NonNegative = 0.0
    """λ: the reward loses λ per recognised length of the target beyond the target; 0 is the published reward."""


class OcrScorer(PerImage):
    """Text in quotation marks against the text that an OCR engine reads; 1 is contained, 0 is nothing like it."""

    about = ScorerInfo(
        name="ocr",
        version="1",
        licence="Apache-2.0 (code, RapidOCR, PaddleOCR and their weights, Tesseract)",
        needs=("image", "prompt"),
        low=0.0,
        high=1.0,
        batch=4,
        cpu_seconds=0.08,
        memory_mb=400,
        extra="ocr",
    )
    Options = OcrOptions
    code: ClassVar = (ocr_engines, ocr_text)
    options: OcrOptions

    def __init__(self, **options: object) -> None:
        super().__init__(**options)
        self._engine = _engine(self.options)

    def libraries(self) -> Sequence[str]:
        return [*self._engine.libraries, "rapidfuzz", "opencv-python-headless"]

    def files(self) -> Sequence[Path]:
        return self._engine.files()

    def load(self, threads: int) -> None:
        need("rapidfuzz", extra="ocr")
        self._engine.load(threads)

    def score_one(self, image: Image, prompt: str, metadata: Metadata) -> Score:
        del metadata
        target = target_of(prompt)
        found = self._engine.lines(image, self.options.side or side_of(image))
        lines = in_reading_order([line for line in found if line.confidence >= self.options.confidence])
        reading = read("".join(line.text for line in lines), target, length_penalty=self.options.length_penalty)
        parts = ("published", "contained", "exact", "similarity", "excess")
        return Score(
            value=reading.reward,
            parts=tuple((name, float(getattr(reading, name))) for name in parts),
            detail=_detail(lines, target),
        )

    def selftest(self) -> None:
        golden(self, written("Open 24"), 1.0, prompt='a sign with the text "Open 24"')
        golden(self, written(""), 0.0, prompt="a sign with the text “Open 24”")


def _engine(options: OcrOptions) -> Engine:
    if options.engine == "paddleocr":
        return PaddleEngine(Path(options.detection), Path(options.recognition), options.runtime)
    return TesseractEngine() if options.engine == "tesseract" else RapidEngine()


def _detail(lines: Sequence[Line], target: str) -> str:
    shown = [{"text": line.text, "confidence": round(line.confidence, 4)} for line in lines]
    return json.dumps({"target": target, "lines": shown}, ensure_ascii=False)


def written(text: str) -> Image:
    """A text in black on white [64, 256, 3], in the font that Pillow carries."""
    picture = Pillow.new("RGB", (256, 64), "white")
    ImageDraw.Draw(picture).text((128, 32), text, fill="black", font=ImageFont.load_default(36), anchor="mm")
    return np.asarray(picture)
