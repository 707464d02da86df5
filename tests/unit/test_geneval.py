"""The GenEval rule against golden vectors that were computed with the peers' own functions."""

from __future__ import annotations

import math
from typing import Any

import pytest

from tdm_r1.worlds.geneval import Detection, judge, keep, relations

Box = tuple[float, float, float, float]
CENTRE: Box = (100, 100, 160, 160)
LEFT: Box = (20, 100, 80, 160)
RIGHT: Box = (200, 100, 260, 160)
NEAR: Box = (102, 100, 162, 160)


def found(label: str, color: str = "", score: float = 0.9, box: Box = CENTRE) -> Detection:
    return Detection(label, color, score, box)


def asked(label: str, count: int = 1, **more: Any) -> dict[str, Any]:
    return {"class": label, "count": count, **more}


DOG = [asked("dog")]
DOG_CAT = [asked("dog"), asked("cat")]
CUPS = {"include": [asked("cup", 3)], "exclude": [asked("cup", 4)]}
RED_CAR = [asked("car", color="red")]
RED_DOG_BLUE_CAT = [asked("dog", color="red"), asked("cat", color="blue")]
CAT_LEFT = [asked("dog"), asked("cat", position=("left of", 0))]
CAT_ABOVE = [asked("dog"), asked("cat", position=("above", 0))]

GOLDEN: dict[str, tuple[list[Detection], Any, bool, bool, float]] = {
    "1 dog asked, 1 found": ([found("dog")], DOG, True, True, 1),
    "1 dog, 2 boxes found": ([found("dog")] * 2, DOG, True, False, 0),
    "1 dog, none": ([], DOG, False, False, 0),
    "1 dog, 4 found": ([found("dog")] * 4, DOG, True, False, -2),
    "dog and cat, both": ([found("dog"), found("cat")], DOG_CAT, True, True, 1),
    "dog and cat, only dog": ([found("dog")], DOG_CAT, False, False, 0.5),
    "3 cups, 3": ([found("cup")] * 3, CUPS, True, True, 1),
    "3 cups, 4": ([found("cup")] * 4, CUPS, False, False, 2 / 3),
    "3 cups, 2": ([found("cup")] * 2, CUPS, False, False, 2 / 3),
    "red dog and blue cat": ([found("dog", "red"), found("cat", "blue")], RED_DOG_BLUE_CAT, True, True, 1),
    "one colour wrong": ([found("dog", "red"), found("cat", "green")], RED_DOG_BLUE_CAT, False, False, 0.75),
    "colours swapped": ([found("dog", "blue"), found("cat", "red")], RED_DOG_BLUE_CAT, False, False, 0.5),
    "red car asked, red": ([found("car", "red")], RED_CAR, True, True, 1),
    "red car asked, blue": ([found("car", "blue")], RED_CAR, False, False, 0.5),
    "red car, 2 cars, best red": ([found("car", "blue", 0.5), found("car", "red", 0.9)], RED_CAR, True, False, 0),
    "red car, none": ([], RED_CAR, False, False, 0),
    "cat left of dog, true": ([found("dog", box=RIGHT), found("cat", box=LEFT)], CAT_LEFT, True, True, 1),
    "cat left of dog, wrong side": ([found("dog", box=LEFT), found("cat", box=RIGHT)], CAT_LEFT, False, False, 0.75),
    "target (dog) missing": ([found("cat", box=LEFT)], CAT_LEFT, False, False, 1 / 3),
    "subject (cat) missing": ([found("dog", box=RIGHT)], CAT_LEFT, False, False, 1 / 3),
    "cat above dog, exact diagonal": (
        [found("dog", box=(200, 200, 260, 260)), found("cat", box=(20, 20, 80, 80))],
        CAT_ABOVE,
        True,
        True,
        1,
    ),
    "same centre (2 px off)": ([found("dog"), found("cat", box=NEAR)], CAT_LEFT, False, False, 0.75),
}
"""Detections, clauses, then the released code's benchmark verdict, strict verdict and score."""


