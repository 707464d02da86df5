"""Reward of the world `shapes`: the GenEval rule on what the verifier sees."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tdm_r1.rewards.scorer import Image, Score
from tdm_r1.worlds.shapes.verifier import verify


@dataclass(frozen=True)
class ShapesScorer:
    """Partial credit by default; see `tdm_r1.worlds.geneval`."""

    kind: Literal["partial", "strict", "correct"] = "partial"
    replicate: bool = False

    def __call__(self, image: Image, metadata: Mapping[str, Any]) -> Score:
        judgement = verify(image, metadata, replicate=self.replicate)
        value = {"partial": judgement.score, "strict": judgement.strict, "correct": judgement.correct}[self.kind]
        return Score(
            reward=float(value),
            correct=judgement.correct,
            strict=judgement.strict,
            partial=judgement.score,
            parts=judgement.parts,
        )
