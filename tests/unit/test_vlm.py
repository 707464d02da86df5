"""Claims about judges behind an endpoint, against a real HTTP server that answers what a test tells it."""

from __future__ import annotations

import base64
import io
import math
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow

from tdm_r1.config import RewardConfig, ScorerConfig
from tdm_r1.errors import ConfigError, ScorerError
from tdm_r1.rewards.ask import Question, ask, make_ready
from tdm_r1.rewards.judges import Judges
from tdm_r1.rewards.protocol import Image
from tdm_r1.rewards.registry import open_scorer
from tdm_r1.rewards.vlm import VlmJudge
from tests.http_server import Answer, Request, serving
from tests.unit.test_scorers import BAD

PICTURE = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)


def completion(text: Any, **more: Any) -> dict[str, Any]:
    return {"choices": [{"message": {"role": "assistant", "content": text}, **more}]}


@dataclass
class Judge:
    """A server; `say` decides by the words of the question."""

    say: Callable[[str], Any] = lambda _: completion("Fine. Final Score: 4")
    fault: Callable[[Request], Any] | None = None
    requests: list[Request] = field(default_factory=list)
    seconds: float = 0.0
    most: int = 0
    _now: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def handle(self, request: Request) -> Any:
        with self._lock:
            self.requests.append(request)
            self._now += 1
            self.most = max(self.most, self._now)
        time.sleep(self.seconds)
        with self._lock:
            self._now -= 1
        return self.say(request.body["messages"][0]["content"][1]["text"])


@contextmanager
def judged(judge: Judge, name: str = "vlm", *, tested: bool = True, **options: Any) -> Iterator[VlmJudge]:
    with serving(judge.handle, lambda: judge.fault) as address:
        given = {"url": f"{address}/v1", "model": "judge", "retries": 1, "timeout": 5.0, **options}
        scorer = open_scorer(name, given)
        assert isinstance(scorer, VlmJudge)
        if tested:
            make_ready(scorer)
        else:
            scorer.load(1)
        judge.requests.clear()
        yield scorer


def sent(request: Request) -> Image:
    head, _, data = request.body["messages"][0]["content"][0]["image_url"]["url"].partition(",")
    assert head == "data:image/png;base64"
    return np.asarray(Pillow.open(io.BytesIO(base64.b64decode(data))))


def test_the_judge_gets_the_very_pixels_and_the_prompt_and_its_number_is_the_value() -> None:
    judge = Judge()
    with judged(judge, template="Rate [{prompt}] {x}") as scorer:
        (score,) = ask(scorer, [Question(PICTURE, "a {red} car", {})])
    assert (score.value, score.error) == (4.0, None)
    (request,) = judge.requests
    assert (request.method, request.path) == ("POST", "/v1/chat/completions")
    assert np.array_equal(sent(request), PICTURE)
    assert request.body["messages"][0]["content"][1]["text"] == "Rate [a {red} car] {x}"
    assert (request.body["model"], request.body["temperature"]) == ("judge", 0)


ANSWERS: dict[str, tuple[Any, str]] = {
    "no number": (completion("It is lovely."), "has no number where"),
    "out of range": (completion("Final Score: 50"), "the answer is 50, expected 1 to 5"),
    "empty": (completion(""), "has no number where"),
    "null": (completion(None), "message is None, expected a text"),
    "no choices": ({"choices": []}, "no chat completion"),
    "a list": ([1, 2], "no chat completion"),
    "HTML": (Answer("<html>502 Bad Gateway</html>", kind="text/html"), "no chat completion: '<html>"),
    "nothing": (Answer(""), "no chat completion: ''"),
    "400": (Answer({"error": "image too large"}, 400), "answered 400: .*image too large"),
    "500": (Answer("boom", 500), "answered 500"),
    "redirect": (Answer("", 302, headers={"Location": "/elsewhere"}), "answered 302"),
}


@pytest.mark.parametrize("case", ANSWERS)
def test_an_answer_without_a_score_costs_its_own_row_and_says_why(case: str) -> None:
    wrong, reason = ANSWERS[case]
    judge = Judge(say=lambda text: wrong if "odd" in text else completion("Final Score: 3.5"))
    with judged(judge) as scorer:
        before, bad, after = ask(scorer, [Question(PICTURE, prompt, {}) for prompt in ("a", "odd", "b")])
    assert (before.value, after.value) == (3.5, 3.5)
    assert bad.value is None
    with pytest.raises(ValueError, match=reason):
        raise ValueError(bad.error)
    assert len(judge.requests) == 3  # none of these may pass, so none is asked again


