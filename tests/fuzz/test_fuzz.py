"""Any bytes give a record or a refusal of ours: by hypothesis from damaged records, and by coverage for ten seconds."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.readers import READERS, feed, feed_any
from tests.fuzz.seeds import seeds

ROOT = Path(__file__).parents[2]
SECONDS = 10


@cache
def valid() -> dict[str, list[bytes]]:
    return seeds()


def test_every_reader_has_a_seed_and_believes_it() -> None:
    assert set(valid()) == set(READERS)
    for name, inputs in valid().items():
        assert all(feed(name, data) for data in inputs), name


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=300))
def test_bytes_that_were_never_a_record_are_refused_by_our_own_errors(data: bytes) -> None:
    feed_any(data)
    assert not any(feed(name, data) for name in ("manifest", "run", "picture", "rollout/part.parquet"))


@st.composite
def damaged(draw: st.DrawFn) -> tuple[str, bytes]:
    """A valid input with some bytes replaced, removed, doubled or moved."""
    name = draw(st.sampled_from(sorted(READERS)))
    data = bytearray(draw(st.sampled_from(valid()[name])))
    for _ in range(draw(st.integers(1, 4))):
        size = max(1, len(data))
        start = draw(st.integers(0, size - 1) | st.integers(max(0, size - 300), size - 1))  # footers are at the end
        stop = start + draw(st.sampled_from([0, 1, 1, 4, 8, 64, 2000]))
        new = draw(st.binary(max_size=9) | st.sampled_from([b"", bytes(8), b"\xff" * 8, bytes(data[stop : stop + 30])]))
        data[start:stop] = new
    return name, bytes(data)


@settings(max_examples=400, deadline=None)
@given(damaged())
def test_a_damaged_record_is_read_or_refused_by_our_own_errors(case: tuple[str, bytes]) -> None:
    feed(*case)


@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris has no wheel for this Python")
@pytest.mark.slow
def test_ten_seconds_of_coverage_guided_fuzzing_find_nothing(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "tests.fuzz.fuzz_readers",
        f"-max_total_time={SECONDS}",
        f"-artifact_prefix={tmp_path}/",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    runs = re.search(r"Done (\d+) runs", done.stderr)
    assert runs is not None, done.stderr[-2000:]
    assert int(runs[1]) > sum(map(len, valid().values()))


def test_a_level_histogram_of_the_wrong_length_is_refused() -> None:
    """Found by the fuzzer; in a process of its own, for it aborts."""
    found = ROOT / "tests" / "fuzz" / "found" / "level_histogram.parquet"
    code = "import sys, pathlib; from tests.fuzz.readers import feed; "
    code += "print(feed('reward_scoring/part.parquet', pathlib.Path(sys.argv[1]).read_bytes()))"
    done = subprocess.run(
        [sys.executable, "-c", code, found], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (0, "False"), done.stderr[-1000:]