@pytest.mark.parametrize("case", GOLDEN)
def test_the_released_scorer_and_this_one_agree(case: str) -> None:
    detections, clauses, correct, strict, score = GOLDEN[case]
    metadata = clauses if isinstance(clauses, dict) else {"include": clauses}
    judgement = judge(detections, metadata, replicate=True, clip_low=-math.inf)
    assert (judgement.correct, judgement.strict) == (correct, strict)
    assert judgement.score == pytest.approx(score)


def test_without_replication_a_wrong_side_earns_nothing_for_the_relation() -> None:
    detections, clauses, *_ = GOLDEN["cat left of dog, wrong side"]
    judgement = judge(detections, {"include": clauses})
    assert judgement.score == pytest.approx(2 / 3)
    assert judgement.parts == (("count", 1.0), ("count", 1.0), ("position", 0.0))


def test_too_many_objects_cost_no_more_than_everything_unless_asked() -> None:
    assert judge([found("dog")] * 4, {"include": DOG}).score == 0
    assert judge([found("dog")] * 16, {"include": DOG}, clip_low=-math.inf).score == -14


@pytest.mark.parametrize(
    ("subject", "anchor", "expected"),
    [
        ((20, 100, 80, 160), (200, 100, 260, 160), {"left of"}),
        ((20, 20, 80, 80), (200, 200, 260, 260), {"left of", "above"}),
        ((20, 90, 80, 150), (200, 150, 260, 210), {"left of"}),
        ((100, 100, 160, 160), (105, 100, 165, 160), set()),
        ((60, 70, 120, 130), (100, 100, 160, 160), {"left of"}),  # (−40, −30) shrunk by 12 is (−28, −18), over 50
    ],
)
def test_a_relation_is_where_the_shrunk_offset_points(subject: Box, anchor: Box, expected: set[str]) -> None:
    opposite = {"left of": "right of", "above": "below"}
    a, b = found("a", box=subject), found("b", box=anchor)
    assert relations(a, b) == expected
    assert relations(b, a) == {opposite[name] for name in expected}


def test_the_benchmark_looks_at_the_most_confident_boxes_only() -> None:
    sure, unsure = found("car", "blue", 0.9), found("car", "red", 0.4)
    assert not judge([unsure, sure], {"include": RED_CAR}).correct
    assert judge([found("car", "blue", 0.4), found("car", "red", 0.9)], {"include": RED_CAR}).correct


def test_a_relation_must_hold_for_every_pair() -> None:
    two_cats = [asked("dog"), asked("cat", 2, position=("left of", 0))]
    dog, cat, wrong = found("dog"), found("cat", box=LEFT), found("cat", box=RIGHT)
    assert judge([dog, cat, found("cat", box=(10, 100, 70, 160))], {"include": two_cats}).correct
    assert not judge([dog, cat, wrong], {"include": two_cats}).correct


@pytest.mark.parametrize(("side", "holds"), [(24.8, True), (25.2, False)])
@pytest.mark.parametrize(
    ("name", "x", "y"), [("left of", -30, 40), ("right of", 30, -40), ("above", -40, -30), ("below", 40, 30)]
)
def test_a_direction_begins_at_half_of_the_offset_less_a_tenth_of_the_sides(
    name: str, x: int, y: int, side: float, holds: bool
) -> None:
    """(30 − 0.1 · 2 · side) / 50 is 0.5 at a side of 25."""
    subject, anchor = (
        Detection("cat", "", 1.0, (left, top, left + side, top + side))
        for left, top in ((100 + x, 100 + y), (100, 100))
    )
    assert (name in relations(subject, anchor)) == holds


def test_the_overlap_of_boxes_is_measured_with_sides_one_pixel_longer() -> None:
    whole, half = (Detection("cat", "", score, (0, 0, 9, bottom)) for score, bottom in ((0.9, 9), (0.8, 4)))
    assert keep([whole, half], "colors", overlap=0.5) == [whole]
    assert keep([whole, half], "colors", overlap=0.51) == [whole, half]
