"""Claims about the GenEval benchmark: its prompts, its filter, its result file and its summary."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow

from tdm_r1.errors import ConfigError
from tdm_r1.rewards.ask import Question, ask
from tdm_r1.rewards.geneval import GenEvalScorer
from tdm_r1.rewards.geneval_results import FIELDS, read_results, samples, summarize
from tdm_r1.worlds.geneval import COLORS, TAGS, Detection, check_row, judge, keep
from tdm_r1.worlds.geneval_prompts import CLASSES, MIX, GenEvalWorld, as_jsonl, benchmark_rows, identity, training_rows
from tdm_r1.worlds.shapes.grammar import split
from tdm_r1.worlds.shapes.render import render
from tests.support import tdm_r1


def test_the_553_prompts_are_those_of_the_benchmark_byte_for_byte(tmp_path: Path) -> None:
    assert tdm_r1("geneval", "prompts", "--out", str(tmp_path / "prompts.jsonl")) == 0
    content = (tmp_path / "prompts.jsonl").read_bytes()
    assert hashlib.sha256(content).hexdigest() == "5c48e0813e812e3c373fa5c8ed07a8f0a483be30272b4427b0559c8048e67c13"
    rows = [json.loads(line) for line in content.splitlines()]
    assert as_jsonl(rows) == content
    counts = {"single_object": 80, "two_object": 99, "counting": 80, "colors": 94, "position": 100, "color_attr": 100}
    assert Counter(row["tag"] for row in rows) == counts
    assert len(CLASSES) == len(set(CLASSES)) == 80
    for row in rows:
        check_row(row, CLASSES, COLORS)


def test_training_prompts_have_the_mix_and_ask_for_nothing_that_the_benchmark_asks_for() -> None:
    rows = list(training_rows(1700))
    assert Counter(row["tag"] for row in rows) == {tag: 100 * share for tag, share in MIX.items() if share}
    assert list(MIX.values()) == [7, 5, 3, 1, 1, 0]
    tested = {identity(row) for row in benchmark_rows()}
    assert len(tested) == 553
    assert not tested & {identity(row) for row in rows}
    assert len({identity(row) for row in rows}) == 1700 - 500 + 240 - 80  # all that counting has, then again
    for row in rows:
        check_row(row, CLASSES, COLORS)


def test_two_objects_in_the_other_order_are_the_same_prompt_but_not_the_other_way_round() -> None:
    dog, cat = {"class": "dog", "count": 1}, {"class": "cat", "count": 1}
    assert identity({"tag": "two_object", "include": [dog, cat]}) == identity(
        {"tag": "two_object", "include": [cat, dog]}
    )
    left = {"position": ["left of", 0]}
    first = {"tag": "position", "include": [dog, cat | left]}
    assert identity(first) != identity({"tag": "position", "include": [cat, dog | left]})


def test_the_world_holds_each_training_prompt_once_and_the_benchmark() -> None:
    rows = GenEvalWorld().prompts()
    assert len({row.prompt_id for row in rows}) == len({row.text for row in rows}) == len(rows)
    assert [row.text for row in rows if row.split == "test"] == [row["prompt"] for row in benchmark_rows()]


def boxes(*scores: float, label: str = "dog", shift: float = 0.0) -> list[Detection]:
    places = ((shift * n, 0.0, 100.0 + shift * n, 100.0) for n in range(len(scores)))
    return [Detection(label, "", score, place) for score, place in zip(scores, places, strict=True)]


def scores_of(detections: list[Detection], tag: str = "colors", **knobs: Any) -> list[float]:
    return [one.score for one in keep(detections, tag, **knobs)]


def test_the_filter_keeps_the_sixteen_surest_above_its_threshold_per_class() -> None:
    assert scores_of(boxes(0.3, 0.95, 0.31)) == [0.95, 0.31]
    assert scores_of(boxes(0.9, 0.31, 0.91), "counting") == [0.91]
    assert len(keep(boxes(*[0.5] * 20) + boxes(*[0.5] * 20, label="cat"), "colors")) == 32
    assert len(keep(boxes(*[0.5] * 20), "colors", most=3)) == 3
    assert scores_of(boxes(0.5), threshold=0.6) == []
    assert scores_of(boxes(0.5), "counting", counting_threshold=0.4) == [0.5]


def test_overlapping_boxes_stay_unless_asked_otherwise() -> None:
    near = boxes(0.9, 0.8, shift=10.0)  # 91 of 111 columns are shared: intersection over union .82
    assert scores_of(near) == [0.9, 0.8]
    assert scores_of(near, overlap=0.8) == [0.9]
    assert scores_of(near, overlap=0.85) == [0.9, 0.8]
    assert scores_of(near[:1] + boxes(0.7, label="cat"), overlap=0.1) == [0.9, 0.7]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"tag": "colours"}, "the tag is 'colours'"),
        ({"tag": None}, "the tag is None"),
        ({"include": []}, "includes no object"),
        ({"include": [{"class": "unicorn", "count": 1}]}, "knows no class 'unicorn'"),
        ({"include": [{"class": "dog", "count": 0}]}, "the count is 0"),
        ({"include": [{"class": "dog", "count": 1, "color": "mauve"}]}, "colour 'mauve'"),
        ({"include": [{"class": "dog", "count": 1, "position": ["under", 0]}]}, "the position is"),
        ({"include": [{"class": "dog", "count": 1, "position": ["above", 0]}]}, "the position is"),
        ({"exclude": [{"class": "unicorn", "count": 1}]}, "knows no class 'unicorn'"),
    ],
)
def test_a_row_that_no_image_could_satisfy_is_an_error_and_no_reward_of_zero(change: Any, reason: str) -> None:
    row = {"tag": "single_object", "include": [{"class": "dog", "count": 1}]}
    check_row(row, CLASSES, COLORS)
    with pytest.raises(ValueError, match=reason):
        check_row({**row, **change}, CLASSES, COLORS)


def test_an_unknown_tag_costs_its_row_only() -> None:
    good = {"tag": "single_object", "include": [{"class": "ring", "count": 1}]}
    picture = np.zeros((64, 64, 3), np.uint8)
    scores = ask(GenEvalScorer(detector="shapes"), [Question(picture, "", {**good, "tag": t}) for t in ("x", "colors")])
    assert [score.value for score in scores] == [None, 0.0]
    assert "the tag is 'x'" in (scores[0].error or "")


def test_the_reasons_are_those_of_the_benchmark() -> None:
    red, blue = Detection("car", "red", 0.9, (0, 0, 10, 10)), Detection("car", "blue", 0.8, (50, 0, 60, 10))
    asked = {"include": [{"class": "car", "count": 2, "color": "red"}], "exclude": [{"class": "car", "count": 2}]}
    assert judge([red, blue], asked).reasons == (
        "expected red car>=2, found 1 red; and 1 red, 1 blue",
        "expected car<2, found 2",
    )
    right_of = {"include": [{"class": "car", "count": 1}, {"class": "dog", "count": 1, "position": ["right of", 0]}]}
    dog = Detection("dog", "", 0.9, (0, 0, 10, 10))
    assert judge([dog], right_of).reasons == ("expected car>=1, found 0", "no target for dog to be right of")
    assert judge([dog, blue], right_of).reasons == ("expected dog right of target, found left of target",)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Two prompts of each tag of the world `shapes`, two images each; of `position` all wrong, one file truncated."""
    rng, folder = np.random.default_rng(3), tmp_path / "images"
    prompts = [prompt for tag in TAGS for prompt in split()[1][tag][:2]]
    for number, prompt in enumerate(prompts):
        place = folder / f"{number:05d}" / "samples"
        place.mkdir(parents=True)
        (place.parent / "metadata.jsonl").write_text(json.dumps(prompt.metadata()))
        for index in range(2):
            drawn = render(prompt, rng) if prompt.tag != "position" else np.zeros((64, 64, 3), np.uint8)
            Pillow.fromarray(drawn).save(place / f"{index:04d}.png")
    broken = folder / "00000/samples/0001.png"
    broken.write_bytes(broken.read_bytes()[:60])
    return folder


