"""The scorer `geneval`: a detector sees objects, a classifier names their colours, and the GenEval rule judges.

Source: GenEval, arXiv 2310.11513; the partial score that RL trains on: Flow-GRPO, arXiv 2505.05470.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from tdm_r1.config import Section
from tdm_r1.rewards import clip_colors, detectors, mask2former, nanodet
from tdm_r1.rewards.clip_colors import ClipColors
from tdm_r1.rewards.detectors import Detector, Found, ShapesDetector
from tdm_r1.rewards.images import as_image
from tdm_r1.rewards.mask2former import Mask2Former
from tdm_r1.rewards.nanodet import NanoDet
from tdm_r1.rewards.protocol import Image, Metadata, PerImage, Score, ScorerInfo
from tdm_r1.worlds import geneval
from tdm_r1.worlds.geneval import COLORS, Detection, Judgement, check_row, judge, keep


class GenEvalOptions(Section):
    detector: Literal["mask2former", "nanodet", "shapes"] = "mask2former"
    """What sees the objects: Mask2Former; NanoDet, weak and fast, for smoke tests; or the embedded world's verifier."""
    weights: str = ""
    """Folder of the Mask2Former (`tdm-r1 geneval convert`), or file of the NanoDet (`tdm-r1 geneval nanodet`)."""
    colors: str = ""
    """Folder of the CLIP that names colours (the benchmark's is openai/clip-vit-large-patch14)."""
    kind: Literal["partial", "strict", "correct"] = "partial"
    """What becomes the value: the mean over clauses, the strict rule, or the benchmark's rule."""
    replicate: bool = False
    """Add the released reward's 1.0 after a failed relation."""
    clip_low: float | None = 0.0
    """Lower bound of the partial score; none is the released reward's, which can reach −14."""
    threshold: float = 0.3
    """Confidence above which an object counts."""
    counting_threshold: float = 0.9
    """The same for the tag `counting`."""
    most: int = 16
    """Objects per class."""
    overlap: float = 1.0
    """Intersection over union above which the less confident of two objects goes; 1 keeps both."""
    golden: str = ""
    """Picture for the self-test, with `golden_label` in it; else the detector's own picture, if it has one."""
    golden_label: str = "person"
    """Class that must be found on the golden picture."""


class GenEvalScorer(PerImage):
    """`detail` holds what the official result file holds: the reason and the boxes by class."""

    about = ScorerInfo(
        name="geneval",
        version="1",
        licence="Apache-2.0 (code), the weights' own",
        needs=("image", "metadata"),
        high=1.0,
        cpu_seconds=12.0,
        memory_mb=3000,
        extra="geneval",
        weights="Mask2Former (`weights`) and CLIP ViT-L/14 (`colors`)",
    )
    Options = GenEvalOptions
    code: ClassVar = (geneval, detectors, mask2former, nanodet, clip_colors)
    options: GenEvalOptions

    def __init__(self, **options: object) -> None:
        super().__init__(**options)
        self._colors = ClipColors(Path(self.options.colors)) if self.options.colors else None
        self._detector: Detector = ShapesDetector()
        if self.options.detector == "mask2former":
            self._detector = Mask2Former(Path(self.options.weights))
        elif self.options.detector == "nanodet":
            self._detector = NanoDet(Path(self.options.weights))

    def describe(self) -> ScorerInfo:
        if self.options.detector != "nanodet":
            return self.about
        licence = "Apache-2.0 (code, NanoDet), MIT (its package)"
        light = replace(self.about, licence=licence, cpu_seconds=0.1, memory_mb=300, extra="nanodet")
        return replace(light, weights="NanoDet (`weights`)", caveat=self._detector.caveat)

    def libraries(self) -> Sequence[str]:
        networks = {"mask2former": ("transformers", "pillow"), "nanodet": ("onnxruntime", "pillow"), "shapes": ()}
        return sorted({*networks[self.options.detector], *(("transformers", "pillow") if self._colors else ())})

    def files(self) -> Sequence[Path]:
        return [*self._detector.files(), *(self._colors.files() if self._colors else ())]

    def load(self, threads: int) -> None:
        self._detector.load(threads)
        if self._colors:
            self._colors.load(threads)

    def look(self, image: Image, metadata: Metadata) -> list[Detection]:
        """The objects that the rule sees, with their colours where a clause asks for one."""
        shown = self.options
        found = self._detector.detect(image)
        kept = keep(
            [one.detection for one in found],
            metadata["tag"],
            threshold=shown.threshold,
            counting_threshold=shown.counting_threshold,
            most=shown.most,
            overlap=shown.overlap,
        )
        asked = {clause["class"] for clause in metadata["include"] if "color" in clause}
        masks = {id(one.detection): one for one in found}
        return [self._named(image, masks[id(one)]) if one.label in asked else one for one in kept]

    def _named(self, image: Image, found: Found) -> Detection:
        if found.detection.color:
            return found.detection
        if self._colors is None:
            raise ValueError("a colour is asked for, but the option `colors` names no CLIP")
        color = self._colors.name(image, found.detection.label, found.detection.box, found.mask)
        return replace(found.detection, color=color)

    def score_one(self, image: Image, prompt: str, metadata: Metadata) -> Score:
        del prompt
        check_row(metadata, self._detector.labels, self._detector.colors or COLORS)
        detections = self.look(image, metadata)
        low = -math.inf if self.options.clip_low is None else self.options.clip_low
        judgement = judge(detections, metadata, replicate=self.options.replicate, clip_low=low)
        kinds = {"partial": judgement.score, "strict": judgement.strict, "correct": judgement.correct}
        verdicts = (("correct", float(judgement.correct)), ("strict", float(judgement.strict)))
        return Score(
            value=float(kinds[self.options.kind]),
            parts=(*verdicts, ("partial", judgement.score), *judgement.parts),
            detail=_detail(judgement, detections, self._detector.caveat),
        )

    def selftest(self) -> None:
        row = {"tag": "single_object", "include": [{"class": self._detector.labels[0], "count": 1}]}
        blank = np.full((64, 64, 3), 127, np.uint8)
        if seen := self.look(blank, row):
            raise ValueError(f"on a blank picture it saw {seen[0].label} with confidence {seen[0].score:.2f}")
        asked = (Path(self.options.golden), self.options.golden_label) if self.options.golden else self._detector.golden
        if asked:
            picture, label = asked
            labels = {one.label for one in self.look(as_image(picture.read_bytes()), row)}
            if label not in labels:
                raise ValueError(f"on the golden picture it saw {sorted(labels)}, not {label}")


def _detail(judgement: Judgement, detections: Sequence[Detection], caveat: str) -> str:
    boxes: dict[str, list[list[float]]] = {}
    for one in detections:
        boxes.setdefault(one.label, []).append([round(float(value), 4) for value in (*one.box, one.score)])
    said = {"caveat": caveat} if caveat else {}
    return json.dumps({"reason": "\n".join(judgement.reasons), "details": boxes, **said})
