"""The images are built, and a whole block runs with each stage in its own container."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from pipelines.compile import COMPILED
from pipelines.launchers import Containers
from pipelines.local import task_argvs
from tdm_r1.artifacts.manifest import Manifest
from tests.images.containers import (
    ANYBODY,
    LIMITS,
    NO_SHELL,
    PODMAN,
    ROOT,
    Image,
    build,
    built,
    podman,
    run,
)
from tests.s3 import BUCKET, Server
from tests.support import content, differing, tdm_r1

pytestmark = [pytest.mark.release, pytest.mark.slow, pytest.mark.timeout(2400)]

NAMES = ("train-cpu", "scorers", "tools")
PAGES = {"result.json", "report.html"}
"""Written beside the records by `tdm-r1 run` for people; a stage alone leaves them out."""


@pytest.fixture(scope="session")
def images() -> dict[str, Image]:
    return built(NAMES)


@pytest.fixture(scope="session")
def rebuilt(images: dict[str, Image]) -> Iterator[Future[Image]]:
    """`tools` built once more without a cache, while other tests use the other core."""
    del images  # must be there before
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(build, "tools", fresh=True)


def locked_versions(name: str) -> dict[str, str]:
    lines = (ROOT / "images" / name / "requirements.lock").read_text(encoding="utf-8").splitlines()
    return dict(line.split(" ")[0].split("==") for line in lines if line and line[0] not in " #")


def in_process(image: Image, root: Path) -> dict[str, str]:
    """Records of the run in one process: this one if it has the image's libraries, else one in the image."""
    numeric = ("torch", "diffusers", "transformers", "numpy", "pyarrow", "opencv-python-headless", "safetensors")
    if all(version(name) == locked_versions("train-cpu")[name] for name in numeric):
        assert tdm_r1("run", "--root", str(root), "--preset", "shapes_smoke") == 0
    else:
        root.mkdir()
        root.chmod(0o775)
        ended = run(image, "run", "--root", str(root), "--preset", "shapes_smoke", mounts=[root])
        assert ended.returncode == 0, ended.stderr
    return {name: digest for name, digest in content(root).items() if name not in PAGES}


def block(images: dict[str, Image]) -> dict[str, object]:
    """The compiled block with the references of the built images in it."""
    text = (COMPILED / "block.yaml").read_text(encoding="utf-8")
    ir: dict[str, object] = next(yaml.safe_load_all(text))
    for executor in ir["deploymentSpec"]["executors"].values():  # type: ignore[index]
        container = executor["container"]
        name = "scorers" if "/scorers:" in container["image"] else "train-cpu"
        container["image"] = images[name].reference
        container["env"] = [{"name": "TDM_R1_IMAGE_DIGEST", "value": images[name].reference.partition("@")[2]}]
    return ir


