"""A run of a GPU cluster where there is no device: what scores, reads or decides works, what computes is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from tdm_r1.artifacts.manifest import Manifest
from tdm_r1.artifacts.store import open_store
from tdm_r1.presets import revise
from tdm_r1.runtime.layout import RUN_FILE
from tdm_r1.runtime.run import config_bytes
from tdm_r1.runtime.run_file import read_config
from tests.support import tdm_r1

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the device")


@pytest.fixture
def elsewhere(finished: Path, tmp_path: Path) -> Path:
    """A run whose networks are on a device that is not here; of iteration 2 only the rollouts are committed."""
    root = tmp_path / "run"
    shutil.copytree(finished, root)
    config = read_config(open_store(str(root)))
    (root / RUN_FILE).write_bytes(config_bytes(revise(config, {"numerics.device": "cuda"})))
    for stage in ("reward_scoring", "surrogate_update", "generator_update", "evaluation"):
        shutil.rmtree(root / "iter-00002" / stage)
    return root


def stage(root: Path, *words: str) -> int:
    return tdm_r1("stage", words[0], "--root", str(root), *words[1:])


def test_a_run_of_a_preset_with_a_device_begins_anywhere(tmp_path: Path) -> None:
    root = tmp_path / "run"
    assert tdm_r1("init", "--root", str(root), "--preset", "sd35_medium_geneval") == 0
    assert read_config(open_store(str(root))).numerics.device == "cuda"


def test_shards_are_scored_and_the_next_iteration_is_found(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for shard in ("0", "1"):
        assert stage(elsewhere, "reward_scoring", "--iteration", "2", "--shard", shard) == 0
    place = elsewhere / "iter-00002/reward_scoring/shard-0001/manifest.json"
    assert Manifest.from_bytes(place.read_bytes()).provenance.device == "cpu"
    capsys.readouterr()
    assert tdm_r1("next", "--root", str(elsewhere)) == 0
    assert capsys.readouterr().out.strip() == "2"


def test_committed_images_are_judged_again(elsewhere: Path) -> None:
    words = ["--name", "half", "--set", "reward.scorers.plane.weight=0.5"]
    assert tdm_r1("variant", "--root", str(elsewhere), *words) == 0
    assert stage(elsewhere, "reward_scoring", "--iteration", "2", "--shard", "0", "--variant", "half") == 0
    assert stage(elsewhere, "evaluation", "--iteration", "1", "--variant", "half") == 0
    place = elsewhere / "variants/half/iter-00001/evaluation/manifest.json"
    provenance = Manifest.from_bytes(place.read_bytes()).provenance
    assert (provenance.device, provenance.base) == ("cpu", None)


def test_a_run_is_looked_at(elsewhere: Path) -> None:
    assert tdm_r1("inspect", "--root", str(elsewhere)) == 0
    assert tdm_r1("query", "--root", str(elsewhere), "SELECT count(*) FROM rewards") == 0
    assert tdm_r1("report", "--root", str(elsewhere)) == 0


def test_what_computes_is_refused_and_commits_nothing(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for shard in ("0", "1"):
        assert stage(elsewhere, "reward_scoring", "--iteration", "2", "--shard", shard) == 0
    shutil.rmtree(elsewhere / "iter-00002/rollout/shard-0001")
    assert stage(elsewhere, "rollout", "--iteration", "2", "--shard", "1") == 2
    assert "numerics.device is `cuda` but this machine has no CUDA device" in capsys.readouterr().err
    assert not (elsewhere / "iter-00002/rollout/shard-0001/manifest.json").exists()
