"""The master test: however a run is executed, and however often it dies, the same bytes are committed.

The run in the plane has rewards that differ inside a group, so every branch of the updates is taken;
the run in the world `shapes` has random weights, and covers diffusers' loading and its modules.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from pipelines.compile import COMPILED
from pipelines.local import task_argvs
from pipelines.local_argo import workflow_argvs
from tests.faults.preloaded import Starter, preloaded
from tests.forked import Forked, all_but_the_last
from tests.support import content, differing, plane_run, settings, tdm_r1, tree

pytestmark = pytest.mark.slow

DIFFUSERS = ("diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3", "tdm_r1.models.sd3", "cv2")
"""What a stage in the world `shapes` imports beside."""

PAGES = {"result.json", "report.html"}
"""Written beside the records by `tdm-r1 run` for people; a stage alone leaves them out."""


def records(root: Path) -> dict[str, str]:
    return {name: digest for name, digest in content(root).items() if name not in PAGES}


@pytest.fixture(scope="module")
def expected(finished: Path) -> dict[str, str]:
    found = records(finished)
    assert sum(name.endswith("manifest.json") for name in found) == 17
    return found


def test_running_it_again_in_the_same_process_gives_the_same_bytes(
    expected: dict[str, str], finished: Path, tmp_path: Path
) -> None:
    assert tdm_r1(*plane_run(tmp_path / "run")) == 0
    assert differing(expected, records(tmp_path / "run")) == []
    assert differing(content(finished), content(tmp_path / "run")) == []


def test_another_seed_gives_other_bytes_everywhere_but_in_the_prompts(expected: dict[str, str], tmp_path: Path) -> None:
    """The control: the comparison can fail."""
    assert tdm_r1(*plane_run(tmp_path / "run", seed=1)) == 0
    same = set(expected) - set(differing(expected, records(tmp_path / "run")))
    assert {name for name in same if name.endswith((".safetensors", "part.parquet"))} == {
        "prompts/embeddings.safetensors"
    }


def test_one_process_per_stage_gives_the_same_bytes(expected: dict[str, str], tmp_path: Path) -> None:
    assert tdm_r1(*plane_run(tmp_path / "run"), "--isolate") == 0
    assert differing(expected, records(tmp_path / "run")) == []


def killed(root: Path, files: int) -> None:
    """Start or resume the run in its own process, and kill it as soon as so many files are there."""
    command = [sys.executable, "-m", "tdm_r1", *plane_run(root)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and (not root.exists() or sum(path.is_file() for path in root.rglob("*")) < files):
        time.sleep(0.001)
    process.kill()
    assert process.wait() == -signal.SIGKILL, "the run ended before it was killed"


@pytest.mark.parametrize("seed", [0])
def test_a_run_that_is_killed_again_and_again_ends_in_the_same_bytes(
    seed: int, expected: dict[str, str], tmp_path: Path
) -> None:
    root = tmp_path / "run"
    points = sorted(random.Random(seed).sample(range(4, len(expected) - 4), 3))
    for files in points:
        killed(root, files)
        partial = records(root)
        assert 0 < len(partial) < len(expected)
    assert tdm_r1("run", "--root", str(root)) == 0
    assert differing(expected, records(root)) == []


def test_a_run_that_died_between_its_files_and_its_manifest_ends_in_the_same_bytes(
    finished: Path, expected: dict[str, str], tmp_path: Path
) -> None:
    root = Path(shutil.copytree(finished, tmp_path / "run"))
    for name in ("iter-00002/surrogate_update", "iter-00002/generator_update", "iter-00002/evaluation"):
        (root / name / "manifest.json").unlink()
    torn = root / "iter-00002/generator_update"
    (torn / "state.safetensors").unlink()
    (torn / ".state.safetensors.0123.tmp").write_bytes(b"half of it")
    assert tdm_r1("run", "--root", str(root)) == 0
    assert differing(expected, records(root)) == []


def here(argv: Sequence[str]) -> int:
    """Exit code of a container's own argv, in this process."""
    assert argv[0] == "tdm-r1"
    return tdm_r1(*argv[1:])


