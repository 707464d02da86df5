"""Claims about the scorer protocol: who may serve, how a team adds one, and that an error is never a value."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Pillow

from tdm_r1.config import RewardConfig, ScorerConfig
from tdm_r1.errors import ConfigError, ScorerError
from tdm_r1.rewards.ask import Question, ask, make_ready
from tdm_r1.rewards.judges import Judges
from tdm_r1.rewards.protocol import Image, Metadata, PerImage, Score, ScorerInfo, failed, golden
from tdm_r1.rewards.registry import SHIPPED, available, open_scorer
from tdm_r1.stages.reward_scoring import check_errors


def about(name: str) -> ScorerInfo:
    found: ScorerInfo = available()[name].load().about
    return found


GREY = np.full((16, 16, 3), 51, np.uint8)
SOURCE = Path(__file__).parents[2] / "src"


class Brightness(PerImage):
    """Mean level, 0 to 1; raises for the prompt `raise`."""

    about = ScorerInfo(name="brightness", version="1", licence="Apache-2.0", low=0.0, high=1.0)

    def score_one(self, image: Image, prompt: str, metadata: Metadata) -> Score:
        if prompt == "raise":
            raise RuntimeError("it was asked to")
        return Score(float(image.mean()) / 255)

    def selftest(self) -> None:
        golden(self, GREY, 0.2)


class Batched(Brightness):
    """All rows fail together when one of them cannot be scored."""

    def score(self, images: Sequence[Image], prompts: Sequence[str], metadata: Sequence[Metadata]) -> Sequence[Score]:
        return [self.score_one(*row) for row in zip(images, prompts, metadata, strict=True)]


class Short(Brightness):
    def score(self, images: Sequence[Image], prompts: Sequence[str], metadata: Sequence[Metadata]) -> Sequence[Score]:
        return [Score(1.0)] * (len(images) - 1)


class Wrong(Brightness):
    def selftest(self) -> None:
        golden(self, GREY, 0.3)


def file_of(mode: str, form: str = "PNG", size: tuple[int, int] = (16, 16)) -> bytes:
    buffer = io.BytesIO()
    Pillow.new(mode, size).save(buffer, format=form)
    return buffer.getvalue()


BAD: dict[str, tuple[Any, str]] = {
    "grey array": (np.zeros((16, 16), np.uint8), r"shape \(16, 16\), expected \(height, width, 3\)"),
    "RGBA array": (np.zeros((16, 16, 4), np.uint8), r"shape \(16, 16, 4\)"),
    "float": (np.zeros((16, 16, 3), np.float32), "float32, expected uint8"),
    "NaN": (np.full((16, 16, 3), np.nan), "float64 with NaN, expected uint8"),
    "16 bit": (np.zeros((16, 16, 3), np.uint16), "uint16, expected uint8"),
    "0×0": (np.zeros((0, 0, 3), np.uint8), "0×0, expected sides of at least 8"),
    "4000×4": (np.zeros((4, 4000, 3), np.uint8), "4000×4, expected sides of at least 8"),
    "4000×8": (np.zeros((8, 4000, 3), np.uint8), "4000×8, expected sides of at most 20:1"),
    "huge": (np.broadcast_to(np.uint8(0), (5000, 5000, 3)), "5000×5000, expected at most 16,777,216 pixels"),
    "huge file": (file_of("RGB", size=(5000, 5000)), "5000×5000"),
    "bomb": (file_of("1", size=(20000, 20000)), "exceeds limit"),
    "grey file": (file_of("L"), "mode L, expected RGB"),
    "RGBA file": (file_of("RGBA"), "mode RGBA, expected RGB"),
    "truncated PNG": (file_of("RGB", size=(256, 256))[:150], "cannot be decoded"),
    "truncated JPEG": (file_of("RGB", "JPEG", size=(256, 256))[:700], "cannot be decoded"),
    "no file": (b"<html>502 Bad Gateway</html>", "cannot be decoded"),
    "empty": (b"", "cannot be decoded"),
    "nothing": (None, "a NoneType is no picture"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_picture_costs_its_own_row_and_says_why(case: str) -> None:
    picture, reason = BAD[case]
    before, bad, after = ask(Brightness(), [Question(p, "", {}) for p in (GREY, picture, GREY)])
    assert (before.value, after.value) == (0.2, 0.2)
    assert bad.value is None
    with pytest.raises(ValueError, match=reason):
        raise ValueError(bad.error)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_the_bytes_of_a_picture_file_are_scored_as_its_pixels(form: str) -> None:
    buffer = io.BytesIO()
    Pillow.fromarray(GREY).save(buffer, format=form)
    (score,) = ask(Brightness(), [Question(buffer.getvalue(), "", {})])
    assert score.value == pytest.approx(0.2, abs=0.01)


@pytest.mark.parametrize("scorer", [Brightness(), Batched()])
def test_what_a_scorer_raises_is_the_error_of_the_row_that_made_it_raise(scorer: PerImage) -> None:
    scores = ask(scorer, [Question(GREY, prompt, {}) for prompt in ("a", "raise", "b")])
    assert [score.value for score in scores] == [0.2, None, 0.2]
    assert scores[1].error == "RuntimeError: it was asked to"


def test_a_scorer_that_returns_another_number_of_scores_gives_none() -> None:
    scores = ask(Short(), [Question(GREY, "", {})] * 3)
    assert [score.error for score in scores] == ["ValueError: 0 scores came back for 1 images"] * 3


def test_a_scorer_whose_info_is_known_does_not_hash_its_weights_again() -> None:
    class Heavy(Brightness):
        def files(self) -> Sequence[Path]:
            raise AssertionError("gigabytes are hashed")

    assert ask(Heavy(), [Question(GREY, "", {})], Brightness.about)[0].value == 0.2
    with pytest.raises(AssertionError, match="gigabytes"):
        ask(Heavy(), [Question(GREY, "", {})])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None])
def test_a_score_is_finite_or_an_error(value: float | None) -> None:
    with pytest.raises(ValueError, match="a score"):
        Score(value)
    with pytest.raises(ValueError, match="a value or an error"):
        Score(1.0, error="both")


@pytest.mark.parametrize("answer", [None, 0.5, "fine"])
@pytest.mark.parametrize("kind", [Brightness, Batched])
def test_what_is_no_score_is_the_error_of_its_row(kind: type[Brightness], answer: Any) -> None:
    class Odd(kind):  # type: ignore[misc,valid-type]
        def score_one(self, image: Image, prompt: str, metadata: Metadata) -> Any:
            return answer if prompt == "odd" else super().score_one(image, prompt, metadata)

    scores = ask(Odd(), [Question(GREY, prompt, {}) for prompt in ("a", "odd", "b")])
    assert [score.value for score in scores] == [0.2, None, 0.2]
    assert scores[1].error == f"TypeError: a {type(answer).__name__} came back, expected a Score"


def test_numbers_of_other_libraries_are_plain_ones_that_every_store_can_hold() -> None:
    for one in (np.float32(0.5), np.int64(1), torch.tensor(0.25), True):
        score = Score(one, parts=(("a", one),))  # type: ignore[arg-type]
        assert (type(score.value), type(score.parts[0][1])) == (float, float)
        assert score.value == score.part("a") == float(one)


def test_a_text_that_no_record_can_hold_is_made_one_that_it_can_or_refused() -> None:
    score, error = Score(1.0, detail='{"answer": "\ud83d 4"}'), failed("it said \ud83d")
    assert (score.detail, error.error) == ('{"answer": "\\ud83d 4"}', "it said \\ud83d")
    with pytest.raises(TypeError, match="the detail of a score is a text, but a dict was given"):
        Score(1.0, detail={"answer": 4})  # type: ignore[arg-type]


class Painter(Brightness):
    """Tells the level that it found, and paints the picture white."""

    def score_one(self, image: Image, prompt: str, metadata: Metadata) -> Score:
        score = super().score_one(image, prompt, metadata)
        image[:] = 255
        return score

    def selftest(self) -> None:
        golden(self, GREY.copy(), 0.2)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("picture", [GREY.copy(), file_of("RGB")], ids=["array", "file"])
def test_a_scorer_may_write_into_its_picture_and_no_other_sees_it(workers: int, picture: Any) -> None:
    use = {"use": f"{Painter.__module__}:Painter"}
    judges = Judges(RewardConfig.model_validate({"scorers": {"a": use, "b": use}, "workers": workers}))
    values = [judges.score(name, [Question(picture, "", {})])[0].value for name in ("a", "b")]
    judges.close()
    assert values == [0.0 if isinstance(picture, bytes) else 0.2] * 2


def test_a_scorer_that_fails_its_selftest_does_not_serve() -> None:
    with pytest.raises(ScorerError, match=r"`brightness` fails its self-test: .* scored 0\.2, expected 0\.3") as caught:
        make_ready(Wrong())
    assert caught.value.hint


@pytest.mark.parametrize("name", [name for name in SHIPPED if not about(name).weights])
def test_every_shipped_scorer_is_ready_and_says_who_it_is(name: str) -> None:
    scorer = open_scorer(name)
    make_ready(scorer)
    info = scorer.info
    assert info.name == name
    assert len(info.revision) == 64
    assert info.licence
    assert info.low < info.high


def test_the_revision_changes_with_an_option_and_with_nothing_else() -> None:
    first, again, other = (open_scorer("shapes", {"replicate": flag}).info.revision for flag in (False, False, True))
    assert first == again != other


@pytest.mark.parametrize(
    ("options", "message"),
    [({"kindd": "strict"}, "`kindd` is 'strict'"), ({"kind": "best"}, "`kind` is 'best'")],
)
def test_an_option_that_no_scorer_reads_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        open_scorer("shapes", options)
    assert "replicate" in (caught.value.hint or "")


def test_a_scorer_that_no_package_declares_is_named_by_its_module(team_package: Path, monkeypatch: Any) -> None:
    monkeypatch.syspath_prepend(str(team_package))
    assert open_scorer("team_scorers:Darkness").info.name == "darkness"
    for name in ("team_scorers:Nothing", "no_such_module:X", "a:b:c"):
        with pytest.raises(ScorerError, match="cannot be imported"):
            open_scorer(name)


def test_an_unknown_scorer_is_refused_with_those_there_are() -> None:
    with pytest.raises(ScorerError, match="no installed package has a scorer `best`") as caught:
        Judges(RewardConfig(scorers={"best": ScorerConfig()})).scorers  # noqa: B018
    assert "shapes" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("on_error", "errors", "refused"),
    [("drop", 1, False), ("drop", 2, True), ("group_mean", 2, True), ("fail", 1, True)],
)
def test_a_shard_with_too_many_errors_is_refused(on_error: Any, errors: int, refused: bool) -> None:
    config = RewardConfig(scorers={"x": ScorerConfig(on_error=on_error)}, max_error_rate=0.1)
    scores = [failed("broken")] * errors + [Score(0.5)] * (10 - errors)
    if not refused:
        check_errors("x", scores, config)
        return
    with pytest.raises(ScorerError, match=rf"`x` failed on {errors} of 10 images.*the first: broken"):
        check_errors("x", scores, config)


ASK = """
import numpy as np
from tdm_r1.config import RewardConfig
from tdm_r1.errors import ScorerError
from tdm_r1.rewards.ask import Question
from tdm_r1.rewards.judges import Judges
from tdm_r1.rewards.registry import available, open_scorer

judges = Judges(RewardConfig.model_validate({"scorers": {"darkness": {}}, "workers": WORKERS}))
print(judges.score("darkness", [Question(np.full((8, 8, 3), 5, np.uint8), "", {})])[0].value)
print(available()["darkness"].dist.name if available()["darkness"].dist else "?")
try:
    open_scorer("missing")
except ScorerError as error:
    print(error.message)
"""


@pytest.mark.parametrize("workers", [0, 1])
def test_a_team_adds_a_scorer_in_a_package_of_its_own(team_package: Path, workers: int) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(team_package), str(SOURCE)])}
    script = ASK.replace("WORKERS", str(workers))
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    value, package, missing = done.stdout.splitlines()
    assert (float(value), package) == (250.0, "team-scorers")
    assert missing.startswith("scorer `missing` is `team_scorers:Missing`, which cannot be imported")
