"""Claims about pictures that left a run: they say where they come from, and what they say is compared."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tdm_r1.artifacts.manifest import Manifest
from tdm_r1.artifacts.picture import read_png, write_png
from tests.support import tdm_r1
from tests.unit.damage import doctor

Capture = pytest.CaptureFixture[str]
PROMPTS = ["class 1", "class 2"]


def sample(root: Path, out: Path, *more: str) -> Path:
    words = [word for prompt in PROMPTS for word in ("--prompt", prompt)]
    assert tdm_r1("sample", "--root", str(root), "--out", str(out), "--count", "2", "--seed", "5", *words, *more) == 0
    return out


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def test_a_picture_carries_its_run_generator_prompts_and_seed(run: Path, tmp_path: Path) -> None:
    _, stamp = read_png(sample(run, tmp_path / "a.png", "--iteration", "1"))
    assert stamp is not None
    manifest = Manifest.from_bytes((run / "iter-00001/generator_update/manifest.json").read_bytes())
    assert (stamp.run, stamp.iteration, stamp.record) == (str(run), 1, manifest.digest)
    assert (stamp.prompts, stamp.count, stamp.seed) == (tuple(PROMPTS), 2, 5)
    assert stamp.config == manifest.config_digest


def test_the_same_sample_is_the_same_bytes(run: Path, tmp_path: Path) -> None:
    assert sample(run, tmp_path / "a.png").read_bytes() == sample(run, tmp_path / "b.png").read_bytes()


def test_a_picture_is_traced_to_everything_that_its_generator_was_made_from(
    run: Path, tmp_path: Path, capsys: Capture
) -> None:
    path = sample(run, tmp_path / "a.png", "--iteration", "1")
    capsys.readouterr()
    assert tdm_r1("lineage", str(path), "--json") == 0
    graph = json.loads(capsys.readouterr().out)
    assert graph["head"] == "iter-00001/generator_update"
    assert {"prompts", "base", "iter-00001/reward_scoring/shard-0000"} <= {n["location"] for n in graph["nodes"]}
    assert graph["weights"]["files"]
    assert graph["released"]["about"][1:] == [f"prompt {prompt!r}" for prompt in PROMPTS]
    assert tdm_r1("lineage", str(path)) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "2 images per prompt, seed 5" in shown
    assert "prompt 'class 2'" in shown


def repaint(path: Path, run: Path) -> str:
    picture, stamp = read_png(path)
    assert stamp is not None
    picture.putpixel((3, 3), (1, 2, 3))
    write_png(picture, path, stamp)
    return "pixels of"


def retrain(path: Path, run: Path) -> str:
    doctor(run, "iter-00002/generator_update", lambda body: body["files"]["state.safetensors"].update(size=1))
    return "was made from record"


@pytest.mark.parametrize("change", [repaint, retrain])
def test_a_picture_that_is_not_what_it_says_exits_1_and_says_why(
    change: Callable[[Path, Path], str], run: Path, tmp_path: Path, capsys: Capture
) -> None:
    path = sample(run, tmp_path / "a.png")
    said = change(path, run)
    capsys.readouterr()
    assert tdm_r1("lineage", str(path), "--json") == 1
    assert any(said in fault for fault in json.loads(capsys.readouterr().out)["faults"])


def test_a_run_that_moved_is_named_with_root(run: Path, tmp_path: Path, capsys: Capture) -> None:
    path = sample(run, tmp_path / "a.png")
    moved = run.rename(tmp_path / "moved")
    assert tdm_r1("lineage", str(path)) == 2
    assert tdm_r1("lineage", str(path), "--root", str(moved)) == 0


def test_a_picture_that_says_nothing_is_refused(tmp_path: Path, capsys: Capture) -> None:
    Image.new("RGB", (2, 2)).save(tmp_path / "x.png")
    assert tdm_r1("lineage", str(tmp_path / "x.png")) == 2
    assert "says nothing about its origin" in capsys.readouterr().err


@pytest.mark.parametrize("more", [[], ["no-such.png"], ["a.png", "--iteration", "1"]])
def test_arguments_that_name_neither_run_nor_file_are_refused(more: list[str], capsys: Capture) -> None:
    assert tdm_r1("lineage", *more) == 2
    assert "hint: " in capsys.readouterr().err
