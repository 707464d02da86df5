"""The fault report: what `tests/faults` injected, what survived, and how many bytes were lost, over all workers."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

PROPERTY = "faults"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("faults", "fault injection (tests/faults)")
    group.addoption("--fault-kills", type=int, default=30, help="kills of a local run; as many of a run on S3")
    group.addoption("--fault-seed", type=int, default=0, help="seed of the schedules")
    group.addoption("--fault-report", type=Path, default=None, help="JSON to write")


def reported(reporter: pytest.TerminalReporter) -> Iterator[dict[str, Any]]:
    """What each test recorded, failed ones included."""
    for outcome in ("passed", "failed"):
        for test in reporter.stats.get(outcome, []):
            for name, value in getattr(test, "user_properties", []):
                if name == PROPERTY:
                    yield {"test": test.nodeid, "outcome": outcome, **value}


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the counts; write them where --fault-report says."""
    entries = sorted(reported(terminalreporter), key=lambda entry: str(entry["kind"]))
    if not entries:
        return
    columns = ("injected", "survived", "bytes_checked", "bytes_lost")
    total: dict[str, Any] = {column: sum(entry[column] for entry in entries) for column in columns}
    terminalreporter.section("faults")
    terminalreporter.line(f"{'':44}{'injected':>10}{'survived':>10}{'bytes checked':>16}{'bytes lost':>12}")
    for entry in [*entries, {"kind": "total", "where": {}, **total}]:
        one, two, three, four = (entry[column] for column in columns)
        terminalreporter.line(f"{entry['kind']:44}{one:>10,}{two:>10,}{three:>16,}{four:>12,}")
        for where, count in Counter(entry["where"]).most_common():
            terminalreporter.line(f"{count:>10} × {where}")
    if (path := config.getoption("--fault-report")) is not None:
        seed = config.getoption("--fault-seed")
        path.write_text(json.dumps({"seed": seed, "total": total, "tests": entries}, indent=1) + "\n", encoding="utf-8")