def test_the_compiled_kfp_block_gives_the_same_bytes_and_stops_at_the_end(
    expected: dict[str, str], starter: Starter, tmp_path: Path
) -> None:
    root = tmp_path / "run"
    assert tdm_r1("init", *plane_run(root)[1:]) == 0
    ir = next(yaml.safe_load_all((COMPILED / "block.yaml").read_text(encoding="utf-8")))
    parameters = {"root": str(root), "start": 1, "shards": [0, 1]}
    ran = list(task_argvs(ir, parameters, scratch=tmp_path / "scratch", launcher=Forked(starter)))
    # 3 stages once, 2 iterations of 2 · 2 + 3 stages, then 3 iterations that pass the end of the loop on
    assert [argv[0] for argv in ran] == ["tdm-r1"] * (3 + 2 * 7) + ["python"] * 3
    assert differing(expected, records(root)) == []


def test_the_argo_workflow_gives_the_same_bytes_and_ends_by_itself(expected: dict[str, str], tmp_path: Path) -> None:
    root = tmp_path / "run"
    assert tdm_r1("init", *plane_run(root)[1:]) == 0
    workflow = yaml.safe_load((COMPILED / "argo_loop.yaml").read_text(encoding="utf-8"))
    parameters = {"root": str(root), "shards": "[0, 1]"}
    ran = list(workflow_argvs(workflow, parameters, scratch=tmp_path / "scratch", programs={}, execute=here))
    # 3 stages once, then thrice the question what is next: 1, 2, none
    assert len(ran) == 3 + 2 * (1 + 7) + 1
    assert differing(expected, records(root)) == []


def test_the_kfp_loop_finishes_a_run_that_was_cut_and_gives_the_same_bytes(
    finished: Path, expected: dict[str, str], tmp_path: Path
) -> None:
    root = Path(shutil.copytree(finished, tmp_path / "run"))
    shutil.rmtree(root / "iter-00002")
    (root / "iter-00001/evaluation/manifest.json").unlink()
    ir = next(yaml.safe_load_all((COMPILED / "loop.yaml").read_text(encoding="utf-8")))
    given = {"root": str(root), "shards": [0, 1]}
    ran = list(task_argvs(ir, given, scratch=tmp_path / "scratch", launcher=lambda _, argv: here(argv)))
    assert len(ran) == 3 + 1 + 2 * (1 + 7)
    assert differing(expected, records(root)) == []


def test_a_whole_number_that_kfp_delivers_as_a_float_commits_the_same_record(
    finished: Path, expected: dict[str, str], tmp_path: Path
) -> None:
    root = Path(shutil.copytree(finished, tmp_path / "run"))
    shutil.rmtree(root / "iter-00002/rollout/shard-0001")
    options = ["--iteration", "1.0", "--offset", "1.0", "--shard", "1.0"]
    assert tdm_r1("stage", "rollout", "--root", str(root), *options) == 0
    assert differing(expected, records(root)) == []


def test_a_stop_file_ends_the_run_between_iterations_and_its_removal_goes_on(
    finished: Path, expected: dict[str, str], tmp_path: Path
) -> None:
    root = Path(shutil.copytree(finished, tmp_path / "run"))
    shutil.rmtree(root / "iter-00001/evaluation")
    shutil.rmtree(root / "iter-00002")
    (root / "STOP").touch()
    assert tdm_r1("run", "--root", str(root)) == 0
    assert not any(name.startswith("iter-00002/") for name in tree(root))
    (root / "STOP").unlink()
    assert tdm_r1("run", "--root", str(root)) == 0
    assert differing(expected, records(root)) == []


def test_in_the_world_shapes_one_process_per_stage_gives_the_same_bytes(pipeline: Path, tmp_path: Path) -> None:
    """All but the last stage are forked with diffusers imported; each opens its weights itself."""
    knobs = {
        "model.source": pipeline,
        "iterations": 1,
        "rollout.shards": 1,
        "distill.steps": 1,
        "evaluation.teacher_steps": 1,
        "evaluation.prompts": 6,
    }
    whole, cut = str(tmp_path / "whole"), str(tmp_path / "cut")
    assert tdm_r1("run", "--root", whole, "--preset", "shapes_smoke", *settings(knobs)) == 0
    assert tdm_r1("init", "--root", cut, "--preset", "shapes_smoke", *settings(knobs)) == 0
    with preloaded(tmp_path, os.environ, *DIFFUSERS) as starter:
        all_but_the_last(cut, starter)
    assert tdm_r1("run", "--root", cut, "--isolate") == 0
    assert differing(content(tmp_path / "whole"), content(tmp_path / "cut")) == []
