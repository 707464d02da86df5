"""Claims about `tdm-r1 audit --replay`: a true record comes out identical, a forged one does not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from tdm_r1.artifacts.codec import Record
from tdm_r1.artifacts.records import Evaluation, GeneratorState, Rewards, Rollout
from tdm_r1.artifacts.store import open_store
from tdm_r1.errors import ArtifactError
from tdm_r1.runtime.replay import OverlayStore, replay
from tests.support import tdm_r1, tree
from tests.unit.damage import doctor, flip, forge

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def test_every_record_of_a_run_replays_to_the_same_digest_and_the_run_is_not_touched(run: Path) -> None:
    before = tree(run)
    found = [record for text in ("prompts", "base", "0", "1", "2") for record in replay(str(run), text)]
    assert {record.location for record in found} == {
        name.rpartition("/")[0] for name in before if name.endswith("manifest.json")
    }
    assert len(found) == 17
    for record in found:
        assert record.identical, record
        assert record.environment == ()
    assert tree(run) == before


@pytest.mark.parametrize(
    ("text", "count"), [("1/rollout", 2), ("1/reward_scoring/1", 1), ("iter-00002/evaluation", 1), ("0/evaluation", 1)]
)
def test_a_stage_or_a_shard_can_be_replayed_alone(text: str, count: int, run: Path, capsys: Capture) -> None:
    capsys.readouterr()
    assert tdm_r1("audit", "--root", str(run), "--replay", text) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"{count} of {count} replayed records identical"


def one_weight(record: GeneratorState) -> Record:
    state = dict(record.state)
    name = sorted(state)[3]
    changed = state[name].clone()
    changed.view(-1)[5] += 0.25
    return GeneratorState(state=state | {name: changed}, optimizer=record.optimizer, metrics=record.metrics)


def one_reward(record: Rewards) -> Record:
    values = record.scores["value"].to_pylist()
    values[3] += 0.5
    column = record.scores.column_names.index("value")
    scores = record.scores.set_column(column, "value", pa.array(values, pa.float64()))
    return Rewards(scores=scores, scorers=record.scorers)


def one_state(record: Rollout) -> Record:
    states = record.states.clone()
    states[2, 1] -= 2.0
    return Rollout(index=record.index, images=record.images, states=states)


def page(record: Evaluation) -> Record:
    return Evaluation(metrics=record.metrics, samples=record.samples, image=record.image, report=record.report + "x")


def one_row_less(record: Rewards) -> Record:
    return Rewards(scores=record.scores.slice(1), scorers=record.scorers)


def another_role(record: GeneratorState) -> Record:
    state = record.state | {"generator/extra": torch.zeros(1)}
    return GeneratorState(state=state, optimizer=record.optimizer, metrics=record.metrics)


@pytest.mark.parametrize(
    ("location", "change", "where", "largest"),
    [
        ("iter-00002/generator_update", one_weight, "state.safetensors, tensor {name}, 1 of", 0.25),
        ("iter-00002/generator_update", another_role, "state.safetensors, tensor generator/extra", None),
        ("iter-00002/reward_scoring/shard-0001", one_reward, "column value, 1 of 8 rows differ, first row 3", 0.5),
        ("iter-00002/reward_scoring/shard-0001", one_row_less, "part.parquet, number of rows", None),
        ("iter-00001/rollout/shard-0000", one_state, "column states, 2 of ", 2.0),
        ("iter-00001/evaluation", page, "report.html, line", None),
    ],
)
def test_a_forged_record_is_reported_with_the_place_and_the_size_of_its_first_difference(
    location: str, change: Callable[[Any], Record], where: str, largest: float | None, run: Path, capsys: Capture
) -> None:
    forge(run, location, change)
    target = location.removeprefix("iter-").replace("/shard-", "/")
    (found,) = replay(str(run), target)
    assert not found.identical
    assert found.difference is not None
    name = found.difference.where.partition("tensor ")[2].partition(",")[0]
    assert where.format(name=name) in found.difference.where
    assert found.difference.largest == (largest if largest is None else pytest.approx(largest, rel=1e-5))
    capsys.readouterr()
    assert tdm_r1("audit", "--root", str(run), "--replay", target, "--json") == 1
    (shown,) = json.loads(capsys.readouterr().out)
    assert shown["difference"]["where"] == found.difference.where


def test_the_forged_tensor_is_named_on_the_terminal(run: Path, capsys: Capture) -> None:
    forge(run, "iter-00002/generator_update", one_weight)
    state = sorted(replay(str(run), "2/generator_update"), key=lambda r: r.location)[0].difference
    assert state is not None
    capsys.readouterr()
    assert tdm_r1("audit", "--root", str(run), "--replay", "2/generator_update") == 1
    shown = capsys.readouterr().out
    assert "different" in shown
    assert state.where in shown
    assert "largest difference 0.25" in shown
    assert "the recorded environment is that of now" in shown


def test_what_differs_in_the_environment_stands_beside_the_verdict(run: Path, capsys: Capture) -> None:
    def older(body: dict[str, Any]) -> None:
        body["provenance"]["threads"] = 7
        body["provenance"]["libraries"]["torch"] = "1.0"

    doctor(run, "iter-00001/rollout/shard-0000", older)
    (found,) = replay(str(run), "1/rollout/0")
    assert found.identical
    assert [(e.name, e.recorded) for e in found.environment] == [("threads", "7"), ("torch", "1.0")]
    capsys.readouterr()
    assert tdm_r1("audit", "--root", str(run), "--replay", "1/rollout/0") == 0
    assert "threads: recorded 7, now 1" in capsys.readouterr().out


def test_a_record_with_another_parent_than_the_one_that_stands_there_is_different(run: Path) -> None:
    doctor(run, "iter-00002/evaluation", lambda body: body["parents"].update(prompts="a" * 64))
    (found,) = replay(str(run), "2/evaluation")
    assert found.difference is not None
    assert found.difference.where == "parent prompts, digest"
    assert found.difference.recorded == "a" * 12


def test_a_damaged_parent_stops_a_replay(run: Path, capsys: Capture) -> None:
    flip(run / "iter-00002/generator_update/state.safetensors", 80_000)
    assert tdm_r1("audit", "--root", str(run), "--replay", "2/evaluation") == 2
    assert "iter-00002/generator_update/state.safetensors" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text",
    ["3", "x", "1/rolout", "1/rollout/9", "0/rollout", "1/evaluation/0", "base/0", "-1", "1/distill_base", "0/x"],
)
def test_what_the_run_does_not_have_cannot_be_replayed(text: str, run: Path, capsys: Capture) -> None:
    assert tdm_r1("audit", "--root", str(run), f"--replay={text}") == 2
    assert "hint: " in capsys.readouterr().err


def test_what_was_never_committed_cannot_be_replayed(run: Path, capsys: Capture) -> None:
    shutil.rmtree(run / "iter-00002/evaluation")
    assert tdm_r1("audit", "--root", str(run), "--replay", "2/evaluation") == 2
    assert "there is nothing to replay" in capsys.readouterr().err


def test_an_overlay_shows_the_run_everywhere_but_at_its_location_and_writes_nowhere_else(tmp_path: Path) -> None:
    below, above = open_store(str(tmp_path / "a")), open_store(str(tmp_path / "b"))
    for key in ("x/old", "xy/old"):
        below.write_bytes_if_absent(key, b"below")
    store = OverlayStore(below, above, "x")
    assert store.write_bytes_if_absent("x/new", b"above")
    assert store.list("") == ["x/new", "xy/old"]
    assert (store.exists("x/old"), store.exists("x/new"), store.read_bytes("xy/old")) == (False, True, b"below")
    with pytest.raises(ArtifactError, match="may not be written"):
        store.write_bytes_if_absent("xy/new", b"")
    with pytest.raises(ArtifactError, match="may not be written"):
        store.delete_prefix("xy")
    assert below.list("") == ["x/old", "xy/old"]