def test_a_bad_picture_is_never_sent() -> None:
    judge = Judge()
    with judged(judge) as scorer:
        scores = ask(scorer, [Question(picture, "", {}) for picture, _ in BAD.values()])
    assert [score.value for score in scores] == [None] * len(BAD)
    assert judge.requests == []


@pytest.mark.parametrize(("fails", "value"), [(2, 4.0), (3, None)])
def test_what_may_pass_is_tried_again_and_then_given_up(fails: int, value: float | None) -> None:
    judge, count = Judge(), iter(range(100))
    with judged(judge, retries=2) as scorer:
        judge.fault = lambda _: Answer("later", 503, headers={"Retry-After": "0"}) if next(count) < fails else None
        (score,) = ask(scorer, [Question(PICTURE, "a", {})])
    assert score.value == value
    assert value or "answered 503" in (score.error or "")
    assert next(count) == 3


def test_a_connection_that_is_cut_is_tried_again() -> None:
    judge, count = Judge(), iter(range(100))
    with judged(judge) as scorer:
        judge.fault = lambda _: "lost" if next(count) == 0 else None
        (score,) = ask(scorer, [Question(PICTURE, "a", {})])
    assert score.value == 4.0
    assert len(judge.requests) == 2


def test_a_server_that_is_gone_is_an_error_of_every_row() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # and nobody listens
        port = closed.getsockname()[1]
    scorer = open_scorer("vlm", {"url": f"http://127.0.0.1:{port}/v1", "retries": 0, "timeout": 1.0})
    scorer.load(1)
    scores = ask(scorer, [Question(PICTURE, "a", {})] * 2)
    assert all("no answer from http" in (score.error or "") for score in scores)


@pytest.mark.parametrize("concurrency", [1, 4])
def test_at_most_so_many_requests_are_on_their_way(concurrency: int) -> None:
    judge = Judge(seconds=0.1, say=lambda text: completion(f"Final Score: {text}"))
    with judged(judge, concurrency=concurrency, template="{prompt}", tested=False) as scorer:
        numbers = [1 + n % 5 for n in range(8)]
        scores = ask(scorer, [Question(PICTURE, str(number), {}) for number in numbers])
    assert [score.value for score in scores] == numbers
    assert judge.most == concurrency


def test_the_key_comes_from_the_environment_and_is_no_part_of_the_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    found, revisions = [], set()
    for key in ("", "secret"):
        monkeypatch.setenv("TDM_R1_JUDGE_KEY", key)
        judge = Judge()
        with judged(judge, url="http://127.0.0.1:1/v1", tested=False) as scorer:
            revisions.add(scorer.info.revision)
        with judged(judge) as scorer:
            ask(scorer, [Question(PICTURE, "a", {})])
        found.append(judge.requests[0].headers.get("Authorization"))
    assert found == [None, "Bearer secret"]
    assert len(revisions) == 1


def tokens(*pairs: tuple[str, float]) -> dict[str, Any]:
    top = [{"token": token, "logprob": math.log(share)} for token, share in pairs]
    return {"logprobs": {"content": [{"token": pairs[0][0], "top_logprobs": top}]}}


def test_deqa_is_the_mean_of_its_levels_by_their_probabilities() -> None:
    answer = completion(" good", **tokens((" good", 0.5), (" fair", 0.25), (" Good", 0.1), (" cat", 0.15)))
    judge = Judge(say=lambda _: answer)
    with judged(judge, "deqa") as scorer:
        (score,) = ask(scorer, [Question(PICTURE, "a", {})])
        assert (scorer.info.low, scorer.info.high, scorer.info.needs) == (1.0, 5.0, ("image",))
    assert score.value == pytest.approx((4 * 0.6 + 3 * 0.25) / 0.85)
    body = judge.requests[0].body
    assert (body["logprobs"], body["continue_final_message"]) == (True, True)
    assert body["messages"][1] == {"role": "assistant", "content": "The quality of the image is"}


