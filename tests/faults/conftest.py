"""Fixtures of the fault tests: the real program, started cheaply, and the counts for the report."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tdm_r1.artifacts.store import open_store
from tdm_r1.runtime.layout import Task, all_tasks
from tdm_r1.runtime.run_file import read_config
from tests.faults.guard import Ledger


@pytest.fixture
def kills(pytestconfig: pytest.Config) -> int:
    """How many kills a schedule has."""
    return int(pytestconfig.getoption("--fault-kills"))


@pytest.fixture
def draw(pytestconfig: pytest.Config) -> random.Random:
    """The schedule's own random numbers."""
    return random.Random(int(pytestconfig.getoption("--fault-seed")))


@pytest.fixture
def ledger(record_property: Callable[[str, object], None]) -> Callable[[str], Ledger]:
    """Open the counts of one kind of fault."""
    return lambda kind: Ledger(record_property, kind)


@pytest.fixture(scope="session")
def tasks(finished: Path) -> list[Task]:
    """The tasks of the tiny run, in order."""
    return all_tasks(read_config(open_store(str(finished))))
