"""What the images are made of, without building one: Containerfiles, requirements, locks, words for the engine."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from images import pins
from images.build import IMAGES, pinned_base
from images.engine import Engine, ImageError, find_engine
from images.locks import CUDA
from images.wheelhouse import requirements
from pipelines.launchers import Containers

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "images"
CLOSURES = sorted(file.parent.name for file in FOLDER.glob("*/requirements.in"))
DIGEST = "sha256:" + "0123456789abcdef" * 4


def declared(name: str) -> list[Requirement]:
    """The requirements of a closure, those of the files that it includes first."""
    found = []
    for line in (FOLDER / name / "requirements.in").read_text(encoding="utf-8").splitlines():
        if line.startswith("-r ../"):
            found += declared(line.split("/")[1])
        elif line and not line.startswith("#"):
            found.append(Requirement(line))
    return found


def locked(name: str) -> dict[str, tuple[str, set[str]]]:
    """Version and hashes by name."""
    text = (FOLDER / name / "requirements.lock").read_text(encoding="utf-8")
    pins_ = re.findall(r"^([a-z0-9-]+)==(\S+) \\\n((?:    --hash=\S+(?: \\)?\n)+)", text, re.MULTILINE)
    assert len(pins_) == len(re.findall(r"^[^ #\n]", text, re.MULTILINE)), "a line of the lock is no pin with hashes"
    return {pin: (version, set(re.findall(r"sha256:[0-9a-f]{64}", hashes))) for pin, version, hashes in pins_}


def package_requirements() -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [
        line
        for extra in ("s3", "audit", "geneval", "ocr", "preference", "nsfw")
        for line in project["optional-dependencies"][extra]
    ]
    return {str(Requirement(line)) for line in [*project["dependencies"], *extras]}


def test_there_is_an_image_for_each_dependency_closure() -> None:
    assert IMAGES == ("scorers", "tools", "train", "train-cpu")
    assert set(CLOSURES) == {*IMAGES, "build", "torch-cpu"}


@pytest.mark.parametrize("name", [name for name in CLOSURES if name != "build"])
def test_an_image_asks_for_nothing_that_the_package_does_not_declare(name: str) -> None:
    wanted = {str(requirement) for requirement in declared(name) if requirement.name != "torch"}
    assert wanted <= package_requirements()


@pytest.mark.parametrize("name", ["train", "train-cpu"])
def test_a_training_image_holds_every_dependency_of_the_package(name: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = {Requirement(line).name for line in [*project["dependencies"], *project["optional-dependencies"]["s3"]]}
    assert wanted == {requirement.name for requirement in declared(name)}


@pytest.mark.parametrize("name", CLOSURES)
def test_a_lock_satisfies_what_was_asked_for_and_hashes_every_file(name: str) -> None:
    lock = locked(name)
    for requirement in declared(name):
        version, hashes = lock[requirement.name]
        assert requirement.specifier.contains(version)
        assert hashes
    text = (FOLDER / name / "requirements.lock").read_text(encoding="utf-8")
    assert not re.search(r"^\s*--(?!hash)|file:|://|/opt/", text, re.MULTILINE), "a lock names no place"


@pytest.mark.parametrize("name", [name for name in IMAGES if name != CUDA])
def test_the_shared_layer_is_part_of_the_lock_of_each_cpu_image(name: str) -> None:
    shared, lock = locked("torch-cpu"), locked(name)
    assert {key: lock.get(key) for key in shared} == shared
    assert lock["torch"][0].endswith("+cpu")


def test_only_the_gpu_image_holds_cuda() -> None:
    holding = {name for name in CLOSURES if any(library.startswith("nvidia-") for library in locked(name))}
    assert holding == {CUDA}


def test_the_containerfiles_of_the_cpu_images_differ_in_their_first_two_lines_only() -> None:
    texts = [(FOLDER / name / "Containerfile").read_text(encoding="utf-8") for name in IMAGES if name != CUDA]
    assert len({text.split("\n", 2)[2] for text in texts}) == 1
    assert len({text.split("\n", 2)[1] for text in texts}) == 3


@pytest.mark.parametrize("name", IMAGES)
def test_a_containerfile_takes_the_base_of_the_pins_unless_told_otherwise(name: str) -> None:
    text = (FOLDER / name / "Containerfile").read_text(encoding="utf-8")
    base = tomllib.loads((FOLDER / "pins.toml").read_text(encoding="utf-8"))["base"]
    assert f"ARG BASE={base['name']}\n" in text
    assert re.findall(r"^FROM (\S+)", text, re.MULTILINE) == ["${BASE}", "${BASE}", "libraries", "libraries"]
    assert re.search(r"^USER 65532:0$", text, re.MULTILINE)


def test_each_pin_is_downloaded_once_and_each_version_of_a_library() -> None:
    texts = [(FOLDER / name / "requirements.lock").read_text(encoding="utf-8") for name in CLOSURES]
    first, *others = requirements(texts)
    assert len(others) == 1, "only the torch of the GPU image and what comes with it differ"
    found = re.findall(r"^([a-z0-9-]+==\S+) ", first + others[0], re.MULTILINE)
    assert sorted(found) == sorted(
        {f"{pin}=={version}" for name in CLOSURES for pin, (version, _) in locked(name).items()}
    )
    assert (first + others[0]).count("--hash=") == len({h for text in texts for h in re.findall(r"--hash=\S+", text)})


def program(folder: Path, name: str, text: str) -> None:
    """Put an executable on the PATH that answers with a text."""
    file = folder / name
    file.write_text(f"#!/bin/sh\nprintf '%s' '{text}'\n")
    file.chmod(0o755)


def test_a_pin_is_written_in_place_and_then_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (FOLDER / "pins.toml").read_text(encoding="utf-8")
    (tmp_path / "pins.toml").write_text(before, encoding="utf-8")
    program(tmp_path, "skopeo", DIGEST)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(pins, "PINS", tmp_path / "pins.toml")
    monkeypatch.setattr("images.build.FOLDER", tmp_path)
    assert pins.main() == 0
    assert pinned_base() == f"docker.io/library/python:3.11-slim-bookworm@{DIGEST}"
    after = (tmp_path / "pins.toml").read_text(encoding="utf-8")
    assert [a for a, b in zip(before.splitlines(), after.splitlines(), strict=True) if a != b] == ['digest = ""']


def test_an_answer_that_is_no_digest_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path, "skopeo", "manifest unknown")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(SystemExit, match="told no digest"):
        pins.registry_digest("docker.io/library/python:3.11-slim-bookworm")


def test_an_image_on_a_base_without_a_digest_is_not_pushed() -> None:
    command = [sys.executable, "-m", "images.build", "--push", "--base", "python:3.11", "tools"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert "has no digest" in ended.stderr or "found none of" in ended.stderr


def test_a_missing_engine_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ImageError, match="found none of docker, podman, buildah"):
        find_engine(None)
    assert Engine("podman").digest(f"python@{DIGEST}") == DIGEST


def test_a_task_in_a_container_gets_the_environment_of_the_pipeline_and_its_own_program() -> None:
    launcher = Containers(engine=("docker",), folders=[Path("/a")], network="host", user="7:0", environment={"B": "2"})
    container = {"image": f"r/train@{DIGEST}", "env": [{"name": "A", "value": "1"}]}
    words = launcher.command(container, ["tdm-r1", "stage", "rollout"])
    assert words[-5:] == ["--entrypoint", "tdm-r1", f"r/train@{DIGEST}", "stage", "rollout"]
    text = " ".join(words)
    for part in ("--network host", "--user 7:0", "--volume /a:/a", "--env A=1 --env B=2"):
        assert part in text
    assert "--read-only --tmpfs /tmp --cap-drop all --security-opt no-new-privileges" in text


def test_a_pipeline_compiled_with_pinned_images_hands_their_digests_to_the_tasks(tmp_path: Path) -> None:
    scorers = DIGEST[::-1][:64].rjust(64, "0")
    environment = {"TDM_R1_IMAGE": f"r/train@{DIGEST}", "TDM_R1_SCORER_IMAGE": f"r/scorers@sha256:{scorers}"}
    command = [sys.executable, "-m", "pipelines.compile", "--out", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, env=os.environ | environment, check=True)
    code = "import sys, json, yaml; print(json.dumps(next(yaml.safe_load_all(open(sys.argv[1])))))"
    text = subprocess.run([sys.executable, "-c", code, str(tmp_path / "block.yaml")], capture_output=True, check=True)
    executors: dict[str, Any] = json.loads(text.stdout)["deploymentSpec"]["executors"]
    for executor in executors.values():
        container = executor["container"]
        assert {"name": "TDM_R1_IMAGE_DIGEST", "value": container["image"].partition("@")[2]} in container["env"]