@pytest.mark.parametrize("answer", [completion("good"), completion("cat", **tokens((" cat", 1.0)))])
def test_deqa_without_probabilities_of_its_words_is_an_error(answer: dict[str, Any]) -> None:
    with judged(Judge(say=lambda _: answer), "deqa", tested=False) as scorer:
        (score,) = ask(scorer, [Question(PICTURE, "a", {})])
    assert "no token with its probabilities is one of excellent" in (score.error or "")


def test_unifiedreward_sees_a_square_and_its_caption() -> None:
    judge = Judge(say=lambda _: completion("dog (animal): 1\nFinal Score: 2\nFinal Score: 4.5"))
    with judged(judge, "unifiedreward") as scorer:
        (score,) = ask(scorer, [Question(PICTURE, "a dog", {})])
    assert score.value == 4.5
    assert sent(judge.requests[0]).shape == (512, 512, 3)
    assert judge.requests[0].body["messages"][0]["content"][1]["text"].endswith("Text Caption: [a dog]")


def test_hpsv3_has_no_bounds() -> None:
    with judged(Judge(say=lambda _: completion("-11.25")), "hpsv3") as scorer:
        (score,) = ask(scorer, [Question(PICTURE, "a dog", {})])
        assert (scorer.info.low, scorer.info.high) == (-math.inf, math.inf)
    assert score.value == -11.25


@pytest.mark.parametrize(("text", "value"), [("5.3e-05", 5.3e-05), ("-1.25E+1, 0.3", -12.5), ("3e", 3.0)])
def test_a_number_is_read_with_its_exponent(text: str, value: float) -> None:
    with judged(Judge(say=lambda _: completion(text)), "hpsv3") as scorer:
        assert [score.value for score in ask(scorer, [Question(PICTURE, "a dog", {})])] == [value]


def test_a_number_beyond_all_numbers_costs_its_own_row_and_is_not_asked_for_again() -> None:
    judge = Judge(say=lambda text: completion("9e999" if text == "odd" else "1.5"))
    with judged(judge, "hpsv3") as scorer:
        scores = ask(scorer, [Question(PICTURE, prompt, {}) for prompt in ("a", "odd", "b")])
    assert [score.value for score in scores] == [1.5, None, 1.5]
    assert len(judge.requests) == 3


def test_an_endpoint_that_cannot_judge_does_not_serve() -> None:
    with (
        pytest.raises(ScorerError, match="asked about a grey picture: the endpoint answered 404"),
        judged(Judge(say=lambda _: Answer("no such model", 404))),
    ):
        pass
    with pytest.raises(ScorerError, match="the option `url` is ''"):
        make_ready(open_scorer("vlm"))


@pytest.mark.parametrize("pattern", ["Score: 1", "(", ""])
def test_a_pattern_without_a_group_is_refused(pattern: str) -> None:
    with pytest.raises(ConfigError, match="`pattern` is"):
        open_scorer("vlm", {"pattern": pattern})


def test_answers_are_kept_and_not_asked_for_again(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TDM_R1_SCORE_CACHE", str(tmp_path))
    judge = Judge(say=lambda text: completion("no idea" if "odd" in text else "Final Score: 2"))
    with serving(judge.handle) as address:
        section = ScorerConfig(options={"url": f"{address}/v1", "model": "judge", "retries": 0})
        for asked in (4, 2):  # the self-test and three rows; then the self-test and the one that failed
            judge.requests.clear()
            judges = Judges(RewardConfig(scorers={"vlm": section}, workers=0))
            scores = judges.score("vlm", [Question(PICTURE, prompt, {}) for prompt in ("a", "b", "odd")])
            assert [score.value for score in scores] == [2.0, 2.0, None]
            assert len(judge.requests) == asked


def test_jpeg_tells_the_size_of_the_file_that_pillow_writes() -> None:
    buffer = io.BytesIO()
    Pillow.fromarray(PICTURE).save(buffer, format="JPEG", quality=95)
    for kind, better in (("compressibility", False), ("incompressibility", True)):
        scorer = open_scorer("jpeg", {"kind": kind})
        make_ready(scorer)
        assert scorer.info.higher_is_better is better
        assert ask(scorer, [Question(PICTURE, "", {})])[0].value == len(buffer.getvalue()) / 1000