def test_the_result_file_is_the_official_one_and_its_summary_is_the_official_summary(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "results.jsonl"
    options = ("--option", "detector=shapes", "--option", "counting_threshold=0.3", "--workers", "0")
    assert tdm_r1("geneval", "score", str(images), "--out", str(out), *options) == 0
    rows = read_results(out)
    assert all(tuple(row) == FIELDS for row in rows)
    assert next(row["reason"] for row in rows if not row["correct"]).startswith("error: bad image: the file cannot")
    assert all(isinstance(json.loads(row["metadata"]), dict) for row in rows)
    shown = json.loads(rows[4]["details"])
    assert all(len(box) == 5 for found in shown.values() for box in found)
    capsys.readouterr()
    assert tdm_r1("geneval", "summarize", str(out)) == 0
    assert capsys.readouterr().out.splitlines() == [
        "Summary",
        "=======",
        "Total images: 24",
        "Total prompts: 12",
        "% correct images: 79.17%",
        "% correct prompts: 83.33%",
        "",
        "Task breakdown",
        "==============",
        "single_object    = 75.00% (3 / 4)",
        "two_object       = 100.00% (4 / 4)",
        "counting         = 100.00% (4 / 4)",
        "colors           = 100.00% (4 / 4)",
        "position         = 0.00% (0 / 4)",
        "color_attr       = 100.00% (4 / 4)",
        "",
        "Overall score (avg. over tasks): 0.79167",
    ]


def test_the_overall_score_is_the_mean_of_the_tags_and_not_of_the_images() -> None:
    rows = [{"tag": "colors", "correct": True, "metadata": str(n)} for n in range(9)]
    rows.append({"tag": "counting", "correct": False, "metadata": "x"})
    summary = summarize(rows)
    assert (summary.overall, summary.correct_images) == (0.5, 0.9)
    assert summary.missing == ["single_object", "two_object", "position", "color_attr"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no result"),
        ("{", "line 1 of .* is no JSON"),
        ('{"tag": "colors", "correct": true, "metadata": "x"}\n[]', "line 2 of .* tag, correct, metadata"),
        ('{"tag": "colors", "correct": 1, "metadata": "x"}', "correct is missing or of another type"),
        ('{"tag": null, "correct": true, "metadata": "x"}', "tag is missing or of another type"),
        ('{"tag": ["a"], "correct": true, "metadata": "x"}', "tag is missing or of another type"),
    ],
)
def test_a_file_that_is_no_result_is_refused_with_its_line(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text(text)
    assert tdm_r1("geneval", "summarize", str(tmp_path / "file")) == 2
    with pytest.raises(ValueError, match=message):
        raise ValueError(capsys.readouterr().err)


def test_a_folder_whose_metadata_is_no_object_and_results_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "00000" / "samples").mkdir(parents=True)
    (tmp_path / "00000" / "metadata.jsonl").write_text("[]")
    with pytest.raises(ConfigError, match=r"00000/metadata\.jsonl` is no JSON object"):
        samples(tmp_path)
    (tmp_path / "file").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="is no UTF-8"):
        read_results(tmp_path / "file")
