"""Claims about how a stage reads many records."""

from __future__ import annotations

import shutil
from pathlib import Path
from threading import Barrier

import pytest

from tdm_r1.artifacts.records import PromptSet, Rollout
from tdm_r1.artifacts.store import LocalStore
from tdm_r1.errors import MissingParentError
from tdm_r1.runtime.execute import execute
from tdm_r1.runtime.layout import Task, shard_tasks
from tdm_r1.runtime.run import Run, open_run


class Meeting(LocalStore):
    """Lets nobody fetch a table before two readers are there."""

    def __init__(self, root: Path, meeting: Barrier) -> None:
        super().__init__(str(root))
        self._meeting = meeting

    def fetch(self, key: str, local: Path) -> None:
        if key.endswith(".parquet"):
            self._meeting.wait(20)
        super().fetch(key, local)


def test_the_shards_of_an_iteration_are_read_at_the_same_time_and_come_in_their_order(finished: Path) -> None:
    config = open_run(str(finished)).config
    tasks = shard_tasks("rollout", 1, config)
    assert len(tasks) == 2
    run = Run(Meeting(finished, Barrier(2)), config)
    found = [rollout.index.to_pydict() for rollout, _ in run.load_all(tasks, Rollout)]
    assert found == [open_run(str(finished)).load(task, Rollout)[0].index.to_pydict() for task in tasks]


def test_a_shard_that_is_not_there_is_named_with_the_command_that_makes_it(finished: Path) -> None:
    run = open_run(str(finished))
    with pytest.raises(MissingParentError, match="iter-00099/rollout/shard-0001") as raised:
        run.load_all([Task("rollout", 1, 0), Task("rollout", 99, 1)], Rollout)
    assert "tdm-r1 stage rollout --iteration 99 --shard 1" in (raised.value.hint or "")


def test_images_are_judged_without_the_embeddings_of_their_prompts(finished: Path, tmp_path: Path) -> None:
    root = tmp_path / "run"
    shutil.copytree(finished, root)
    run, task = open_run(str(root)), Task("reward_scoring", 1)
    before = run.manifest(task)
    shutil.rmtree(root / task.location)
    (root / "prompts" / "embeddings.safetensors").unlink()
    after = execute(run, task)
    assert (after.digest, after.parents) == (before.digest, before.parents)


def test_a_table_of_a_record_that_is_here_is_not_read_again(finished: Path, tmp_path: Path) -> None:
    root, task = tmp_path / "run", Task("encode_prompts")
    shutil.copytree(finished, root)
    run = open_run(str(root))
    whole, manifest = run.load(task, PromptSet)
    (root / "prompts" / "prompts.parquet").unlink()
    assert run.load_table(task, PromptSet, "prompts") == (whole.prompts, manifest)
