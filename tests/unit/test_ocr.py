"""Claims about the scorer `ocr`, with the engines that read for real."""

from __future__ import annotations

import json
import re
import shutil
import sys
from functools import cache

import numpy as np
import pytest

from benchmarks.lettering import lettering
from tdm_r1.errors import ScorerError
from tdm_r1.rewards.ask import Question, ask, make_ready
from tdm_r1.rewards.ocr import OcrScorer, written
from tdm_r1.rewards.ocr_engines import limit_of, side_of
from tdm_r1.rewards.protocol import Image
from tdm_r1.rewards.registry import open_scorer
from tests.unit.test_scorers import BAD

TEXTS = ("Happy Birthday", "Room 214", "Fresh Coffee Daily Here", "LIBRARY")


@cache
def ready(engine: str = "rapidocr", threads: int = 1) -> OcrScorer:
    scorer = open_scorer("ocr", {"engine": engine})
    assert isinstance(scorer, OcrScorer)
    make_ready(scorer, threads)
    return scorer


def asked(text: str, picture: Image) -> Question:
    return Question(picture, f'a sign that says "{text}"', {})


@pytest.mark.parametrize("side", [96, 128, 512])
def test_written_text_is_read_exactly(side: int) -> None:
    pictures = [lettering(text, side, seed) for seed, text in enumerate(TEXTS)]
    scores = ask(ready(), [asked(*pair) for pair in zip(TEXTS, pictures, strict=True)])
    assert [(score.value, score.part("exact")) for score in scores] == [(1.0, 1.0)] * len(TEXTS)
    shown = json.loads(scores[0].detail or "")
    assert shown["target"] == "Happy Birthday"
    assert "".join(line["text"] for line in shown["lines"]).replace(" ", "") == "HappyBirthday"


def test_the_reward_falls_as_letters_go_wrong_and_noise_earns_nothing() -> None:
    wrong = ("Happy Birthday", "Happy Birthbay", "Hoppy Birthbay", "Quantum Rockets")
    noise = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    pictures = [*(lettering(text, 128, 3) for text in wrong), noise]
    values = [score.value or 0.0 for score in ask(ready(), [asked("Happy Birthday", one) for one in pictures])]
    assert values[:3] == [1.0, pytest.approx(12 / 13), pytest.approx(11 / 13)]
    assert values[3] < 0.4
    assert values[4] == 0.0


def test_a_score_depends_on_neither_the_batch_nor_the_threads() -> None:
    questions = [asked(text, lettering(text, side, 5)) for text in TEXTS[:2] for side in (96, 256)]
    together = ask(ready(), questions)
    assert [ask(ready(), [one])[0] for one in questions] == together
    assert ask(ready(threads=2), questions) == together


def test_bad_pictures_and_prompts_cost_their_own_rows() -> None:
    good = asked("Open 24", written("Open 24"))
    rows = [asked("Open 24", picture) for picture, _ in BAD.values()]
    before, unquoted, blank, *bad, after = ask(
        ready(), [good, Question(good.picture, "a dog", {}), Question(good.picture, 'a "" dog', {}), *rows, good]
    )
    assert (before.value, after.value) == (1.0, 1.0)
    assert [score.value for score in (unquoted, blank, *bad)] == [None] * (2 + len(BAD))
    assert "no text in quotation marks" in (unquoted.error or "")
    assert "hold no text" in (blank.error or "")
    for score, (_, reason) in zip(bad, BAD.values(), strict=True):
        assert re.search(reason, score.error or ""), score.error


def test_tesseract_gives_a_second_opinion() -> None:
    if shutil.which("tesseract") is None:
        pytest.fail("tesseract is not installed; `make ocr-engines` installs it on Debian")
    pictures = [lettering(text, 256, seed, tilt=0.0, noise=0.0) for seed, text in enumerate(TEXTS)]
    scores = ask(ready("tesseract"), [asked(*pair) for pair in zip(TEXTS, pictures, strict=True)])
    assert np.mean([score.value or 0.0 for score in scores]) > 0.8
    assert ready("tesseract").info.revision != ready().info.revision


def test_a_library_that_is_missing_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rapidocr", None)
    with pytest.raises(ScorerError, match="the library `rapidocr` cannot be imported") as caught:
        make_ready(open_scorer("ocr"))
    assert "tdm-r1[ocr]" in (caught.value.hint or "")


def test_folders_without_models_are_refused_by_their_option() -> None:
    with pytest.raises(ScorerError, match=r"holds no inference\.yml; the option `detection`"):
        make_ready(open_scorer("ocr", {"engine": "paddleocr", "detection": "/nowhere", "recognition": "/nowhere"}))


@pytest.mark.parametrize(
    ("height", "width", "side", "limit"),
    [
        (64, 64, 160, ("min", 160)),
        (128, 256, 160, ("min", 160)),
        (512, 512, 256, ("max", 256)),
        (512, 1024, 256, ("max", 512)),
        (2048, 2048, 480, ("max", 480)),
    ],
)
def test_text_is_looked_for_in_half_of_the_picture_within_bounds(
    height: int, width: int, side: int, limit: tuple[str, int]
) -> None:
    picture = np.zeros((height, width, 3), np.uint8)
    assert side_of(picture) == side
    assert limit_of(picture, side) == limit


def test_the_detector_sees_the_pixels_that_it_was_told() -> None:
    scorer = ready()
    ask(scorer, [asked("Room 214", lettering("Room 214", 512, 1))])
    detector = scorer._engine._engine.text_det  # type: ignore[attr-defined]
    assert (detector.preprocess_op.limit_type, detector.preprocess_op.limit_side_len) == ("max", 256)