@pytest.fixture(scope="session")
def finished_block(images: dict[str, Image], rebuilt: Future[Image], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory after the block, with each of its tasks in a container of its own."""
    del rebuilt  # begins now, beside the block
    before = os.umask(0o002)  # the user of the containers has the group, not the UID, of this process
    folder = tmp_path_factory.mktemp("block")
    root, scratch = folder / "run", folder / "scratch"
    scratch.mkdir()
    assert tdm_r1("init", "--root", str(root), "--preset", "shapes_smoke") == 0
    launcher = Containers(engine=PODMAN, folders=[root, scratch], user=ANYBODY, options=[*LIMITS, *NO_SHELL])
    parameters = {"root": str(root), "start": 1, "shards": [0, 1]}
    ran = list(task_argvs(block(images), parameters, scratch=scratch, launcher=launcher))
    os.umask(before)
    assert {"tdm-r1", "python"} == {argv[0] for argv in ran}
    return root


def test_a_block_with_each_stage_in_its_own_container_ends_in_the_bytes_of_one_process(
    images: dict[str, Image], finished_block: Path, tmp_path: Path
) -> None:
    expected = in_process(images["train-cpu"], tmp_path / "run")
    found = content(finished_block)
    late = "iter-00000/evaluation/"  # `tdm-r1 run` measures the base as well; the block may leave it out
    assert [name for name in differing(expected, found) if not name.startswith(late)] == []
    assert sum(name.endswith("manifest.json") for name in found) >= 16


def test_each_manifest_names_the_image_that_made_it(images: dict[str, Image], finished_block: Path) -> None:
    made = {path: Manifest.from_bytes(path.read_bytes()) for path in finished_block.rglob("manifest.json")}
    for path, manifest in made.items():
        image = images["scorers" if "reward_scoring" in path.parts else "train-cpu"]
        assert manifest.provenance.image_digest == image.reference.partition("@")[2]
    assert len({manifest.provenance.image_digest for manifest in made.values()}) == 2


def test_the_tools_audit_and_query_a_run_in_s3(
    images: dict[str, Image], finished_block: Path, s3_server: Server
) -> None:
    root, client = s3_server.fresh_root(), s3_server.client()
    prefix = root.removeprefix(f"s3://{BUCKET}/")
    for path in finished_block.rglob("*"):
        if path.is_file():
            client.upload_file(str(path), BUCKET, f"{prefix}/{path.relative_to(finished_block).as_posix()}")
    there = {"network": "host", "environment": s3_server.environment}
    audited = run(images["tools"], "audit", "--root", root, **there)  # type: ignore[arg-type]
    assert audited.returncode == 0, audited.stdout + audited.stderr
    sql = "SELECT count(*) AS rows FROM rewards"
    counted = run(images["tools"], "query", "--root", root, "--json", sql, **there)  # type: ignore[arg-type]
    assert json.loads(counted.stdout) == [{"rows": 2 * 4 * 4}], counted.stderr


@pytest.mark.parametrize("name", NAMES)
def test_an_image_is_nobodys_read_only_and_says_what_it_is(name: str, images: dict[str, Image], tmp_path: Path) -> None:
    config = json.loads(podman("image", "inspect", images[name].reference))[0]["Config"]
    assert (config["User"], config["Entrypoint"]) == ("65532:0", ["tdm-r1"])
    labels = {key.removeprefix("org.opencontainers.image."): value for key, value in config["Labels"].items()}
    assert labels["title"] == f"tdm-r1/{name}"
    assert labels["version"] == version("tdm-r1")
    assert labels["base.digest"].startswith("sha256:")
    shown = run(images[name], "config", "show", "shapes_smoke")
    assert json.loads(shown.stdout)["preset"] == "shapes_smoke", shown.stderr
    refused = run(images[name], "init", "--root", "/opt/tdm-r1/run")
    assert refused.returncode != 0
    assert "Read-only file system" in refused.stderr


@pytest.mark.parametrize("name", NAMES)
def test_the_bill_of_materials_lists_exactly_the_lock_and_debian(name: str, images: dict[str, Image]) -> None:
    words = ("run", "--rm", "--network", "none", *LIMITS, "--entrypoint", "cat")
    text = podman(*words, images[name].reference, "/opt/tdm-r1/sbom.cdx.json")
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    purls = {component["purl"] for component in json.loads(text)["components"]}
    python = {purl.removeprefix("pkg:pypi/") for purl in purls if purl.startswith("pkg:pypi/")}
    expected = {f"{library}@{pin}".replace("+", "%2B") for library, pin in locked_versions(name).items()}
    assert python == expected | {f"tdm-r1@{version('tdm-r1')}"}
    assert any(purl.startswith("pkg:deb/debian/libc6@") for purl in purls)


def test_built_again_without_any_cache_the_image_is_the_same(images: dict[str, Image], rebuilt: Future[Image]) -> None:
    assert rebuilt.result().image_id == images["tools"].image_id


def test_a_lock_with_another_hash_is_refused(tmp_path: Path, images: dict[str, Image]) -> None:
    """The control of the locks: one digit is enough."""
    copy = tmp_path / "copy"
    for name in ("images", "src"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("*.whl", "__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, copy / name)
    lock = copy / "images/build/requirements.lock"
    text = lock.read_text(encoding="utf-8")
    for wheel in (ROOT / "images/wheelhouse").glob("*.whl"):
        if (digest := hashlib.sha256(wheel.read_bytes()).hexdigest()) in text:
            shutil.copy(wheel, copy / "images/wheelhouse")
            if wheel.name.startswith("hatchling-"):
                lock.write_text(
                    text.replace(digest, digest[:-1] + format(int(digest[-1], 16) ^ 1, "x")), encoding="utf-8"
                )
    assert lock.read_text(encoding="utf-8") != text
    words = ["build", "--isolation=chroot", "--pull=never", "--network=host", "--file", "images/scorers/Containerfile"]
    base = podman("image", "inspect", "--format", "{{.Id}}", "localhost/python-stand-in:3.11-bookworm")
    given = ["--build-arg", f"BASE={base}", "--build-arg", "PIP_ARGS=--no-index --find-links /wheels"]
    ended = subprocess.run([*PODMAN, *words, *given, "."], cwd=copy, capture_output=True, text=True, check=False)
    assert ended.returncode != 0
    assert "THESE PACKAGES DO NOT MATCH THE HASHES" in ended.stdout + ended.stderr
