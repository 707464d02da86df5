"""What a detector is to the GenEval scorer, and the one of the embedded world."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from tdm_r1.rewards.protocol import Image
from tdm_r1.worlds.geneval import Detection
from tdm_r1.worlds.shapes import grammar, verifier

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Found:
    """A detection, and which pixels it covers if the detector knows."""

    detection: Detection
    mask: Mask | None = None
    """[height, width] of the image."""


class Detector(Protocol):
    """Finds objects of known classes."""

    @property
    def labels(self) -> Sequence[str]:
        """Classes that it knows, by the names that metadata rows use."""

    @property
    def colors(self) -> Sequence[str]:
        """Colours that it names by itself; none when a classifier must."""

    @property
    def caveat(self) -> str:
        """What must be said beside a verdict that rests on it; empty is nothing."""

    @property
    def golden(self) -> tuple[Path, str] | None:
        """A picture that is always at hand, and a class that must be found in it."""

    def files(self) -> Sequence[Path]:
        """Weights on disk; part of the scorer's revision."""

    def load(self, threads: int) -> None:
        """Read weights."""

    def detect(self, image: Image) -> list[Found]:
        """Every object with its confidence; the scorer applies thresholds."""


class ShapesDetector:
    """The verifier of the embedded world: figures on flat ground, with their colours."""

    labels: Sequence[str] = grammar.SHAPES
    colors: Sequence[str] = tuple(grammar.COLORS)
    caveat = ""
    golden = None

    def files(self) -> Sequence[Path]:
        return ()

    def load(self, threads: int) -> None:
        del threads

    def detect(self, image: Image) -> list[Found]:
        return [Found(one) for one in verifier.detect(image)]
