"""The page and the picture of a whole run, and the table that a terminal shows."""

from __future__ import annotations

import io
import json
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from tdm_r1.console import result_table
from tdm_r1.report.figures import free_end
from tdm_r1.report.history import Drawn
from tdm_r1.report.picture import bands
from tdm_r1.runtime.results import in_suite_order
from tests.support import tdm_r1

GENEVAL = ["single_object", "two_object", "counting", "colors", "position", "color_attr"]


def test_a_finished_run_leaves_a_page_that_needs_no_other_file(finished: Path) -> None:
    page = (finished / "report.html").read_text()
    assert not re.search(r"(src|href)=\"(?!data:|#)", page)
    assert "<script" not in page
    assert page.count("<svg") == 2


def test_the_page_shows_the_numbers_of_the_result(finished: Path) -> None:
    page = (finished / "report.html").read_text()
    for row in json.loads((finished / "result.json").read_text())["rows"]:
        assert f"<td>{row['name']}</td>" in page
        assert f"{row['overall']:.3f}<br>" in page
    assert "tdm-r1 over tdm on the same prompts and noise" in page


@pytest.mark.parametrize(
    ("level", "curve", "end"),
    [
        (0.71, [0.59, 0.66, 0.72], "left"),  # the curve ends at the line
        (0.59, [0.59, 0.66, 0.72], "right"),  # and begins at this one
        (0.53, [0.59, 0.66, 0.72], "right"),
        (0.90, [0.50, 0.50], "right"),
        (0.90, [], "right"),
    ],
)
def test_a_level_line_is_named_where_the_curve_is_farther_from_it(level: float, curve: list[float], end: str) -> None:
    assert free_end(level, curve) == end


def test_the_page_of_the_same_run_is_the_same_page(finished: Path, tmp_path: Path) -> None:
    assert tdm_r1("report", "--root", str(finished), "--out", str(tmp_path / "again.html")) == 0
    assert (tmp_path / "again.html").read_bytes() == (finished / "report.html").read_bytes()


@pytest.mark.parametrize(
    ("tags", "rows"),
    [
        ("abcdef", ["a0 b0 c0 d0 e0 f0", "a1 b1 c1 d1 e1 f1"]),
        ("abc", ["a0 a1 b0 b1 c0 c1", "a2 a3 b2 b3 c2 c3"]),
        ("abcd", ["a0 b0 c0 d0", "a1 b1 c1 d1"]),
        ("abcdefgh", ["a0 b0 c0 d0 e0 f0", "a1 b1 c1 d1 e1 f1"]),
    ],
)
def test_every_tag_has_as_many_prompts_in_the_picture_as_six_places_allow(tags: str, rows: list[str]) -> None:
    drawn = [Drawn(f"{tag}{number}", tag, {}) for number in range(4) for tag in tags]
    assert [" ".join(one.text for one in row) for row in bands(list(tags), drawn)] == rows


def test_the_picture_is_2400_pixels_wide(finished: Path, tmp_path: Path) -> None:
    out, picture = str(tmp_path / "a.html"), tmp_path / "folder" / "a.png"
    assert tdm_r1("report", "--root", str(finished), "--out", out, "--picture", str(picture)) == 0
    with Image.open(picture) as drawn:
        assert drawn.width == 2400


def test_a_run_that_still_goes_on_has_a_page(finished: Path, tmp_path: Path) -> None:
    root = tmp_path / "run"
    shutil.copytree(finished, root)
    shutil.rmtree(root / "iter-00002")
    assert tdm_r1("report", "--root", str(root)) == 0
    assert "evaluated up to iteration 1" in (root / "report.html").read_text()


def test_a_run_without_an_evaluation_says_what_to_do(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(finished / "run.json", tmp_path / "run.json")
    assert tdm_r1("report", "--root", str(tmp_path)) == 2
    assert f"hint: resume the run with `tdm-r1 run --root {tmp_path}`" in capsys.readouterr().err


def test_the_result_table_fits_a_terminal_of_80_columns() -> None:
    row = {"nfe": 100, "overall": 0.123, "ci95": [0.1, 0.2], "tags": dict.fromkeys(in_suite_order(GENEVAL), 0.5)}
    out = io.StringIO()
    Console(width=80, file=out).print(result_table([{"name": "teacher-4", **row}], "title"))
    assert "…" not in out.getvalue()
    assert re.search(r"model +NFE +overall +95% interval +single +two +count +color +pos +attr", out.getvalue())
    assert "0.100–0.200" in out.getvalue()
