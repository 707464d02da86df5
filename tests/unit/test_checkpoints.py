"""Which checkpoint a retry begins with."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch

from tdm_r1.artifacts.manifest import Provenance
from tdm_r1.artifacts.records import SurrogateState
from tdm_r1.models.world import ALONE
from tdm_r1.presets import resolve
from tdm_r1.runtime.checkpoints import StoredCheckpoints
from tdm_r1.runtime.layout import Task
from tdm_r1.runtime.run import Run, create_run

PARENTS = {"prompts": "a" * 64}
TASK = Task("surrogate_update", 1)


def provenance() -> Provenance:
    now = datetime.now(UTC)
    return Provenance(
        code_version="0", libraries={}, device="cpu", threads=1, started=now, finished=now, seconds=1.0, seed_root=0
    )


def opened(root: Path, **knobs: Any) -> Run:
    changed = {"distributed.checkpoint_every": 2, **{name.replace("__", "."): value for name, value in knobs.items()}}
    return create_run(str(root), resolve("plane", changed))


def checkpoints(run: Run, parents: Mapping[str, str] = PARENTS) -> StoredCheckpoints:
    return StoredCheckpoints(run, TASK, dict(parents), ALONE, provenance)


def state(value: float) -> SurrogateState:
    return SurrogateState(
        state={"surrogate/w": torch.full((3,), value)},
        optimizer={},
        metrics=SurrogateState.table("metrics", step=[0], name=["x"], value=[value]),
    )


def stored(run: Run, *steps: int) -> None:
    for step in steps:
        checkpoints(run).offer(step, lambda step=step: state(float(step)))  # type: ignore[misc]


def test_a_retry_begins_with_the_newest_and_older_ones_are_gone(tmp_path: Path) -> None:
    run = opened(tmp_path)
    stored(run, 2, 3, 4)
    found = checkpoints(run).found
    assert found is not None
    assert found.steps == 4
    assert found.record.state["surrogate/w"].tolist() == [4.0] * 3
    assert {path.name for path in (tmp_path / "checkpoints").rglob("step-*")} == {"step-000004"}


@pytest.mark.parametrize("parents", [{"prompts": "b" * 64}, {}, {**PARENTS, "base": "c" * 64}])
def test_a_checkpoint_of_other_parents_is_never_taken(parents: Mapping[str, str], tmp_path: Path) -> None:
    run = opened(tmp_path)
    stored(run, 2)
    assert checkpoints(run, parents).found is None
    assert list((tmp_path / "checkpoints").rglob("manifest.json")) == []


def test_a_checkpoint_of_another_configuration_is_never_taken(tmp_path: Path) -> None:
    run = opened(tmp_path / "a")
    stored(run, 2)
    (tmp_path / "b").mkdir()
    (tmp_path / "a" / "checkpoints").rename(tmp_path / "b" / "checkpoints")
    assert checkpoints(opened(tmp_path / "b", seed=1)).found is None


def test_a_damaged_checkpoint_is_left_aside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = opened(tmp_path)
    stored(run, 2)
    (tensors,) = (tmp_path / "checkpoints").rglob("state.safetensors")
    tensors.write_bytes(tensors.read_bytes()[:-1])
    assert checkpoints(run).found is None
    assert "checkpoint left aside" in capsys.readouterr().err


def test_a_stage_that_commits_leaves_no_checkpoint(tmp_path: Path) -> None:
    run = opened(tmp_path)
    stored(run, 2)
    checkpoints(run).forget()
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "run.json"]
