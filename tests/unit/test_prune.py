"""Claims about retention: what goes, what stays, and that a run goes on as if nothing had gone."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

from tdm_r1.artifacts.records import Rollout
from tdm_r1.artifacts.repository import read_manifest
from tdm_r1.artifacts.store import open_store
from tdm_r1.artifacts.tombstone import read_tombstone
from tdm_r1.errors import ArtifactError, CorruptArtifactError, PrunedError
from tdm_r1.runtime.audit import audit
from tdm_r1.runtime.execute import execute
from tdm_r1.runtime.generators import load_generator
from tdm_r1.runtime.layout import Task, all_tasks, iteration_tasks, parents_of
from tdm_r1.runtime.prune import Retention, plan_prune, prune
from tdm_r1.runtime.run import Run, open_run
from tests.support import content, differing, plane_run, tdm_r1, tree

SIX = {"iterations": 6, "evaluation__surrogate_steps": 1}
OLD_SHARD = "iter-00001/rollout/shard-0000"


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of six iterations with a replay window of one."""
    root = tmp_path_factory.mktemp("six") / "run"
    assert tdm_r1(*plane_run(root, **SIX)) == 0
    return root


@pytest.fixture
def root(unbroken: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(unbroken, tmp_path / "run"))


@pytest.fixture
def stopped_after_four(root: Path) -> Path:
    for name in ("iter-00005", "iter-00006"):
        shutil.rmtree(root / name)
    return root


def lost(before: Mapping[str, str], root: Path) -> set[str]:
    return before.keys() - tree(root).keys()


def prune_now(root: Path, keep_last: int, keep_every: int = 0) -> Run:
    run = open_run(str(root))
    prune(run, plan_prune(run, Retention(keep_last, keep_every)))
    return run


def test_the_layout_knows_the_parents_that_every_manifest_names(unbroken: Path) -> None:
    run = open_run(str(unbroken))
    for task in all_tasks(run.config):
        assert {parent.location for parent in parents_of(task, run.config)} == set(run.manifest(task).parents), task


