"""Where a long stage leaves its state between two optimizer steps, without knowing what stores it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from tdm_r1.artifacts.records import TrainingState


@dataclass(frozen=True)
class Saved:
    """A stage's record as it would be if the stage ended after `steps` optimizer steps; averages may be missing."""

    steps: int
    record: TrainingState


class Checkpoints(Protocol):
    @property
    def found(self) -> Saved | None:
        """The newest state of an earlier attempt with the same parents and configuration."""

    def offer(self, steps: int, record: Callable[[], TrainingState]) -> None:
        """Store the state after `steps` steps if it is time; the record is made on every rank, then, or not at all."""


class NoCheckpoints:
    """Every attempt starts at the beginning."""

    found: Final = None

    def offer(self, steps: int, record: Callable[[], TrainingState]) -> None:
        """Nothing is stored."""


NO_CHECKPOINTS: Final = NoCheckpoints()
