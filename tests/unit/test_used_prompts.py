"""Claims about which prompts a stage reads: those that it uses, and with the same result."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tdm_r1.artifacts import blocks
from tdm_r1.artifacts.records import PromptSet
from tdm_r1.artifacts.repository import load
from tdm_r1.artifacts.store import LocalStore
from tdm_r1.models.prompts import PromptTable, PromptTexts
from tdm_r1.runtime.audit import audit
from tdm_r1.runtime.execute import execute
from tdm_r1.runtime.layout import Task
from tdm_r1.runtime.loop import loop
from tdm_r1.runtime.replay import replay
from tdm_r1.runtime.run import Run, open_run
from tdm_r1.stages.evaluation import held_out
from tests.support import content, differing, plane_run, tdm_r1

FILE = "prompts/embeddings.safetensors"


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 40)


@pytest.fixture
def parted(small: None, finished: Path, tmp_path: Path) -> Path:
    """The finished run, its embeddings in many blocks."""
    root = Path(shutil.copytree(finished, tmp_path / "parted"))
    shutil.rmtree(root / "prompts")
    assert tdm_r1("stage", "encode_prompts", "--root", str(root)) == 0
    assert len(open_run(str(root)).manifest(Task("encode_prompts")).files["embeddings.safetensors"].blocks or ()) > 5
    return root


class Watching(LocalStore):
    """Remembers how the embeddings were read."""

    def __init__(self, root: str) -> None:
        super().__init__(root)
        self.whole = self.parts = 0

    def fetch(self, key: str, local: Path) -> None:
        self.whole += key == FILE
        super().fetch(key, local)

    def read_range(self, key: str, start: int, length: int) -> bytes:
        self.parts += key == FILE
        return super().read_range(key, start, length)


def watched(root: Path) -> tuple[Run, Watching]:
    store = Watching(str(root))
    return Run(store, open_run(str(root)).config), store


@pytest.mark.usefixtures("small")
def test_a_run_whose_embeddings_are_in_blocks_gives_the_digests_of_one_with_whole_files(
    finished: Path, tmp_path: Path
) -> None:
    root = tmp_path / "run"
    assert tdm_r1(*plane_run(root)) == 0
    assert b'"blocks"' in (root / "prompts" / "manifest.json").read_bytes()
    assert b'"blocks"' not in (finished / "prompts" / "manifest.json").read_bytes()
    assert differing(content(finished), content(root)) == []


def test_every_stage_of_a_run_in_blocks_replays_to_the_same_digest(parted: Path) -> None:
    assert audit(str(parted)).clean
    found = [record for text in ("prompts", "base", "0", "1", "2") for record in replay(str(parted), text)]
    assert len(found) == 17
    assert all(record.identical for record in found)


def test_only_distillation_reads_all_embeddings(parted: Path) -> None:
    for task in ("base", "iter-00000", "iter-00001", "iter-00002"):
        shutil.rmtree(parted / task)
    run, store = watched(parted)
    whole: dict[str, int] = {}
    before = 0
    for done in loop(run):
        whole[done.task.stage] = whole.get(done.task.stage, 0) + store.whole - before
        before = store.whole
    assert {stage: count for stage, count in whole.items() if count} == {"distill_base": 1}
    assert store.parts


@pytest.mark.parametrize("stage", ["rollout", "surrogate_update", "generator_update", "evaluation"])
def test_a_stage_reads_parts_and_commits_the_same_record(stage: str, parted: Path) -> None:
    task = Task(stage, 1)
    run, store = watched(parted)
    location = parted / task.location
    digest = run.manifest(task).digest
    shutil.rmtree(location)
    assert execute(run, task).digest == digest
    assert store.parts > 0
    assert store.whole == 0


def test_embeddings_that_are_in_memory_are_not_read_again(parted: Path) -> None:
    run, store = watched(parted)
    ids = run.prompts.listed()[0].table["prompt_id"].to_pylist()
    run.prompts.chosen(ids[:6])
    read = store.parts
    again, _ = run.prompts.chosen(ids[2:5])
    assert store.parts == read > 0
    assert again.prompts["prompt_id"].to_pylist() == ids[2:5]
    run.prompts.chosen(ids[-3:])
    assert store.parts > read


def test_chosen_prompts_have_their_own_embeddings_and_row_0_stays_the_empty_prompt(parted: Path) -> None:
    run, _ = watched(parted)
    whole = PromptTable(load(run.store, "prompts", PromptSet)[0])
    ids = list(whole.rows)
    some = [ids[7], ids[2], ids[-1]]
    found, manifest = run.prompts.chosen(some)
    table = PromptTable(found)
    assert manifest == run.manifest(Task("encode_prompts"))
    assert set(table.rows) == set(some)
    assert len(table.embeddings) <= len(some) + 1
    for part in ("sequence", "pooled"):
        assert torch.equal(getattr(table.condition(some), part), getattr(whole.condition(some), part))
        assert torch.equal(getattr(table.empty, part), getattr(whole.empty, part))
    kept = ("text", "tag", "split", "metadata")
    assert all({k: table.rows[p][k] for k in kept} == {k: whole.rows[p][k] for k in kept} for p in some)


def test_small_embeddings_are_read_once_as_a_whole_for_all_stages(finished: Path) -> None:
    run, store = watched(finished)
    ids = list(run.prompts.listed()[0].rows)
    found, _ = run.prompts.chosen(ids[:2])
    assert found is run.load(Task("encode_prompts"), PromptSet)[0]
    assert (store.whole, store.parts) == (1, 0)


@pytest.mark.parametrize("count", [1, 2, 5, 7, 12, 1000])
@pytest.mark.parametrize("split", ["train", "test"])
def test_an_evaluation_of_the_held_out_prompts_alone_chooses_the_same(count: int, split: Any, finished: Path) -> None:
    run, _ = watched(finished)
    texts = run.prompts.listed()[0]
    section = run.config.evaluation.model_copy(update={"prompts": count, "split": split})
    config = run.config.model_copy(update={"evaluation": section})
    chosen = held_out(texts, config)
    mask = [name in set(chosen) for name in texts.table["prompt_id"].to_pylist()]
    assert held_out(PromptTexts(texts.table.filter(mask)), config) == chosen
