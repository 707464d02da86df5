"""Claims about the start of a stage: its parents are read while the base is opened, and nothing is for nothing."""

from __future__ import annotations

import shutil
from pathlib import Path
from threading import Barrier, Event

import pytest

from tdm_r1.artifacts.store import LocalStore
from tdm_r1.errors import CorruptArtifactError, MissingParentError
from tdm_r1.models.backbone import Backbone
from tdm_r1.models.open import open_backbone
from tdm_r1.runtime.execute import execute
from tdm_r1.runtime.layout import Task
from tdm_r1.runtime.run import Run, open_run

STAGES = [Task("rollout", 2, 0), Task("surrogate_update", 2), Task("generator_update", 2), Task("evaluation", 2)]


class Watching(LocalStore):
    """Says when a first state or rollout is fetched."""

    def __init__(self, root: str) -> None:
        super().__init__(root)
        self.fetched, self.names = Event(), list[str]()

    def fetch(self, key: str, local: Path) -> None:
        super().fetch(key, local)
        self.names.append(key)
        if not key.startswith("prompts/"):
            self.fetched.set()


@pytest.fixture
def again(request: pytest.FixtureRequest, finished: Path, tmp_path: Path) -> tuple[Run, Watching, Path]:
    """The finished run, opened anew."""
    root = Path(shutil.copytree(finished, tmp_path / "run"))
    store = Watching(str(root))
    return Run(store, open_run(str(root)).config), store, root


@pytest.mark.parametrize("task", STAGES, ids=lambda task: task.stage)
def test_parents_are_read_while_the_base_is_opened(
    task: Task, again: tuple[Run, Watching, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, store, root = again
    before = run.manifest(task).digest
    shutil.rmtree(root / task.location)

    def slow(*given: object) -> Backbone:
        assert store.fetched.wait(20), "nothing was read while the base was opened"
        return open_backbone(*given)  # type: ignore[arg-type]

    monkeypatch.setattr("tdm_r1.runtime.run.open_backbone", slow)
    assert execute(run, task).digest == before
    assert sorted(store.names) == sorted(set(store.names)), "a file was read twice"


def test_parents_are_read_several_at_a_time(finished: Path, tmp_path: Path) -> None:
    root, both = Path(shutil.copytree(finished, tmp_path / "run")), Barrier(2)

    class Meeting(LocalStore):
        def fetch(self, key: str, local: Path) -> None:
            if key.endswith("part.parquet") and "/rollout/" in key:
                both.wait(20)  # until the other shard is fetched, too
            super().fetch(key, local)

    config = open_run(str(root)).config
    assert config.rollout.shards == 2
    shutil.rmtree(root / "iter-00002/generator_update")
    execute(Run(Meeting(str(root)), config), Task("generator_update", 2))
    assert not both.broken


def test_a_missing_parent_is_told_before_the_base_is_opened(again: tuple[Run, Watching, Path]) -> None:
    run, _, root = again
    for location in ("iter-00002/generator_update", "iter-00002/surrogate_update"):
        shutil.rmtree(root / location)
    with pytest.raises(MissingParentError) as caught:
        execute(run, Task("generator_update", 2))
    assert "tdm-r1 stage surrogate_update" in (caught.value.hint or "")
    assert not run.is_open


def test_damage_that_is_met_beside_the_base_is_told_by_the_stage(again: tuple[Run, Watching, Path]) -> None:
    run, _, root = again
    shutil.rmtree(root / "iter-00002/generator_update")
    state = root / "iter-00002/surrogate_update/state.safetensors"
    data = bytearray(state.read_bytes())
    data[-1] ^= 1
    state.unlink()
    state.write_bytes(data)
    with pytest.raises(CorruptArtifactError, match="sha256"):
        execute(run, Task("generator_update", 2))
    assert not (root / "iter-00002/generator_update").exists()
