"""A pipeline whose update pool has several processes starts them, and ends in the bytes of `tdm-r1 launch` by hand.

What is executed is the argv of the committed files for the profile `8xH100`, with two processes in place of eight.
"""

from __future__ import annotations

import copy
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.compile import COMPILED
from pipelines.ir import documents
from pipelines.local import task_argvs
from pipelines.local_argo import workflow_argvs
from tdm_r1.artifacts.repository import read_manifest
from tdm_r1.artifacts.store import open_store
from tdm_r1.drive.package import processes_in
from tests.support import TINY, content, differing, settings, tdm_r1

EIGHT = COMPILED / "8xH100"
UPDATES = ("surrogate_update", "generator_update")
SIZES = {**TINY, "iterations": 1, "surrogate.replay": 0, "generator.microbatch": 8}
"""Two parts of an optimizer step in each update."""


def two(node: Any) -> Any:
    """The same with two processes wherever there are eight."""
    if isinstance(node, list):
        before = ["", *node[:-1]]
        return ["2" if option == "--nproc-per-node" else two(word) for option, word in zip(before, node, strict=True)]
    return {key: two(value) for key, value in node.items()} if isinstance(node, Mapping) else node


def launch(words: Sequence[str]) -> int:
    """`tdm-r1 launch …` in processes of its own, which leave no temporary file behind."""
    paths = os.pathsep.join([str(COMPILED.parents[1]), str(COMPILED.parents[1] / "src")])
    command = [sys.executable, "-m", "tdm_r1", *words]
    with tempfile.TemporaryDirectory() as scratch:
        environment = {**os.environ, "PYTHONPATH": paths, "TMPDIR": scratch}
        code = subprocess.run(command, env=environment, check=False).returncode
        assert list(Path(scratch).iterdir()) == []
    return code


class Here:
    """Executes an argv: `launch` as it stands unless its record is there, everything else in this process."""

    def __init__(self, root: Path) -> None:
        self.root, self.launched = root, list[str]()

    def __call__(self, argv: Sequence[str]) -> int:
        words = list(argv[1:])
        stage = words[words.index("stage") + 1] if "stage" in words else ""
        place = self.root / ("base" if stage == "distill_base" else f"iter-00001/{stage}")
        if words[0] == "launch" and not (place / "manifest.json").exists():
            self.launched.append(" ".join(words[: words.index("--root")]))
            return launch(words)
        return tdm_r1(*(words[words.index("stage") :] if words[0] == "launch" else words))


@pytest.fixture(scope="module")
def by_hand(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one iteration whose updates were started by hand, each in two processes."""
    root = tmp_path_factory.mktemp("by_hand") / "run"
    at = ["--root", str(root)]
    assert tdm_r1("init", *at, "--preset", "plane", *settings(SIZES)) == 0
    plain = [["encode_prompts"], ["distill_base"], ["evaluation", "--iteration", "0"]]
    plain += [[stage, "--iteration", "1", "--shard", s] for s in "01" for stage in ("rollout", "reward_scoring")]
    for words in plain:
        assert tdm_r1("stage", *words, *at) == 0
    for stage in UPDATES:
        assert launch(["launch", "--nproc-per-node", "2", "stage", stage, "--iteration", "1", *at]) == 0
    assert tdm_r1("stage", "evaluation", "--iteration", "1", *at) == 0
    return root


def without(finished: Path, root: Path, *stages: str) -> Path:
    shutil.copytree(finished, root)
    for stage in stages:
        shutil.rmtree(root / "iter-00001" / stage)
    return root


def require_same(by_hand: Path, root: Path) -> None:
    assert differing(content(by_hand), content(root)) == []
    for stage in UPDATES:
        manifest = read_manifest(open_store(str(root)), f"iter-00001/{stage}")
        assert manifest is not None
        assert manifest.provenance.device == "cpu, 2 processes"


def test_the_files_of_a_node_of_eight_start_every_training_stage_in_eight_processes() -> None:
    for name in ("block", "argo_loop"):
        found = processes_in(next(yaml.safe_load_all((EIGHT / f"{name}.yaml").read_text())))
        assert found == {"distill_base": 8, "surrogate_update": 8, "generator_update": 8}, name
        assert processes_in(next(yaml.safe_load_all((COMPILED / f"{name}.yaml").read_text()))) == {}


@pytest.mark.slow
def test_a_block_of_kfp_ends_in_the_bytes_of_launch_by_hand(by_hand: Path, tmp_path: Path) -> None:
    root = without(by_hand, tmp_path / "run", *UPDATES, "evaluation")
    here = Here(root)
    ir = two(copy.deepcopy(documents((EIGHT / "block.yaml").read_text())[0]))
    given = {"root": str(root), "start": 1, "shards": [0, 1]}
    list(task_argvs(ir, given, scratch=tmp_path / "scratch", launcher=lambda _, argv: here(argv)))
    assert here.launched == [f"launch --nproc-per-node 2 stage {stage}" for stage in UPDATES]
    require_same(by_hand, root)


@pytest.mark.slow
def test_a_workflow_of_argo_ends_in_the_bytes_of_launch_by_hand(by_hand: Path, tmp_path: Path) -> None:
    root = without(by_hand, tmp_path / "run", "generator_update", "evaluation")
    here = Here(root)
    workflow = two(yaml.safe_load((EIGHT / "argo_loop.yaml").read_text()))
    given = {"root": str(root), "shards": "[0, 1]"}
    programs = {"tdm-r1": ["tdm-r1"]}
    list(workflow_argvs(workflow, given, scratch=tmp_path / "scratch", programs=programs, execute=here))
    assert here.launched == ["launch --nproc-per-node 2 stage generator_update"]
    require_same(by_hand, root)