def test_without_yes_nothing_changes_and_the_bytes_are_those_that_go(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tree(root)
    size = sum(path.stat().st_size for path in root.rglob("*") if path.is_file())
    asked = ["prune", "--root", str(root), "--keep-last", "1", "--keep-every", "3"]
    assert tdm_r1(*asked) == 0
    shown = capsys.readouterr().out
    assert tdm_r1(*asked, "--dry-run") == 0
    assert capsys.readouterr().out == shown
    assert tree(root) == before
    assert tdm_r1(*asked, "--yes") == 0
    stones = sum(path.stat().st_size for path in root.rglob("pruned.json"))
    gone = size - sum(path.stat().st_size for path in root.rglob("*") if path.is_file()) + stones
    assert gone > 0
    assert f"{gone:,} bytes" in shown


def test_only_heavy_files_of_iterations_outside_the_rule_go(root: Path) -> None:
    before = tree(root)
    prune_now(root, keep_last=1, keep_every=3)
    per_iteration = {
        "rollout/shard-0000/part.parquet",
        "rollout/shard-0001/part.parquet",
        "surrogate_update/state.safetensors",
        "surrogate_update/optimizer.safetensors",
        "generator_update/optimizer.safetensors",
    }
    # 3 and 6 are multiples, 6 is the last
    assert lost(before, root) == {f"iter-{n:05d}/{name}" for n in (1, 2, 4, 5) for name in per_iteration}


def test_a_finished_run_keeps_what_one_more_iteration_would_read(root: Path) -> None:
    """The replay window is one iteration, and the newest states keep their optimizers."""
    before = tree(root)
    prune_now(root, keep_last=0)
    gone = lost(before, root)
    assert gone
    assert {name[:10] for name in gone} == {f"iter-{n:05d}" for n in (1, 2, 3, 4, 5)}


@pytest.mark.parametrize("keep_last", [0, 1])
def test_a_pruned_run_is_resumed_to_the_digests_of_an_unpruned_one(
    keep_last: int, stopped_after_four: Path, unbroken: Path
) -> None:
    root, before = stopped_after_four, tree(stopped_after_four)
    prune_now(root, keep_last)
    gone = lost(before, root)
    assert len(gone) == 15
    assert tdm_r1("run", "--root", str(root)) == 0
    changed = {name for name in differing(content(unbroken), content(root)) if not name.endswith("pruned.json")}
    assert changed == gone


def test_an_iteration_that_was_begun_keeps_what_its_open_stages_read(root: Path, unbroken: Path) -> None:
    """Killed before the last generator: the window of the surrogate before it, and the state it continues, stay."""
    shutil.rmtree(root / "iter-00006" / "generator_update")
    shutil.rmtree(root / "iter-00006" / "evaluation")
    shutil.rmtree(root / "iter-00003" / "evaluation")  # it reads the surrogate of iteration 3
    before = tree(root)
    prune_now(root, keep_last=0)
    gone = lost(before, root)
    assert not any(name.startswith("iter-00006/") for name in gone)
    assert "iter-00005/generator_update/optimizer.safetensors" not in gone
    assert "iter-00003/surrogate_update/state.safetensors" not in gone
    assert "iter-00002/surrogate_update/state.safetensors" in gone
    run = open_run(str(root))
    for task in (Task("evaluation", 3), *iteration_tasks(6, run.config)):
        again = execute(run, task)
        assert again.digest == open_run(str(unbroken)).manifest(task).digest


def test_reading_a_pruned_record_says_that_it_was_pruned_and_when(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = prune_now(root, keep_last=1)
    stone = read_tombstone(run.store, OLD_SHARD)
    assert stone is not None
    with pytest.raises(PrunedError, match=f"was pruned at {stone.pruned:%Y-%m-%d %H:%M:%S}"):
        run.load(Task("rollout", 1), Rollout)
    shutil.rmtree(root / "iter-00001/reward_scoring/shard-0000")
    assert tdm_r1("stage", "reward_scoring", "--root", str(root), "--iteration", "1") == 2
    assert "was pruned at" in capsys.readouterr().err


def test_a_file_that_is_missing_is_never_called_pruned(root: Path) -> None:
    (root / OLD_SHARD / "part.parquet").unlink()
    run = prune_now(root, keep_last=1)
    assert read_tombstone(run.store, OLD_SHARD) is None
    with pytest.raises(CorruptArtifactError, match="is missing but its manifest lists it"):
        run.load(Task("rollout", 1), Rollout)


def test_a_tombstone_names_the_dropped_files_as_the_manifest_does(root: Path) -> None:
    run = prune_now(root, keep_last=1, keep_every=4)
    where = "iter-00002/surrogate_update"
    stone, manifest = read_tombstone(run.store, where), read_manifest(run.store, where)
    assert stone is not None
    assert manifest is not None
    assert stone.manifest == manifest.digest
    assert stone.rule == "prune --keep-last 1 --keep-every 4"
    assert stone.files.keys() == {"state.safetensors", "optimizer.safetensors"}
    assert all(
        (file.sha256, file.size) == (manifest.files[name].sha256, manifest.files[name].size)
        for name, file in stone.files.items()
    )


def test_a_prune_that_died_between_tombstone_and_delete_is_finished_by_the_next(root: Path, unbroken: Path) -> None:
    prune_now(root, keep_last=1)
    where = "iter-00002/surrogate_update"
    first = (root / where / "pruned.json").read_bytes()
    shutil.copy(unbroken / where / "optimizer.safetensors", root / where)
    prune_now(root, keep_last=1)
    assert not (root / where / "optimizer.safetensors").exists()
    assert (root / where / "pruned.json").read_bytes() == first


def test_a_tombstone_of_another_record_stops_the_prune_before_it_deletes(root: Path) -> None:
    prune_now(root, keep_last=5)
    shutil.copy(root / OLD_SHARD / "pruned.json", root / "iter-00002/rollout/shard-0000")
    before = tree(root)
    with pytest.raises(ArtifactError, match="other files were pruned"):
        prune_now(root, keep_last=1)
    assert lost(before, root) == set()


def test_every_generator_of_a_pruned_run_can_still_be_opened(root: Path) -> None:
    run = prune_now(root, keep_last=0)
    assert not open_store(str(root)).exists("iter-00001/generator_update/optimizer.safetensors")
    assert all(load_generator(run, n)[0] for n in range(7))


def test_audit_passes_a_pruned_run_and_says_so(root: Path) -> None:
    prune_now(root, keep_last=1)
    report = audit(str(root))
    assert report.clean, report.faults
    verdicts = {record.task.location: record.verdict for record in report.records}
    assert verdicts[OLD_SHARD] == "pruned"
    assert verdicts["iter-00006/rollout/shard-0000"] == "ok"


def test_audit_takes_a_file_that_no_tombstone_names_for_missing(root: Path) -> None:
    prune_now(root, keep_last=1)
    (root / "iter-00001/reward_scoring/shard-0000/part.parquet").unlink()
    assert [fault.kind for fault in audit(str(root)).faults] == ["missing"]


def test_audit_refuses_the_tombstone_of_another_record(root: Path) -> None:
    prune_now(root, keep_last=1)
    folder, other = root / OLD_SHARD, root / "iter-00002/rollout/shard-0000"
    shutil.copy(other / "pruned.json", folder / "pruned.json")
    kinds = {fault.kind for fault in audit(str(root)).faults if fault.location.startswith(OLD_SHARD)}
    assert kinds == {"manifest", "missing"}
