"""What people said as a reward: the scorer `feedback` reads the votes that the stage `feedback` committed."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import ClassVar

from pydantic import Field

from tdm_r1.config import Section
from tdm_r1.rewards import counted, preferences
from tdm_r1.rewards.extras import need
from tdm_r1.rewards.preferences import Duel, Fit
from tdm_r1.rewards.protocol import Image, Metadata, PerImage, Score, ScorerInfo, abstained, golden


class FeedbackOptions(Section):
    prior: float = Field(default=1.0, gt=0)
    """Inverse variance of the normal prior on every sample's value, in logits: more trusts few votes less."""


class Feedback(PerImage):
    """Likes, pairs and clicks of people, by a Bradley–Terry fit inside each group; logits."""

    about = ScorerInfo(
        name="feedback",
        version="1",
        licence="Apache-2.0",
        needs=("feedback",),
        min_side=1,
        batch=256,
        cpu_seconds=0.001,
        extra="feedback",
    )
    Options = FeedbackOptions
    code: ClassVar = (preferences, counted)
    options: FeedbackOptions

    def load(self, threads: int) -> None:
        del threads
        need("scipy", extra="feedback")

    def libraries(self) -> Sequence[str]:
        return ("scipy",)

    def score_one(self, image: Image, prompt: str, metadata: Metadata) -> Score:
        del image, prompt
        said = metadata["feedback"]
        index, duels = said["index"], tuple((int(w), int(lost), float(n)) for w, lost, n in said["duels"])
        if index not in preferences.judged(duels):
            return abstained("nobody judged this sample")
        found = _fitted(said["count"], duels, self.options.prior)
        parts = {**preferences.counts(index, duels), "deviation": float(found.deviation[index])}
        return Score(value=float(found.value[index]), parts=tuple(parts.items()))

    def selftest(self) -> None:
        """Of two samples one won: u = σ(−2u), for a duel that weighs as much as the prior."""
        import numpy as np

        picture = np.zeros((8, 8, 3), np.uint8)
        said = {"index": 0, "count": 2, "duels": [[0, 1, self.options.prior]]}
        golden(self, picture, 0.33741580717, metadata={"feedback": said})


@lru_cache(maxsize=64)
def _fitted(count: int, duels: tuple[Duel, ...], prior: float) -> Fit:
    return preferences.fit(count, duels, prior)
