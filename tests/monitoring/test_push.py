"""Stages tell a real Pushgateway what they did, and a Pushgateway that is away changes nothing."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tdm_r1.artifacts.repository import read_manifest
from tdm_r1.artifacts.store import open_store
from tdm_r1.runtime.record_samples import run_label
from tests.drive_support import begun
from tests.monitors import free_port, get, groups, published, pushgateway
from tests.support import content, differing, tdm_r1


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with pushgateway(tmp_path_factory.mktemp("pushgateway")) as address:
        yield address


def stage(root: Path, name: str, iteration: int, shard: int = 0) -> list[str]:
    return ["stage", name, "--root", str(root), "--iteration", str(iteration), "--shard", str(shard)]


def test_a_stage_pushes_what_its_manifest_says_and_the_next_iteration_replaces_it(
    finished: Path, tmp_path: Path, gateway: str
) -> None:
    root = Path(shutil.copytree(finished, tmp_path / "run"))
    run, seen = run_label(str(root)), []
    for iteration in (1, 2):
        shutil.rmtree(root / f"iter-{iteration:05d}" / "reward_scoring")
        for shard in (0, 1):
            assert tdm_r1(*stage(root, "reward_scoring", iteration, shard), "--pushgateway", gateway) == 0
        manifest = read_manifest(open_store(str(root)), f"iter-{iteration:05d}/reward_scoring/shard-0001")
        assert manifest is not None
        found = published(get(f"{gateway}/metrics"))
        where = tuple(sorted({"run": run, "stage": "reward_scoring", "shard": "0001"}.items()))
        size = sum(entry.size for entry in manifest.files.values())
        assert found["tdm_r1_stage_iteration"][where] == iteration
        assert found["tdm_r1_stage_committed_bytes"][where] == size
        assert found["tdm_r1_stage_seconds"][where] == pytest.approx(manifest.provenance.seconds)
        assert found["tdm_r1_stage_images"][where] == 8
        seen.append(({k: set(v) for k, v in found.items()}, [g for g in groups(gateway) if g["run"] == run]))
    assert seen[0] == seen[1], "no series and no group is added by an iteration"
    assert [
        {"job": "tdm-r1-stage", "run": run, "stage": "reward_scoring", "shard": f"000{n}"} for n in (0, 1)
    ] == sorted(seen[1][1], key=lambda group: group["shard"])


def test_a_pushgateway_that_is_away_costs_one_line_and_neither_exit_code_nor_bytes(
    finished: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    root = begun(finished, tmp_path / "run")
    away = f"http://someone:geheim@127.0.0.1:{free_port()}"
    for name in ("encode_prompts", "distill_base"):
        assert tdm_r1(*stage(root, name, 0), "--pushgateway", away) == 0
    lines = [line for line in capfd.readouterr().err.splitlines() if "ushgateway" in line]
    assert lines == ["warning: the Pushgateway was not told: URLError"] * 2
    made = content(root)
    assert [name for name in differing(made, content(finished)) if name in made] == []


def test_a_failed_stage_says_why_until_it_succeeds_and_keeps_its_older_numbers(
    finished: Path, tmp_path: Path, gateway: str
) -> None:
    root = Path(shutil.copytree(finished, tmp_path / "run"))
    run = run_label(str(root))
    where = tuple(sorted({"run": run, "stage": "reward_scoring", "shard": "0000"}.items()))
    failed = tuple(sorted([*where, ("reason", "MissingParentError")]))
    assert tdm_r1(*stage(root, "reward_scoring", 1), "--pushgateway", gateway) == 0
    shutil.move(root / "iter-00002", tmp_path / "aside")
    assert tdm_r1(*stage(root, "reward_scoring", 2), "--pushgateway", gateway) == 2
    found = published(get(f"{gateway}/metrics"))
    assert found["tdm_r1_stage_failed"][failed] == 1
    assert found["tdm_r1_stage_iteration"][where] == 1
    shutil.move(tmp_path / "aside", root / "iter-00002")
    assert tdm_r1(*stage(root, "reward_scoring", 2), "--pushgateway", gateway) == 0
    found = published(get(f"{gateway}/metrics"))
    assert failed not in found.get("tdm_r1_stage_failed", {})
    assert found["tdm_r1_stage_iteration"][where] == 2
