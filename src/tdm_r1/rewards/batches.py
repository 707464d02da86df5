"""How the rows of a shard are dealt out to processes: in order, in whole calls of the scorer's size."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

Row = TypeVar("Row")

UNIT: Final = 0.2
"""Seconds of work that are handed out at once, if one call takes less."""


@dataclass(frozen=True)
class Batch:
    """Rows that one process answers together, in calls of the scorer's own size."""

    rows: Sequence[int]
    deaths: int = 0
    """Processes that died on one call with these rows."""
    suspect: bool = False
    """A process died on them: they are handed out without others."""

    def cut(self, call: int) -> list[Batch]:
        """Smaller ones, to find the row that kills: calls, then halves of a call, then the row alone once more."""
        if len(self.rows) > call:
            return [Batch(rows, suspect=True) for rows in calls(self.rows, call)]
        half = max(1, (len(self.rows) + 1) // 2)
        return [Batch(rows, self.deaths + 1, suspect=True) for rows in calls(self.rows, half)]


def calls(rows: Sequence[Row], size: int) -> list[Sequence[Row]]:
    """Rows in order, `size` at a time."""
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def take(queue: deque[Batch], processes: int, seconds: float | None, unit: float = UNIT) -> Batch:
    """The next calls for one process: `unit` of work, but at most half of an equal share of what is left.

    Args:
        queue: one call or a suspect in each; what is taken is removed.
        seconds: that a call takes; None when that is not known, then it is one.
    """
    enough = 1 if seconds is None else int(unit / max(seconds, 1e-6))
    most = min(enough, len(queue) // (2 * processes))
    first = queue.popleft()
    taken = list(first.rows)
    for _ in range(most - 1):
        if first.suspect or queue[0].suspect:
            break
        taken += queue.popleft().rows
    return first if len(taken) == len(first.rows) else Batch(taken)
