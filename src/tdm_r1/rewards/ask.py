"""Ask one scorer in this process: it must be fit to serve, and whatever it raises costs its own row only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tdm_r1.errors import ScorerError, TdmR1Error
from tdm_r1.rewards.images import BadImageError, as_image
from tdm_r1.rewards.protocol import Image, Metadata, Score, Scorer, ScorerInfo, failed, reason_of


@dataclass(frozen=True)
class Question:
    """One image with what a scorer may look at."""

    picture: Any
    """[height, width, 3] uint8 RGB, or the bytes of a picture file; anything else becomes the row's error."""
    prompt: str
    metadata: Mapping[str, Any]


def make_ready(scorer: Scorer, threads: int = 1) -> None:
    """Load a scorer and test it.

    Raises:
        ScorerError: when it cannot be loaded or does not give its golden picture the right value.
    """
    step = "cannot be loaded"
    try:
        scorer.load(threads)
        step = "fails its self-test"
        scorer.selftest()
    except TdmR1Error:
        raise
    except Exception as error:
        raise ScorerError(
            f"scorer `{scorer.info.name}` {step}: {reason_of(error)}",
            hint="a wrong installation would look like a bad policy, so it does not serve: see docs/rewards.md",
        ) from error


def ask(scorer: Scorer, questions: Sequence[Question], info: ScorerInfo | None = None) -> list[Score]:
    """One score per question, in order; a row that cannot be scored says why.

    Args:
        info: the scorer's own, where it is known: to ask for it may hash gigabytes of weights.
    """
    info = info or scorer.info
    scores: list[Score | None] = [None] * len(questions)
    rows: list[int] = []
    images: list[Image] = []
    for row, question in enumerate(questions):
        try:
            images.append(as_image(question.picture, info.min_side))
            rows.append(row)
        except BadImageError as error:
            scores[row] = failed(f"bad image: {error}")
    prompts = [questions[row].prompt for row in rows]
    metadata = [questions[row].metadata for row in rows]
    for row, score in zip(rows, _call(scorer, images, prompts, metadata), strict=True):
        scores[row] = score
    return [score for score in scores if score is not None]


def _call(
    scorer: Scorer, images: Sequence[Image], prompts: Sequence[str], metadata: Sequence[Metadata]
) -> Sequence[Score]:
    """Ask for all rows at once; when that raises, ask for each alone."""
    if not images:
        return []
    try:
        scores = scorer.score(images, prompts, metadata)
        if len(scores) != len(images):
            raise ValueError(f"{len(scores)} scores came back for {len(images)} images")
        if wrong := [score for score in scores if not isinstance(score, Score)]:
            raise TypeError(f"a {type(wrong[0]).__name__} came back, expected a Score")
        return scores
    except Exception as error:
        if len(images) == 1:
            return [failed(reason_of(error))]
    return [_call(scorer, [i], [p], [m])[0] for i, p, m in zip(images, prompts, metadata, strict=True)]
