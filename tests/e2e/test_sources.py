"""Where weights come from: pinned, verified, safetensors only; what is not what was meant is refused before work."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tdm_r1.artifacts.repository import read_manifest
from tdm_r1.artifacts.store import open_store
from tdm_r1.config import ModelConfig, NumericsConfig
from tdm_r1.errors import ConfigError
from tdm_r1.models.sources import ASSETS, folder_digest, licence_of, open_source, source_folder
from tdm_r1.runtime.numerics import apply, require_dtype
from tests.hub import Hub, serving
from tests.s3 import BUCKET, Server
from tests.support import plane_run, tdm_r1

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def model(source: object, revision: str = "") -> ModelConfig:
    return ModelConfig(source=str(source), revision=revision, backbone="plane")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """The embedded network of the plane, as a folder of one's own."""
    return Path(shutil.copytree(ASSETS / "plane", tmp_path / "base"))


def change(base: Path) -> None:
    """One bit of one weight."""
    weights = base / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))


def test_a_base_is_known_by_its_content_and_names_its_licence(base: Path) -> None:
    found = open_source(model("embedded:shapes"))
    assert found.licence == "apache-2.0"
    assert found.revision == folder_digest(ASSETS / "shapes")
    before = folder_digest(base)
    (base / "README.md").write_text("---\nlicense: other\nlicense_name: acme-community\n---\n# ours\n")
    assert licence_of(base) == "acme-community"
    assert folder_digest(base) == before
    change(base)
    assert folder_digest(base) != before


