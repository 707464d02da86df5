"""Claims about a run that is made longer."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tdm_r1.artifacts.repository import require_manifest
from tdm_r1.artifacts.store import open_store
from tests.support import plane_run, tdm_r1, tree


@pytest.fixture
def root(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def extend(root: Path, iterations: int) -> int:
    return tdm_r1("extend", "--root", str(root), "--iterations", str(iterations))


def contents(root: Path, location: str) -> dict[str, str]:
    return {name: entry.sha256 for name, entry in require_manifest(open_store(str(root)), location).files.items()}


def test_a_longer_run_computes_what_one_would_that_was_as_long_from_the_start(root: Path, tmp_path: Path) -> None:
    before, long = tree(root), tmp_path / "long"
    assert extend(root, 3) == 0
    assert tdm_r1("run", "--root", str(root)) == 0
    assert tdm_r1(*plane_run(long, iterations=3)) == 0
    for stage in ("rollout/shard-0001", "generator_update", "surrogate_update", "evaluation"):
        assert contents(root, f"iter-00003/{stage}") == contents(long, f"iter-00003/{stage}")
    store = open_store(str(root))
    assert len({require_manifest(store, f"iter-{n:05d}/generator_update").config_digest for n in (1, 2, 3)}) == 1
    after = tree(root)
    assert {key for key in before if after[key] != before[key]} <= {"result.json", "report.html"}
    assert tdm_r1("audit", "--root", str(root)) == 0
    assert tdm_r1("audit", "--root", str(root), "--replay", "3/generator_update") == 0


def test_the_command_that_began_a_run_goes_on_with_the_longer_one(root: Path) -> None:
    assert extend(root, 3) == 0
    assert tdm_r1(*plane_run(root)) == 0
    assert (root / "iter-00003/evaluation/manifest.json").exists()


def test_extending_twice_gives_the_longer_one_and_the_same_again_is_free(root: Path) -> None:
    assert [extend(root, 4), extend(root, 6), extend(root, 6)] == [0, 0, 0]
    written = tree(root / "lengths")
    assert sorted(written) == ["00004.json", "00006.json"]
    assert tdm_r1("next", "--root", str(root), "--count", "9") == 0
    assert tdm_r1("audit", "--root", str(root)) == 0
    assert tree(root / "lengths") == written


def test_what_follows_is_counted_to_the_new_end(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert extend(root, 5) == 0
    capsys.readouterr()
    assert tdm_r1("next", "--root", str(root), "--count", "9") == 0
    assert capsys.readouterr().out.strip() == "3 4 5"


@pytest.mark.parametrize("iterations", [0, 1, 2, 100_000])
def test_a_run_never_becomes_shorter_nor_longer_than_its_folders_count(
    root: Path, iterations: int, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tree(root)
    assert extend(root, iterations) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert f"--iterations is {iterations}, expected more than the run's 2 and at most 99,999" in error
    assert tree(root) == before


def test_a_run_whose_last_evaluation_would_not_be_due_is_not_extended(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "run"
    assert tdm_r1("init", *plane_run(root, evaluation__every=3)[1:]) == 0
    assert extend(root, 9) == 2
    assert "iteration 2 is evaluated as the last one: evaluation.every=3" in " ".join(capsys.readouterr().err.split())
    assert not (root / "lengths").exists()


@pytest.mark.parametrize("other", ["", '{"iterations": 4}'], ids=["nothing", "no digest and no seal"])
def test_a_length_that_was_changed_is_refused_and_audit_names_it(
    root: Path, other: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert extend(root, 4) == 0
    (root / "lengths/00004.json").write_text(other)
    assert tdm_r1("next", "--root", str(root)) == 2
    assert "lengths/00004.json` is not what `tdm-r1 extend` writes" in " ".join(capsys.readouterr().err.split())
    assert tdm_r1("audit", "--root", str(root)) == 1
    assert "lengths/00004.json" in capsys.readouterr().out


def test_a_shorter_length_that_was_changed_is_found_by_audit(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert [extend(root, 4), extend(root, 6)] == [0, 0]
    (root / "lengths/00004.json").write_bytes(b"{}")
    assert tdm_r1("audit", "--root", str(root)) == 1
    assert "lengths/00004.json" in capsys.readouterr().out
