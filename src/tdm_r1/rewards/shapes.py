"""Reward of the world `shapes`: the GenEval rule on what the verifier sees."""

from __future__ import annotations

from typing import ClassVar, Final, Literal

import numpy as np

from tdm_r1.config import Section
from tdm_r1.rewards.protocol import Image, Metadata, PerImage, Score, ScorerInfo, golden
from tdm_r1.worlds import geneval
from tdm_r1.worlds.shapes import grammar, render, verifier

_GOLDEN: Final = {
    "tag": "color_attr",
    "include": [{"class": "circle", "count": 1, "color": "red"}, {"class": "square", "count": 1, "color": "blue"}],
}


class ShapesOptions(Section):
    kind: Literal["partial", "strict", "correct"] = "partial"
    """What becomes the value: the mean over clauses, the strict rule, or the benchmark's rule."""
    replicate: bool = False
    """Add the released GenEval reward's 1.0 after a failed relation."""


class ShapesScorer(PerImage):
    """Partial credit by default; see `tdm_r1.worlds.geneval`."""

    about = ScorerInfo(
        name="shapes",
        version="2",
        licence="Apache-2.0",
        needs=("image", "metadata"),
        low=0.0,
        high=1.0,
        batch=16,
        cpu_seconds=0.002,
    )
    Options = ShapesOptions
    code: ClassVar = (geneval, verifier, grammar, render)
    options: ShapesOptions

    def score_one(self, image: Image, prompt: str, metadata: Metadata) -> Score:
        del prompt
        geneval.check_row(metadata, grammar.SHAPES, grammar.COLORS)
        judgement = verifier.verify(image, metadata, replicate=self.options.replicate)
        kinds = {"partial": judgement.score, "strict": judgement.strict, "correct": judgement.correct}
        verdicts = (("correct", float(judgement.correct)), ("strict", float(judgement.strict)))
        return Score(
            value=float(kinds[self.options.kind]), parts=(*verdicts, ("partial", judgement.score), *judgement.parts)
        )

    def selftest(self) -> None:
        circle = render.Figure("circle", "red", 18.0, 32.0, 9.0)
        square = render.Figure("square", "blue", 46.0, 32.0, 9.0)
        drawn = [render.draw(part, "black", np.random.default_rng(0)) for part in ((circle, square), ())]
        for picture, value in zip(drawn, (1.0, 0.0), strict=True):
            golden(self, picture, value, metadata=_GOLDEN)