def test_without_a_card_the_licence_is_that_of_a_file_or_unknown(tmp_path: Path) -> None:
    assert licence_of(tmp_path) == "unknown"
    (tmp_path / "LICENSE.md").touch()
    assert licence_of(tmp_path) == "see LICENSE.md"


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlicense: mit\n---\n", "mit"),
        ("---\r\nlicense: mit\r\n---\r\n# ours\r\n", "mit"),
        ("---\nlicense: mit\ntags: [a, b]\n---", "mit"),
        ("# ours\n---\nlicense: mit\n---\n", "unknown"),
        ("---\nlicense: [\n---\n", "unknown"),
        ("---\nmit\n---\n", "unknown"),
    ],
)
def test_the_licence_is_what_the_head_of_the_card_says(card: str, licence: str, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_bytes(card.encode())
    assert licence_of(tmp_path) == licence


def test_a_run_on_a_pinned_base_records_its_revision_and_licence(base: Path, tmp_path: Path) -> None:
    pin = folder_digest(base)
    root = tmp_path / "run"
    assert tdm_r1(*plane_run(root, model__source=base, model__revision=pin, iterations=1)) == 0
    store = open_store(str(root))
    facts = {"source": str(base), "revision": pin, "licence": licence_of(base)}
    for location in ("base", "prompts", "iter-00001/rollout/shard-0000"):
        manifest = read_manifest(store, location)
        assert manifest is not None
        assert manifest.provenance.base == facts
    scored = read_manifest(store, "iter-00001/reward_scoring/shard-0000")
    assert scored is not None
    assert scored.provenance.base is None  # it needs no base, so a scoring pod need not have it


def test_a_base_that_moved_is_refused_before_any_work_and_in_the_middle_of_a_run(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pin = folder_digest(base)
    root = tmp_path / "run"
    assert tdm_r1("init", *plane_run(root, model__source=base, model__revision=pin)[1:]) == 0
    assert tdm_r1("stage", "encode_prompts", "--root", str(root)) == 0
    change(base)
    assert tdm_r1("stage", "distill_base", "--root", str(root)) == 2
    assert "the base moved" in capsys.readouterr().err
    assert not (root / "base").exists()
    other = tmp_path / "other"
    assert tdm_r1(*plane_run(other, model__source=base, model__revision=pin)) == 2
    assert not other.exists() or not list(other.rglob("*.json"))


@pytest.mark.parametrize(
    ("source", "revision", "message", "hint"),
    [
        ("hub:acme/tiny", "main", "can move", "git ls-remote"),
        ("hub:acme/tiny", "", "can move", "git ls-remote"),
        ("s3://bucket/tiny", "", "can be overwritten", "tdm-r1 model"),
        ("embedded:plane", COMMIT, "`sha256:`", "tdm-r1 model"),
        ("no/such/folder", "", "is no folder", "hub:OWNER/NAME"),
    ],
)
def test_what_is_not_pinned_or_not_there_is_refused_with_what_to_do(
    source: str, revision: str, message: str, hint: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        source_folder(model(source, revision))
    assert message in caught.value.message
    assert hint in (caught.value.hint or "")


ASK = """
import sys
from tdm_r1.config import ModelConfig, NumericsConfig
from tdm_r1.errors import TdmR1Error
from tdm_r1.models.sources import open_source
for address in sys.argv[1:]:
    name, _, commit = address.partition("@")
    try:
        found = open_source(ModelConfig(source=name, revision=commit))
        print("found", found.licence, len(list(found.folder.rglob("*.safetensors"))))
    except TdmR1Error as error:
        print(error.exit_code, error.hint)
"""


def asked(hub: Hub, home: Path, *addresses: str, offline: bool = False) -> list[str]:
    """One line for each address, from a process of its own: the hub's library reads its settings once."""
    settings = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": ""}
    settings |= {"HF_HUB_OFFLINE": "1"} if offline else {}
    command = [sys.executable, "-c", ASK, *addresses]
    return subprocess.run(
        command, env={**os.environ, **settings}, capture_output=True, text=True, check=True
    ).stdout.splitlines()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """What a repository on the hub looks like: parts, and much that must not be fetched."""
    folder = tmp_path / "repository"
    wanted = ["model_index.json", "transformer/config.json", "transformer/diffusion_pytorch_model.safetensors"]
    refused = ["whole.safetensors", "text_encoder/model.fp16.safetensors", "text_encoder/pytorch_model.bin", "demo.png"]
    for name in [*wanted, *refused]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f'{{"name": "{name}"}}')  # equal files are one blob in the cache
    (folder / "README.md").write_text("---\nlicense: other\nlicense_name: acme-community\n---\n")
    return folder


def test_a_hub_source_fetches_its_parts_as_safetensors_once_and_every_refusal_says_what_to_do(
    repository: Path, tmp_path: Path
) -> None:
    with serving(Hub(repository, "acme/tiny", COMMIT)) as hub:
        addresses = [f"hub:acme/tiny@{COMMIT}", f"hub:acme/tiny@{'f' * 40}", f"hub:acme/gated@{COMMIT}"]
        first, other, gated = asked(hub, tmp_path / "home", *addresses)
        assert first == "found acme-community 1"
        assert other.startswith("2 look at https://huggingface.co/acme/tiny/commits")
        assert gated.startswith("2 accept it on")
        assert "HF_TOKEN" in gated
        assert sorted(hub.fetched) == [
            "README.md", "model_index.json", "transformer/config.json",
            "transformer/diffusion_pytorch_model.safetensors",
        ]  # fmt: skip
        hub.fetched.clear()
        again, nowhere = asked(hub, tmp_path / "home", addresses[0], f"hub:acme/none@{COMMIT}", offline=True)
        assert again == first
        assert nowhere.startswith("2 fetch it where there is a network: `hf download acme/none")
        assert not hub.fetched


def test_a_prefix_of_an_object_store_is_verified_cached_and_refused_when_it_moved(
    base: Path, s3_server: Server, s3_root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TDM_R1_CACHE", str(tmp_path / "cache"))
    address, client = s3_root.removesuffix("/run") + "/base", s3_server.client()
    keys = {path: f"{address.removeprefix(f's3://{BUCKET}/')}/{path.name}" for path in base.iterdir()}
    for path, key in keys.items():
        client.put_object(Bucket=BUCKET, Key=key, Body=path.read_bytes())
    pin = folder_digest(base)
    first = open_source(model(address, pin))
    assert first.folder.is_relative_to(tmp_path / "cache")
    assert folder_digest(first.folder) == first.revision == pin
    change(base)
    client.put_object(
        Bucket=BUCKET, Key=keys[base / "model.safetensors"], Body=(base / "model.safetensors").read_bytes()
    )
    assert open_source(model(address, pin)).folder == first.folder  # what is pinned is still here
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(ConfigError, match=r"the base moved[\s\S]*pin those that lie there"):
        open_source(model(address, pin))
    assert not list((tmp_path / "cache").iterdir())


def test_a_dtype_that_the_device_lacks_is_refused() -> None:
    for dtype in ("float32", "bfloat16"):
        require_dtype("cpu", dtype)
    with pytest.raises(ConfigError, match=r"`float8_e4m3fn`, but the device `cpu`[\s\S]*model\.dtype=float32"):
        require_dtype("cpu", "float8_e4m3fn")


def test_cublas_is_told_its_workspace_before_the_first_product_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Older versions of torch refuse every deterministic product without it; nothing is asked of a GPU here."""
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    threads = torch.get_num_threads()
    apply(NumericsConfig(threads=threads))
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    apply(NumericsConfig(threads=threads, device="cuda"))
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    apply(NumericsConfig(threads=threads, device="cuda"))
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"


def test_a_run_in_float16_is_refused_before_any_work_for_its_gradients_would_vanish(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ("--preset", "shapes_smoke", "--set", "model.dtype=float16")
    for arguments in (("init", "--root", str(tmp_path / "run")), ("run", "--dry-run")):
        assert tdm_r1(*arguments, *asked) == 2
        said = " ".join(capsys.readouterr().err.split())
        assert "gradients of a training stage round to 0" in said
        assert "model.dtype=bfloat16" in said
    assert not (tmp_path / "run" / "run.json").exists()
