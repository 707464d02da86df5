"""What a whole run's page and picture show, as plain values: nobody here knows where it was read from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

OVERALL = "overall"
SHOWN = ("teacher", "tdm", "tdm-r1")
"""Models whose samples stand side by side, as far as the run has them."""


@dataclass(frozen=True)
class Picture:
    """One sample and its verdict."""

    image: Tensor
    """[height, width, 3] uint8."""
    correct: bool


@dataclass(frozen=True)
class Drawn:
    """One prompt, drawn by several models from the same noise."""

    text: str
    tag: str
    pictures: Mapping[str, Picture]
    """By model, in the order of `SHOWN`."""


@dataclass(frozen=True)
class Measured:
    """Held-out accuracy of the generator that an iteration left."""

    iteration: int
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Trained:
    """What the rollouts of an iteration earned; the generator of the iteration before drew them."""

    iteration: int
    reward: float
    """Mean over samples that the scorer could judge."""
    correct: float
    """Share of the same samples."""


Series = Sequence[tuple[int, float]]
"""(iteration, value); iterations may be missing."""


@dataclass(frozen=True, kw_only=True)
class History:
    """A run from its first evaluation to its last."""

    preset: str
    seed: int
    suite: str
    split: str
    """Of the prompts of the evaluation, `test` or `train`."""
    tags: Sequence[str]
    """Of the suite, in its own order."""
    remarks: Sequence[str]
    """What the table alone does not say."""
    cells: Sequence[Mapping[str, Any]]
    """Rows of `Evaluation.metrics`: of iteration 0 and of the last one evaluated."""
    measured: Sequence[Measured]
    trained: Sequence[Trained]
    health: Mapping[str, Series]
    """By metric name."""
    drawn: Sequence[Drawn]
    """Prompts of each tag in the order of the evaluation: the first few, none chosen."""

    @property
    def iterations(self) -> int:
        """The last one evaluated."""
        return max(point.iteration for point in self.measured)

    @property
    def models(self) -> list[str]:
        return list(dict.fromkeys(cell["name"] for cell in self.cells))

    @property
    def prompts(self) -> str:
        """What the accuracy was measured on."""
        return "held-out prompts" if self.split == "test" else "training prompts"

    def cell(self, model: str, tag: str = OVERALL) -> Mapping[str, Any]:
        return next(cell for cell in self.cells if (cell["name"], cell["tag"]) == (model, tag))

    def label(self, model: str) -> str:
        """`TDM-R1 (4 NFE)`."""
        return f"{title(model)} ({self.cell(model)['nfe']} NFE)"


def title(model: str) -> str:
    """How a model's name is written: `TDM-R1`, `teacher`."""
    return "teacher" if model.startswith("teacher") else model.upper()
