"""The processes that train one role together, as a stage sees them: who it is, and two collectives.

Every process holds the same weights, takes its share of an optimizer step's microbatches and adds its gradients to
those of the others. What is drawn is keyed by sample or group, so that no draw depends on who makes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol, TypeVar

from torch import Tensor

Unit = TypeVar("Unit")


class World(Protocol):
    """Ranks 0..size−1; each calls every collective in the same order."""

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over ranks, added in the order of ranks: the same bits everywhere."""

    def gather(self, text: str) -> list[str]:
        """What each rank gave, in the order of ranks."""


class Alone:
    """A world of one process; nothing is sent."""

    rank: Final = 0
    size: Final = 1

    def add(self, tensors: Sequence[Tensor]) -> None:
        """A sum of one term is the term."""

    def gather(self, text: str) -> list[str]:
        return [text]


ALONE: Final = Alone()


def dealt(units: Sequence[Unit], world: World) -> list[tuple[int, Unit]]:
    """The units of this rank, each with its number among all: rank r takes r, r + size, …"""
    return list(enumerate(units))[world.rank :: world.size]


def rounds(units: Sequence[Unit], world: World) -> int:
    """How many units the rank with most of them takes."""
    return -(-len(units) // world.size)
