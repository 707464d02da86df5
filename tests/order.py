"""The order of a session with several workers: long tests first, dealt out, and quick ones to fill the end."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Final

import pytest

LONGEST: Final = (
    "parity/test_parity.py",
    "faults/test_kill_s3.py",
    "e2e/test_distributed.py",
    "e2e/test_s3_run.py",
    "e2e/test_plane.py",
)
"""Modules that take more than a minute, longest first."""


def dealt(items: Sequence[pytest.Item], workers: int) -> list[pytest.Item]:
    """The same tests for `--dist worksteal`, which gives each worker one stretch of them and later takes from its tail.

    Each stretch begins with its share of the modules marked `slow`; a module stays together.
    """
    if workers < 2:
        return list(items)
    slow = [item for item in items if item.get_closest_marker("slow")]
    quick = [item for item in items if not item.get_closest_marker("slow")]
    modules = sorted((list(group) for _, group in groupby(slow, _module)), key=lambda group: _rank(_module(group[0])))
    order: list[pytest.Item] = []
    for worker in range(workers):
        first = [item for group in modules[worker::workers] for item in group]
        size = (len(items) - len(order)) // (workers - worker)
        fill = max(0, size - len(first)) if worker + 1 < workers else len(quick)
        order += first + quick[:fill]
        del quick[:fill]
    return order


def _module(item: pytest.Item) -> str:
    return item.nodeid.partition("::")[0]


def _rank(module: str) -> int:
    return next((number for number, name in enumerate(LONGEST) if module.endswith(name)), len(LONGEST))
