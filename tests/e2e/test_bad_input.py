"""What is refused: exit code 2, `error:` and `hint:` on stderr, and not one file written or changed."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tdm_r1.artifacts.codec import Record
from tdm_r1.artifacts.manifest import Provenance
from tdm_r1.artifacts.records import Base
from tdm_r1.artifacts.repository import commit, load
from tdm_r1.artifacts.store import open_store
from tests.support import differing, plane_run, settings, tdm_r1, tree

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def refused(capsys: Capture, root: Path, *arguments: str) -> str:
    """The error and hint of a command that must be refused and must leave everything as it was."""
    before = tree(root)
    capsys.readouterr()
    code = tdm_r1(*arguments)
    message = capsys.readouterr().err
    assert code == 2, message
    assert differing(before, tree(root)) == []
    return parts(message)


def parts(stderr: str) -> str:
    """What follows `error:`; both parts must be there, one after the other."""
    _, found, message = stderr.partition("error: ")
    assert found, stderr
    assert "\n\nhint: " in message
    assert "Traceback" not in stderr
    return message


def stage(root: Path, name: str, **where: int) -> list[str]:
    options = [word for key, value in where.items() for word in (f"--{key}", str(value))]
    return ["stage", name, "--root", str(root), *options]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--preset", "nope"], "there is no preset `nope`"),
        (["--preset", "plane", "--set", "surrogate.bta=1"], "`surrogate.bta` is no knob"),
        (["--preset", "plane", "--set", "surogate.beta=1"], "no section `surogate`"),
        (["--preset", "plane", "--set", "surrogate.beta"], "has no `=`"),
        (["--preset", "plane", "--set", "surrogate.beta=-1"], "`surrogate.beta` is -1"),
        (["--preset", "plane", "--set", "distill.generator.learning_rate=Infinity"], "is inf"),
        (["--preset", "plane", "--set", "rollout.shards=3"], "not a multiple of shards=3"),
        (["--preset", "plane", "--set", "model.source=/nowhere"], "model.source is '/nowhere'"),
        (["--preset", "plane", "--set", "model.source=embedded:nothing"], "model.source is 'embedded:nothing'"),
        ([], "holds no run.json"),
    ],
)
def test_a_wrong_start_leaves_no_trace(change: list[str], message: str, tmp_path: Path, capsys: Capture) -> None:
    root = tmp_path / "new"
    assert message in refused(capsys, root, "run", "--root", str(root), *change)
    assert not root.exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the device")
def test_a_device_that_is_not_there_leaves_no_trace(tmp_path: Path, capsys: Capture) -> None:
    root = tmp_path / "new"
    assert "no CUDA device" in refused(capsys, root, *plane_run(root, numerics__device="cuda"))
    assert not root.exists()


@pytest.mark.parametrize("world", ["plane", "shapes"])
def test_an_adapter_target_that_matches_nothing_leaves_no_trace(
    world: str, pipeline: Path, tmp_path: Path, capsys: Capture
) -> None:
    root = tmp_path / "new"
    knobs: dict[str, Any] = {"model.adapter.kind": "lora", "model.adapter.targets": '["attn.to_z"]'}
    if world == "shapes":
        knobs["model.source"] = pipeline
    preset = {"plane": "plane", "shapes": "shapes_smoke"}[world]
    message = refused(capsys, root, "run", "--root", str(root), "--preset", preset, *settings(knobs))
    assert "'attn.to_z', but no linear layer of the base ends so" in message
    assert not root.exists()


@pytest.mark.parametrize("source", ["empty", "file"])
def test_a_source_that_holds_no_model_leaves_no_trace(source: str, tmp_path: Path, capsys: Capture) -> None:
    root, folder = tmp_path / "new", tmp_path / "source"
    (Path.mkdir if source == "empty" else Path.touch)(folder)
    for preset in ("plane", "shapes_smoke"):
        refused(capsys, root, "run", "--root", str(root), "--preset", preset, "--set", f"model.source={folder}")
    assert not root.exists()


@pytest.mark.parametrize(
    "root", ["", "s3://", "s3://No_Bucket/run", "s3://bucket/a//b", "s3://bucket/../b", "ftp://host/run"]
)
def test_a_root_that_cannot_be_opened_is_refused(root: str, tmp_path: Path, capsys: Capture) -> None:
    refused(capsys, tmp_path, "run", "--root", root, "--preset", "plane")


def test_a_root_that_is_a_file_is_refused(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "file").write_text("precious")
    assert "is a file" in refused(capsys, tmp_path, "run", "--root", str(tmp_path / "file"), "--preset", "plane")


def test_a_root_that_holds_another_run_is_refused_with_the_first_difference(run: Path, capsys: Capture) -> None:
    assert "seed is 0 there and 1 here" in refused(capsys, run, *plane_run(run, seed=1))


@pytest.mark.parametrize("text", ["", "{", "[]", '{"preset": "plane", "sed": 1}'])
def test_a_run_json_that_is_no_configuration_is_refused(text: str, run: Path, capsys: Capture) -> None:
    (run / "run.json").write_text(text)
    assert "not a valid configuration" in refused(capsys, run, "run", "--root", str(run))


@pytest.mark.parametrize(
    ("name", "where", "message"),
    [
        ("rolout", {}, "there is no stage `rolout`"),
        ("rollout", {"iteration": 0}, "iteration 0 of rollout is out of range, expected 1..2"),
        ("rollout", {"iteration": 3}, "iteration 3 of rollout is out of range, expected 1..2"),
        ("evaluation", {"iteration": -1}, "iteration -1 of evaluation is out of range, expected 0..2"),
        ("generator_update", {"iteration": 2, "offset": 1}, "iteration 3 of generator_update is out of range"),
        ("rollout", {"iteration": 1, "shard": 2}, "shard 2 is out of range, expected 0..1"),
        ("reward_scoring", {"iteration": 1, "shard": -1}, "shard -1 is out of range, expected 0..1"),
        ("rollout", {"iteration": 1.5}, "--iteration is 1.5, expected a whole number"),
        ("rollout", {"iteration": 1, "shard": float("nan")}, "--shard is nan, expected a whole number"),
    ],
)
def test_a_task_that_the_run_does_not_have_is_refused(
    name: str, where: dict[str, Any], message: str, run: Path, capsys: Capture
) -> None:
    assert message in refused(capsys, run, *stage(run, name, **where))


def test_a_missing_parent_is_named_with_the_command_that_makes_it(run: Path, capsys: Capture) -> None:
    shutil.rmtree(run / "iter-00002/surrogate_update")
    (run / "iter-00002/reward_scoring/shard-0001/manifest.json").unlink()
    message = refused(capsys, run, *stage(run, "surrogate_update", iteration=2))
    assert "iter-00002/reward_scoring/shard-0001` has no manifest" in message
    assert f"`tdm-r1 stage reward_scoring --iteration 2 --shard 1 --root {run}`" in message
    assert f"`tdm-r1 run --root {run}`" in message


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 2)


def alter(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [truncate, alter, Path.unlink])
@pytest.mark.parametrize(
    ("name", "where", "parent"),
    [
        ("distill_base", {}, "prompts/prompts.parquet"),
        ("rollout", {"iteration": 1, "shard": 0}, "base/state.safetensors"),
        ("reward_scoring", {"iteration": 2, "shard": 1}, "iter-00002/rollout/shard-0001/part.parquet"),
        ("surrogate_update", {"iteration": 2}, "iter-00001/reward_scoring/shard-0000/part.parquet"),
        ("generator_update", {"iteration": 2}, "iter-00001/generator_update/optimizer.safetensors"),
        ("evaluation", {"iteration": 2}, "iter-00002/generator_update/metrics.parquet"),
    ],
)
def test_a_damaged_parent_is_named_and_nothing_is_made_from_it(
    name: str, where: dict[str, int], parent: str, damage: Callable[[Path], None], run: Path, capsys: Capture
) -> None:
    folder = {"distill_base": "base"}.get(name, f"iter-{where.get('iteration', 0):05d}/{name}")
    shutil.rmtree(run / folder)
    damage(run / parent)
    assert f"`{run / parent}`" in refused(capsys, run, *stage(run, name, **where))


@pytest.mark.parametrize("damage", [truncate, alter])
def test_a_damaged_manifest_is_refused_and_never_taken_for_a_missing_one(
    damage: Callable[[Path], None], run: Path, capsys: Capture
) -> None:
    damage(run / "base/manifest.json")
    assert "base/manifest.json" in refused(capsys, run, *stage(run, "distill_base"))
    assert "base/manifest.json" in refused(capsys, run, "run", "--root", str(run))


def replaced(root: Path, location: str, kind: type[Record], poison: Callable[[Record], Record]) -> None:
    """Commit a changed record in the place of another, as if a stage had made it."""
    store = open_store(str(root))
    record, manifest = load(store, location, kind)
    changed = poison(record)
    store.delete_prefix(location)
    given: dict[str, Any] = {"parents": manifest.parents, "config_digest": manifest.config_digest}
    provenance: Provenance = manifest.provenance
    commit(store, location, changed, provenance=provenance, **given)


def poisoned(record: Record) -> Record:
    """The same weights, with fake score and generator so large that their velocities overflow."""
    assert isinstance(record, Base)
    trained = ("fake/", "generator/")  # NaN itself is no content of a record
    state = {n: torch.full_like(t, 1e38) if n.startswith(trained) else t for n, t in record.state.items()}
    return Base(state=state, optimizer=record.optimizer, metrics=record.metrics)


def test_poisoned_weights_stop_the_update_before_it_commits(run: Path, capsys: Capture) -> None:
    replaced(run, "base", Base, poisoned)
    shutil.rmtree(run / "iter-00001/generator_update")
    message = refused(capsys, run, *stage(run, "generator_update", iteration=1))
    assert "is not finite at step 0" in message
    assert message.startswith(("`fake/", "`generator/"))


@pytest.mark.parametrize("role", ["fake.optimizer", "generator"])
def test_a_learning_rate_that_explodes_stops_the_distillation_before_it_commits(
    role: str, tmp_path: Path, capsys: Capture
) -> None:
    root = tmp_path / "new"
    overrides: dict[str, Any] = {f"distill__{role.replace('.', '__')}__learning_rate": "1e38"}
    assert tdm_r1(*plane_run(root, **overrides)) == 2
    message = parts(capsys.readouterr().err)
    assert "is not finite at step" in message
    assert "learning" in message
    assert sorted(path.name for path in root.iterdir() if path.is_dir() and any(path.iterdir())) == ["prompts"]
    assert role.partition(".")[0] in message or "loss" in message


def test_a_full_disk_stops_the_stage_before_it_commits(run: Path, capsys: Capture) -> None:
    shutil.rmtree(run / "base")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))  # the state has a megabyte
    try:
        message = refused(capsys, run, *stage(run, "distill_base"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "no space is left" in message
    assert tdm_r1(*stage(run, "distill_base")) == 0


@pytest.mark.parametrize("text", ["", "{", "[]"])
def test_an_executor_input_that_is_none_is_refused(text: str, run: Path, capsys: Capture) -> None:
    if text:
        arguments = [*stage(run, "evaluation", iteration=2), "--executor-input", text]
        assert "--executor-input" in refused(capsys, run, *arguments)


def test_the_real_command_exits_with_2_and_says_why(run: Path) -> None:
    before = tree(run)
    command = [sys.executable, "-m", "tdm_r1", *stage(run, "rollout", iteration=9)]
    result = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("error: iteration 9 of rollout is out of range")
    parts(result.stderr)
    assert tree(run) == before


def test_a_stage_that_fails_in_its_own_process_passes_its_code_on(run: Path, capfd: Capture) -> None:
    shutil.rmtree(run / "iter-00002/evaluation")
    alter(run / "iter-00002/generator_update/state.safetensors")
    assert tdm_r1("run", "--root", str(run), "--isolate") == 2
    message = capfd.readouterr().err
    assert "iter-00002/generator_update/state.safetensors" in message
    assert "exited with 2" in parts(message[message.rindex("error: ") :])
    assert not (run / "iter-00002/evaluation").exists()


def test_an_untouched_copy_is_accepted(run: Path) -> None:
    """The control of this file: what the tests above damage is otherwise complete."""
    before = tree(run)
    assert tdm_r1("run", "--root", str(run)) == 0
    assert json.loads((run / "result.json").read_text())["iterations"] == 2
    state = load_file(run / "base/state.safetensors")
    assert all(tensor.isfinite().all() for tensor in state.values())
    save_file(state, run / "copy.safetensors")
    assert differing(before, tree(run)) == ["copy.safetensors"]
