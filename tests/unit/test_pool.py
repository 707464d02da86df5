"""Claims about the scoring processes: what kills one costs one row, and nothing about them changes a result."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tdm_r1.config import RewardConfig
from tdm_r1.errors import ConfigError, ScorerError
from tdm_r1.rewards import process
from tdm_r1.rewards.ask import Question
from tdm_r1.rewards.batches import Batch, calls, take
from tdm_r1.rewards.cache import VARIABLE, key_of
from tdm_r1.rewards.judges import Judges
from tdm_r1.rewards.process import WorkerProcess, cores, processes
from tdm_r1.rewards.protocol import Score, ScorerInfo
from tdm_r1.rewards.shelf import Shelf
from tdm_r1.rewards.worker import Order, Ready, Refused, Scored
from tdm_r1.worlds.shapes.grammar import split
from tdm_r1.worlds.shapes.render import render

NASTY = ScorerInfo(name="nasty", version="1", licence="MIT", batch=4)


@pytest.fixture(autouse=True)
def _team(team_package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(team_package))


def level(number: int) -> Any:
    return np.full((8, 8, 3), number, np.uint8)


def questions(*prompts: str) -> list[Question]:
    return [Question(level(row), prompt, {}) for row, prompt in enumerate(prompts)]


def judges(name: str = "nasty", options: dict[str, Any] | None = None, **config: Any) -> Judges:
    return Judges(RewardConfig.model_validate({"scorers": {name: {"options": options or {}}}, **config}))


@pytest.fixture
def opened() -> Iterator[list[Judges]]:
    """Judges whose processes end with the test."""
    found: list[Judges] = []
    yield found
    for one in found:
        one.close()


def test_a_row_that_kills_its_process_costs_itself_and_no_other(opened: list[Judges]) -> None:
    asked = questions("", "die", "", "", "raise", "", "", "", "die")
    opened.append(judges(workers=2))
    scores = opened[0].score("nasty", asked)
    errors = {1: "worker_died: exit code -9", 4: "ValueError: it was asked to", 8: "worker_died: exit code -9"}
    assert {row: score.error for row, score in enumerate(scores) if score.error} == errors
    assert [score.value for score in scores] == [None if row in errors else 255.0 - row for row in range(9)]
    (tally,) = opened[0].tallies
    assert (tally.images, tally.failed, tally.workers) == (9, 3, 2)
    assert tally.died == 3 + 2  # one of four: 4, 2, 1; one alone: twice


def test_a_row_that_kills_is_found_among_many_calls_that_one_process_had_at_once(opened: list[Judges]) -> None:
    opened.append(judges(workers=1))
    scores = opened[0].score("nasty", [Question(level(7), "die" if row == 150 else "", {}) for row in range(400)])
    assert [row for row, score in enumerate(scores) if score.error] == [150]
    assert {score.value for row, score in enumerate(scores) if row != 150} == {255.0 - 7}
    assert opened[0].tallies[0].died <= 1 + 3 + 1  # several calls, then 4, 2, 1, and the one again


@pytest.mark.parametrize(("seconds", "most"), [(None, 4), (0.0, 100), (0.05, 16), (1.0, 4)])
def test_work_is_dealt_in_whole_calls_and_shared_until_the_end(seconds: float | None, most: int) -> None:
    """What a call holds depends neither on the machine nor on the number of processes."""
    queue = deque(Batch(part) for part in calls(range(402), 4))
    dealt = []
    while queue:
        dealt.append(take(queue, 2, seconds).rows)
    assert [row for rows in dealt for row in rows] == list(range(402))
    assert all(len(rows) % 4 == 0 for rows in dealt[:-1])
    assert max(map(len, dealt)) == most
    assert [len(rows) for rows in dealt[-6:]] == [4, 4, 4, 4, 4, 2]


def test_a_suspect_is_dealt_without_others() -> None:
    queue = deque([Batch([0, 1], suspect=True), *(Batch(part) for part in calls(range(2, 50), 2))])
    assert take(queue, 1, 0.0).rows == [0, 1]
    queue.insert(2, Batch([99], suspect=True))
    assert take(queue, 1, 0.0).rows == [2, 3, 4, 5]


@pytest.mark.parametrize("room", [0, 200, 2**20])
def test_pictures_of_every_kind_come_off_the_shelf_as_they_were_put(room: int) -> None:
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    odd: list[Any] = [picture.astype(np.float32), np.zeros((0, 8, 3), np.uint8), b"bytes", None, "text"]
    put = [picture, picture[::-1, ::2], picture[..., :1], np.asfortranarray(picture), *odd]
    there = Shelf.new(room)
    assert there is not None
    for _ in range(2):  # the second time over the first
        taken = there.take(there.put([Question(one, f"p{row}", {"row": row}) for row, one in enumerate(put)]))
        assert [(q.prompt, q.metadata) for q in taken] == [(f"p{row}", {"row": row}) for row in range(len(put))]
        for mine, theirs in zip(put, taken, strict=True):
            assert type(theirs.picture) is type(mine)
            assert np.array_equal(mine, theirs.picture) if isinstance(mine, np.ndarray) else mine == theirs.picture
        put.reverse()
    there.close()


def test_pictures_that_the_shelf_has_no_memory_for_stay_in_their_questions() -> None:
    full = Shelf(os.open("/dev/full", os.O_WRONLY))
    asked = [Question(level(1), "", {}), Question(level(2), "", {})]
    assert full.put(asked) == asked
    full.close()


def test_pictures_stay_on_the_shelf_while_others_are_put_on_its_other_side() -> None:
    there = Shelf.new()
    assert there is not None
    asked = [[Question(level(number), "", {})] for number in range(4)]
    placed = there.put(asked[0])
    for now, then in pairwise(asked):
        there.turn()
        waiting = there.put(then)
        assert np.array_equal(there.take(placed)[0].picture, now[0].picture)
        placed = waiting
    there.close()


def test_a_busy_process_gets_one_batch_that_waits_unless_it_fills_the_pipe_or_one_of_them_is_a_suspect() -> None:
    process = WorkerProcess(Order("nasty", {}, NASTY))
    batch, suspect, big = Batch([0]), Batch([0], suspect=True), [Question(np.zeros((99, 99, 3)), "", {})]
    assert not process.takes(batch)  # it is loading
    assert isinstance(_next_answer(process), Ready)
    process.ready = True
    assert process.takes(batch)
    assert process.takes(suspect)
    os.kill(process.process.pid, signal.SIGSTOP)  # so that nothing is read until both are handed out
    assert process.ask(batch, questions(""), 60.0)
    assert process.takes(batch)
    assert not process.takes(suspect)
    assert not process.ask(batch, big, 60.0)
    assert process.ask(batch, [Question(level(7), "", {})], 60.0)
    assert not process.takes(batch)
    os.kill(process.process.pid, signal.SIGCONT)
    for value in (255.0, 248.0):
        answer = _next_answer(process)
        assert isinstance(answer, Scored)
        assert [score.value for score in answer.scores] == [value]
        assert process.done() == batch
    assert process.ask(suspect, big, 60.0)  # nothing is in its hands
    assert not process.takes(batch)
    process.close()


def test_without_a_shelf_nothing_waits_at_a_busy_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> int:
        raise PermissionError(name)

    monkeypatch.setattr(os, "memfd_create", refuse)
    process = WorkerProcess(Order("nasty", {}, NASTY))
    assert isinstance(_next_answer(process), Ready)
    process.ready = True
    assert process.ask(Batch([0]), questions(""), 60.0)
    assert not process.takes(Batch([0]))
    process.close()


def _next_answer(process: WorkerProcess) -> Ready | Refused | Scored | None:
    process.connection.poll(60)
    return process.answer()


def test_a_batch_that_waits_outlives_the_process_that_dies_before_it(opened: list[Judges]) -> None:
    opened.append(judges(workers=1))
    scores = opened[0].score("nasty", questions(*["", "die"] * 6))
    assert [score.error for score in scores] == [None, "worker_died: exit code -9"] * 6
    assert [score.value for score in scores[::2]] == [255.0, 253.0, 251.0, 249.0, 247.0, 245.0]


def test_a_kept_picture_does_not_change_when_the_next_one_comes() -> None:
    there = Shelf.new()
    assert there is not None
    (first,) = there.take(there.put([Question(level(1), "", {})]))
    there.take(there.put([Question(level(2), "", {})]))
    assert np.array_equal(first.picture, level(1))
    there.close()


PARENT = """
import numpy as np
from tdm_r1.rewards.ask import Question
from tdm_r1.rewards.batches import Batch
from tdm_r1.rewards.process import WorkerProcess
from tdm_r1.rewards.protocol import ScorerInfo
from tdm_r1.rewards.worker import Order

