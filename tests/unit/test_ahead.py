"""Claims about what comes next."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.support import tdm_r1


@pytest.fixture
def root(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def following(root: Path, capsys: pytest.CaptureFixture[str], *more: str) -> str:
    assert tdm_r1("next", "--root", str(root), *more) == 0
    return capsys.readouterr().out.strip()


def test_a_complete_run_has_nothing_ahead(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert following(root, capsys, "--count", "5.0") == "none"


def test_the_first_iteration_that_lacks_any_record_is_next(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "iter-00002/rollout/shard-0001/manifest.json").unlink()
    assert following(root, capsys, "--count", "5") == "2"
    (root / "iter-00001/evaluation/manifest.json").unlink()
    assert following(root, capsys, "--count", "5") == "1 2"
    assert following(root, capsys) == "1"


def test_nothing_is_ahead_of_a_stop(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(root / "iter-00002")
    (root / "STOP").touch()
    assert following(root, capsys) == "none"


def test_an_iteration_may_not_begin_before_the_one_before_it_is_whole(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert following(root, capsys, "--iteration", "2.0") == "2"
    (root / "iter-00001/evaluation/manifest.json").unlink()
    assert tdm_r1("next", "--root", str(root), "--iteration", "2") == 2
    error = " ".join(capsys.readouterr().err.split())
    assert "iteration 2 cannot begin" in error
    assert f"hint: run `tdm-r1 stage evaluation --iteration 1 --root {root}`" in error


def test_argo_reads_the_first_from_a_file_and_kfp_all_of_them(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(root / "iter-00001")
    shutil.rmtree(root / "iter-00002")
    asked = {
        "outputs": {
            "parameters": {
                name: {"outputFile": str(tmp_path / "kfp" / name)} for name in ("iterations", "stop", "done")
            }
        }
    }
    following(root, capsys, "--count", "5", "--out", str(tmp_path / "out"), "--executor-input", json.dumps(asked))
    assert (tmp_path / "out").read_text() == "1"
    base = json.loads((root / "base/manifest.json").read_text())["digest"]
    told = {path.name: path.read_text() for path in (tmp_path / "kfp").iterdir()}
    assert told == {"iterations": "[1, 2]", "stop": "false", "done": base}
