"""Claims about training in several processes: real torchrun, gloo, on this machine's CPU."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from tdm_r1.artifacts.repository import read_manifest
from tdm_r1.artifacts.store import open_store
from tdm_r1.config import AdamConfig, DistributedConfig
from tdm_r1.errors import ConfigError
from tdm_r1.models.optimizers import open_optimizer
from tdm_r1.models.world import ALONE
from tdm_r1.presets import resolve
from tdm_r1.runtime.dealing import require_fit
from tdm_r1.runtime.layout import Task
from tests.support import content, differing, once, settings
from tests.support import tdm_r1 as command
from tests.tiny import tiny_sd3

REPOSITORY = Path(__file__).parents[2]
TRAINED = ("base", "iter-00001/surrogate_update", "iter-00001/generator_update")
STAGES = ("distill_base", "surrogate_update/1", "generator_update/1")
TOLERANCE = 1e-5

SIZES: dict[str, Any] = {
    "numerics.threads": 1,
    "iterations": 1,
    "distill.steps": 3,
    "distill.batch": 16,
    "rollout.groups": 4,
    "rollout.group_size": 4,
    "rollout.shards": 2,
    "surrogate.minibatch_groups": 4,
    "surrogate.microbatch_groups": 1,
    "surrogate.updates": 2,
    "generator.updates": 2,
    "generator.minibatch": 16,
    "generator.microbatch": 4,
    # the published rates, not the embedded worlds' larger ones
    "distill.generator.learning_rate": 7.5e-5,
    "distill.fake.optimizer.learning_rate": 3e-4,
    "generator.optimizer.learning_rate": 7.5e-5,
    "generator.fake.optimizer.learning_rate": 3e-4,
}
PLANE = {
    **SIZES,
    "rollout.groups": 8,
    "rollout.group_size": 16,
    "surrogate.minibatch_groups": 8,
    "generator.minibatch": 64,
    "generator.microbatch": 16,
}
LONG = {"surrogate.updates": 8, "distributed.checkpoint_every": 2}


def stage(root: Path, name: str, *more: str) -> None:
    assert command("stage", name, "--root", str(root), *more) == 0


def trained_alone(root: Path, preset: str, overrides: dict[str, Any]) -> None:
    """Every record up to the first generator update, by one process."""
    assert command("init", "--root", str(root), "--preset", preset, *settings(overrides)) == 0
    stage(root, "encode_prompts")
    stage(root, "distill_base")
    for name in ("rollout", "reward_scoring"):
        for shard in ("0", "1"):
            stage(root, name, "--iteration", "1", "--shard", shard)
    stage(root, "surrogate_update", "--iteration", "1")
    stage(root, "generator_update", "--iteration", "1")


@pytest.fixture(scope="module")
def plane(shared: Path) -> Path:
    return once(shared / "alone-plane", lambda root: trained_alone(root, "plane", PLANE | LONG))


@pytest.fixture(scope="module")
def sd3(shared: Path) -> Path:
    def build(root: Path) -> None:
        source = once(shared / "tiny-sd3", tiny_sd3)
        scorers = '{"brightness": {"use": "tests.brightness:Brightness"}}'
        tiny = {
            "world": "plane",
            "model.source": source,
            "model.resolution": 16,
            "reward.scorers": scorers,
            "surrogate.beta": 10,
        }
        trained_alone(root, "shapes_smoke", SIZES | tiny | {"surrogate.beta": 10})

    return once(shared / "alone-sd3", build)


def untrained(finished: Path, root: Path, *locations: str) -> Path:
    """A copy of a run without some records."""
    shutil.copytree(finished, root)
    for location in locations:
        shutil.rmtree(root / location)
    return root


def started(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "src")])
    known = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(
        [sys.executable, *arguments],
        env=known,
        cwd=REPOSITORY,
        timeout=400,
        check=False,
        capture_output=True,
        text=True,
    )


def torchrun(count: int, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return started("-m", "torch.distributed.run", "--nproc-per-node", str(count), *arguments, **environment)


WORKER = str(REPOSITORY / "tests" / "distributed_worker.py")


def require_close(alone: Path, together: Path) -> None:
    """Weights within 1e-5, and the same log within 1e-5 of its values."""
    for file in ("state", "optimizer"):
        left, right = load_file(alone / f"{file}.safetensors"), load_file(together / f"{file}.safetensors")
        assert left.keys() == right.keys()
        apart = {name: float((left[name] - right[name]).abs().max()) for name in left}
        assert max(apart.values()) <= TOLERANCE, (alone, max(apart, key=lambda name: apart[name]), max(apart.values()))
    left, right = (pq.read_table(folder / "metrics.parquet") for folder in (alone, together))
    assert left.select(["step", "name"]).equals(right.select(["step", "name"]))
    for row, value in zip(left.to_pylist(), right["value"].to_pylist(), strict=True):
        within = 10 * TOLERANCE if row["name"].endswith("gradient_norm") else TOLERANCE
        assert value == pytest.approx(row["value"], rel=within, abs=TOLERANCE), row


def sharded(finished: Path, root: Path, **options: Any) -> Path:
    """An untrained copy of the run in the plane that DeepSpeed will train."""
    wanted = {f"distributed.{key}": value for key, value in {"engine": "deepspeed", **options}.items()}
    assert command("init", "--root", str(root), "--preset", "plane", *settings(PLANE | LONG | wanted)) == 0
    for location in ("prompts", "iter-00001/rollout", "iter-00001/reward_scoring"):
        shutil.copytree(finished / location, root / location)
    return root


@pytest.mark.slow
@pytest.mark.parametrize(("count", "zero"), [(2, 1), (4, 2)])
def test_several_processes_train_what_one_does(count: int, zero: int, plane: Path, sd3: Path, tmp_path: Path) -> None:
    pairs = [(alone, untrained(alone, tmp_path / alone.name, *TRAINED)) for alone in (plane, sd3)]
    pairs.append((plane, sharded(plane, tmp_path / "deepspeed", zero_stage=zero, offload=json.dumps(zero == 2))))
    pairs.append((plane, sharded(plane, tmp_path / "zero3", zero_stage=3)))
    done = torchrun(count, WORKER, *STAGES, "--", *(str(root) for _, root in pairs))
    assert done.returncode == 0, done.stderr
    for alone, root in pairs:
        for location in TRAINED:
            require_close(alone / location, root / location)
            manifest = read_manifest(open_store(str(root)), location)
            assert manifest is not None
            assert manifest.provenance.device == f"cpu, {count} processes"
        assert content(root).keys() == content(alone).keys()


def test_what_is_compared_was_trained(plane: Path, sd3: Path) -> None:
    for root in (plane, sd3):
        for location, role in zip(TRAINED, ("fake", "surrogate", "generator"), strict=True):
            rows = pq.read_table(root / location / "metrics.parquet").to_pylist()
            norms = [row["value"] for row in rows if row["name"] == f"{role}/gradient_norm"]
            assert len(norms) > 1
            assert min(norms) > 1e-4


@pytest.mark.slow
def test_a_killed_rank_ends_all_with_75_and_the_retry_goes_on(plane: Path, tmp_path: Path) -> None:
    location, steps = "iter-00001/surrogate_update", "surrogate_update/1"
    root = untrained(plane, tmp_path / "run", location)
    mark = root / "checkpoints" / location / "step-000002" / "manifest.json"
    clock = time.monotonic()
    died = torchrun(2, WORKER, steps, "--", str(root), TDM_R1_TEST_DIE=f"1:{mark}")
    assert time.monotonic() - clock < 60
    assert "exitcode  : -9" in died.stderr
    assert "exitcode  : 75" in died.stderr, died.stderr
    assert not (root / location / "manifest.json").exists()
    assert mark.exists()
    before = content(root)
    again = [shutil.copytree(root, tmp_path / name) for name in ("one", "two")]
    stage(again[0], "surrogate_update", "--iteration", "1")
    require_close(plane / location, again[0] / location)
    arguments = ["stage", "surrogate_update", "--root", str(again[1]), "--iteration", "1"]
    done = started("-m", "tdm_r1", "launch", "--nproc-per-node", "2", *arguments)
    assert done.returncode == 0, done.stderr
    require_close(plane / location, again[1] / location)
    assert "no checkpoint" not in done.stderr
    for retried in again:
        assert not (retried / "checkpoints").exists() or not list((retried / "checkpoints").rglob("*.*"))
    assert differing(before, content(root)) == []


@pytest.mark.slow
def test_one_process_that_is_killed_goes_on_to_the_very_bytes(plane: Path, tmp_path: Path) -> None:
    location = TRAINED[1]
    root = untrained(plane, tmp_path / "run", location)
    mark = root / "checkpoints" / location / "step-000002" / "manifest.json"
    died = started(WORKER, "surrogate_update/1", "--", str(root), TDM_R1_TEST_DIE=f"0:{mark}")
    assert died.returncode == -signal.SIGKILL
    assert not (root / location / "manifest.json").exists()
    stage(root, "surrogate_update", "--iteration", "1")
    assert differing(content(plane), content(root)) == []


@pytest.mark.slow
def test_a_sharded_optimizer_is_the_whole_one_and_goes_on_from_its_gathered_state() -> None:
    done = torchrun(2, str(REPOSITORY / "tests" / "sharded_worker.py"))
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("as one process") == 18


@pytest.mark.parametrize(
    ("task", "size", "found"),
    [
        (Task("surrogate_update", 1), 9, "8 groups by surrogate.microbatch_groups=1 are 8 parts"),
        (Task("generator_update", 1), 5, "64 trajectories by generator.microbatch=16 are 4 parts"),
        (Task("distill_base"), 3, "distill.batch=16 is 4 trajectories"),
        (Task("rollout", 1, 1), 2, "one does it"),
    ],
)
def test_processes_that_cannot_share_the_work_are_refused(task: Task, size: int, found: str) -> None:
    config = resolve("plane", PLANE)
    with pytest.raises(ConfigError, match=re.escape(found)) as caught:
        require_fit(task, config, size)
    assert caught.value.hint
    if task.stage != "rollout":
        require_fit(task, config, 4)


def test_deepspeed_without_torchrun_is_refused_with_the_command() -> None:
    sharding = DistributedConfig(engine="deepspeed")
    with pytest.raises(ConfigError, match="no rank of torchrun") as caught:
        open_optimizer("r", {"a": torch.zeros(2)}, AdamConfig(learning_rate=0.1), {}, ALONE, sharding)
    assert "tdm-r1 launch" in (caught.value.hint or "")


def test_a_checkpoint_that_was_left_behind_is_no_fault_of_a_run(plane: Path, tmp_path: Path) -> None:
    root = shutil.copytree(plane, tmp_path / "run")
    left = root / "checkpoints" / TRAINED[1] / "step-000002"
    shutil.copytree(root / TRAINED[1], left)
    assert command("audit", "--root", str(root)) == 0
    (root / "elsewhere").mkdir()
    shutil.copytree(left, root / "elsewhere" / "step-000002")
    assert command("audit", "--root", str(root)) == 1
