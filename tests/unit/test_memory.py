"""A claim about memory: what reads a table piece by piece does not grow with the table."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_audit_and_query_of_a_large_table_add_less_than_a_third_of_it_to_memory(tmp_path: Path) -> None:
    memory = runpy.run_path(str(ROOT / "benchmarks/memory.py"))
    table = tmp_path / "part.parquet"
    rows = memory["write_table"](table, 300)
    memory["build"](str(tmp_path / "run"), table, rows)
    found = memory["probe"](str(tmp_path / "run"), {})
    assert found.pop("load")["MB_added"] > 250  # the whole table: the measure sees it
    for what, measured in found.items():
        assert measured["MB_added"] < 100, (what, measured)