process = WorkerProcess(Order("nasty", {}, ScorerInfo(name="nasty", version="1", licence="MIT", batch=4)))
process.connection.poll(60)
process.answer()
process.ask(Batch([0]), [Question(np.zeros((8, 8, 3), np.uint8), "hang", {})], 600)
print(process.process.pid, flush=True)
process.process.wait()
"""


def test_a_scorer_that_hangs_does_not_outlive_a_stage_that_is_killed(team_package: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(team_package), *sys.path])}
    with subprocess.Popen([sys.executable, "-c", PARENT], env=environment, stdout=subprocess.PIPE, text=True) as stage:
        assert stage.stdout is not None
        worker = Path("/proc", stage.stdout.readline().strip(), "stat")
        assert worker.is_file()
        stage.kill()
    end = time.monotonic() + 20
    while alive(worker) and time.monotonic() < end:
        time.sleep(0.1)
    assert not alive(worker)


def alive(stat: Path) -> bool:
    """Whether a process runs, by its file in /proc; one that nobody waits for is none."""
    try:
        return stat.read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_row_that_hangs_is_killed_at_its_time_limit(opened: list[Judges]) -> None:
    opened.append(judges(workers=1, time_limit=0.4))
    started = time.monotonic()
    scores = opened[0].score("nasty", questions("", "hang", ""))
    assert [score.error for score in scores] == [None, "worker_died: no answer within 0.4 s", None]
    assert time.monotonic() - started < 120  # the row sleeps for ten minutes


@pytest.mark.parametrize(
    ("start", "message"),
    [
        ("wrong", r"`nasty` fails its self-test: ValueError: the golden picture scored 255, expected 7"),
        ("raise", r"`nasty` cannot be loaded: OSError: no weights here"),
        ("die", r"3 processes of scorer `nasty` died one after the other, the last: exit code -9"),
    ],
)
def test_a_scorer_that_is_not_fit_to_serve_stops_the_stage(start: str, message: str, opened: list[Judges]) -> None:
    opened.append(judges(options={"start": start}, workers=1))
    with pytest.raises(ScorerError, match=message) as caught:
        opened[0].score("nasty", questions("", ""))
    assert caught.value.hint


@pytest.mark.parametrize(("knob", "prompt"), [({"recycle_rows": 4}, ""), ({"recycle_memory_mb": 160}, "leak")])
def test_a_process_is_replaced_by_count_and_by_memory(knob: dict[str, Any], prompt: str, opened: list[Judges]) -> None:
    asked = questions(*[prompt] * 12)
    nothing: dict[str, Any] = {}
    for config in (nothing, knob):
        opened.append(judges(options={"tell": True}, workers=1, **config))
        found = [json.loads(score.detail or "") for score in opened[-1].score("nasty", asked)]
        assert len({who["pid"] for who in found}) == (3 if config else 1)
        assert {(who["threads"], who["omp"]) for who in found} == {(1, "1")}
        assert opened[-1].tallies[0].recycled == (3 if config else 0)


def test_processes_stay_between_calls_and_end_when_they_are_closed(opened: list[Judges]) -> None:
    opened.append(judges(options={"tell": True}, workers=1))
    pids = [json.loads(opened[0].score("nasty", questions(""))[0].detail or "")["pid"] for _ in range(2)]
    assert pids[0] == pids[1] != os.getpid()
    opened[0].close()
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)


def test_the_result_is_the_same_for_any_number_of_processes(opened: list[Judges]) -> None:
    rng = np.random.default_rng(0)
    prompts = [prompt for rows in split()[1].values() for prompt in rows[:6]]
    asked = [Question(render(prompt, rng), prompt.text, prompt.metadata()) for prompt in prompts]
    asked[5] = Question(None, "", {})
    found: list[list[Score]] = []
    for workers in (0, 1, 2):
        opened.append(judges("shapes", workers=workers))
        found.append(opened[-1].score("shapes", asked))
    parts = [opened[-1].score("shapes", asked[start : start + 10]) for start in range(0, len(asked), 10)]
    assert found[0] == found[1] == found[2] == [score for part in parts for score in part]
    assert [score.value for score in found[0]].count(1.0) >= 30


def test_what_a_library_prints_does_not_reach_the_output_of_a_command(
    opened: list[Judges], capfd: pytest.CaptureFixture[str]
) -> None:
    opened.append(judges(workers=1))
    opened[0].score("nasty", questions(""))
    captured = capfd.readouterr()
    assert (captured.out, "a library that prints" in captured.err) == ("", True)


def test_none_is_one_process_per_core_of_this_one(opened: list[Judges]) -> None:
    opened.append(judges(workers=None))
    opened[0].score("nasty", questions(""))
    assert opened[0].tallies[0].workers == cores() == len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("limit", "available", "count"),
    [("max", 9000, 8), (str(2500 * 2**20), 9000, 2), ("max", 3900, 3), ("max", 10, 1), ("unreadable", None, 8)],
)
def test_there_are_no_more_processes_than_memory_for_their_scorers(
    limit: str, available: int | None, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "limit").write_text(limit)
    if available is not None:
        (tmp_path / "memory").write_text(f"MemTotal: 1 kB\nMemAvailable:  {available * 1024} kB\n")
    monkeypatch.setattr(process, "CGROUP_MEMORY", tmp_path / "limit")
    monkeypatch.setattr(process, "MEMORY", tmp_path / "memory")
    monkeypatch.setattr(process, "cores", lambda: 8)
    assert processes(1000.0) == count


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache" / "scores.sqlite"


@pytest.mark.usefixtures("cache")
def test_a_cached_score_is_the_score_and_an_error_is_asked_again(opened: list[Judges]) -> None:
    asked = questions("", "raise", "", "a")
    tallies, scores = [], []
    for _ in range(2):
        opened.append(judges(options={"tell": True}, workers=0))
        scores.append(opened[-1].score("nasty", asked))
        tallies += opened[-1].tallies
    assert [tally.cached for tally in tallies] == [0, 3]
    assert scores[0] == scores[1]
    opened.append(judges(workers=0))  # other options, another revision
    opened[-1].score("nasty", asked)
    assert opened[-1].tallies[0].cached == 0


def test_the_key_is_what_the_scorer_looks_at(tmp_path: Path) -> None:
    info = ScorerInfo(name="a", version="1", licence="MIT", revision="r", needs=("image", "prompt"))
    base = Question(level(1), "p", {"m": 1})
    same = [base, Question(level(1), "p", {"m": 2})]
    other = [Question(level(2), "p", {}), Question(level(1), "q", {}), Question(level(1).reshape(4, 16, 3), "p", {})]
    keys = [key_of(question, info) for question in (*same, *other)]
    assert keys[0] == keys[1]
    assert len(set(keys)) == 4
    assert key_of(base, ScorerInfo(name="a", version="1", licence="MIT", revision="s", needs=info.needs)) != keys[0]
    assert key_of(Question(None, "", {}), info) is None


def test_of_a_scorer_that_names_no_revision_nothing_is_kept() -> None:
    """Its code may be another one tomorrow, under the same name."""
    assert key_of(Question(level(1), "p", {}), ScorerInfo(name="a", version="1", licence="MIT")) is None


def test_a_cache_that_cannot_be_opened_is_refused(cache: Path) -> None:
    cache.parent.mkdir()
    cache.write_bytes(b"not a database, but long enough to be taken for one" * 20)
    with pytest.raises(ConfigError, match="cannot be opened: file is not a database"):
        judges(workers=0).score("nasty", questions(""))


def test_a_cache_that_fails_later_costs_no_score(cache: Path) -> None:
    one = judges(workers=0)
    one.score("nasty", questions(""))
    with sqlite3.connect(cache) as base:
        base.execute("DROP TABLE scores")
    base.close()
    assert [score.value for score in one.score("nasty", questions("", ""))] == [255.0, 254.0]
    assert "no such table" in str(one.tallies[-1])
