"""Where a base's weights come from: found, fetched when they are elsewhere, and what they must be."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, Literal

from tdm_r1.artifacts.manifest import sha256_of
from tdm_r1.artifacts.seal import canonical_json
from tdm_r1.artifacts.store import open_store
from tdm_r1.config import ModelConfig
from tdm_r1.errors import ConfigError, TemporaryError

ASSETS = Path(__file__).parents[1] / "assets"
"""Weights that ship with the package."""
COMMIT: Final = re.compile(r"[0-9a-f]{40}")
DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
SUFFIXES: Final = (".json", ".safetensors", ".txt", ".model", ".jinja")
"""Files that make a model what it is; nothing pickled is among them."""

Kind = Literal["embedded", "hub", "s3", "folder"]


@dataclass(frozen=True)
class Source:
    """A base that lies here, and what is known of it."""

    address: str
    folder: Path
    revision: str
    """Commit of a hub source, or `sha256:` and the digest of the folder."""
    licence: str

    def facts(self) -> dict[str, str]:
        """For the provenance of every record."""
        return {"source": self.address, "revision": self.revision, "licence": self.licence}


def kind_of(address: str) -> Kind:
    """Which kind of address `model.source` is."""
    for kind in ("embedded", "hub", "s3"):
        if address.startswith(f"{kind}:"):
            return kind
    return "folder"


def open_source(config: ModelConfig) -> Source:
    """Find, or fetch, the base that a configuration names, and check that it is the one it pins.

    Raises:
        ConfigError: when it is not there, not pinned where it has to be, or not what is pinned.
        TemporaryError: when the hub cannot be reached.
    """
    folder = source_folder(config)
    if kind_of(config.source) == "hub":
        return Source(config.source, folder, config.revision, licence_of(folder))
    found = folder_digest(folder)
    if config.revision and config.revision != found:
        raise ConfigError(
            f"the base moved: `{config.source}` is now {found}, but model.revision is {config.revision}",
            hint="put the weights back, or start a new run with the revision that `tdm-r1 model` prints",
        )
    return Source(config.source, folder, found, licence_of(folder))


def source_folder(config: ModelConfig, *, fetch: bool = True) -> Path:
    """The folder of a base on this machine.

    Args:
        fetch: get it when it is elsewhere; otherwise one that is not here is refused.

    Raises:
        ConfigError: when there is no such folder, or the address is not pinned.
    """
    kind = kind_of(config.source)
    require_pinned(config)
    if kind == "hub":
        return hub_folder(config.source.removeprefix("hub:"), config.revision, fetch=fetch)
    if kind == "s3":
        return s3_folder(config.source, config.revision, fetch=fetch)
    folder = ASSETS / config.source.removeprefix("embedded:") if kind == "embedded" else Path(config.source)
    if not folder.is_dir():
        raise ConfigError(
            f"model.source is {config.source!r}, but `{folder}` is no folder",
            hint="give a local diffusers folder, hub:OWNER/NAME or s3://BUCKET/PREFIX, or train the embedded one with "
            "`tdm-r1 pretrain --world shapes`",
        )
    return folder


def require_pinned(config: ModelConfig) -> None:
    """Refuse an address whose content could be another one tomorrow, and a revision of the wrong form.

    Raises:
        ConfigError: with how to find the revision.
    """
    kind, revision = kind_of(config.source), config.revision
    if kind == "hub" and not COMMIT.fullmatch(revision):
        name = config.source.removeprefix("hub:")
        raise ConfigError(
            f"model.revision is {revision!r}, but a branch or tag of `{name}` can move: expected a commit",
            hint=f"`git ls-remote https://huggingface.co/{name}` lists the commits that its branches point to",
        )
    if kind == "s3" and not revision:
        raise ConfigError(
            f"model.source is {config.source!r} without model.revision, but objects can be overwritten",
            hint="print it with `tdm-r1 model FOLDER` on the folder that was uploaded",
        )
    if kind != "hub" and revision and not DIGEST.fullmatch(revision):
        raise ConfigError(
            f"model.revision is {revision!r}, but for {config.source!r} `sha256:` and 64 hex digits are expected",
            hint="print it with `tdm-r1 model FOLDER`",
        )


def model_files(folder: Path) -> list[Path]:
    """The files that make a model what it is, sorted; READMEs and pictures are not among them."""
    return sorted(path for path in folder.rglob("*") if path.suffix in SUFFIXES and path.is_file())


def folder_digest(folder: Path) -> str:
    """`sha256:` over the names and hashes of `model_files`; hashed once per process while sizes and times stay."""
    files = [(path.relative_to(folder).as_posix(), path.stat()) for path in model_files(folder)]
    return _digest(str(folder.resolve()), tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in files))


@lru_cache(maxsize=32)
def _digest(folder: str, files: tuple[tuple[str, int, int], ...]) -> str:
    hashes = {name: sha256_of(Path(folder) / name) for name, _, _ in files}
    return f"sha256:{sha256(canonical_json(hashes)).hexdigest()}"


def licence_of(folder: Path) -> str:
    """As the model card says, else the name of a licence file, else `unknown`."""
    stated = _card_metadata(folder / "README.md")
    if name := stated.get("license_name") or stated.get("license"):
        return str(name)
    files = sorted(path.name for path in folder.glob("LICEN[CS]E*"))
    return f"see {files[0]}" if files else "unknown"


def _card_metadata(card: Path) -> dict[str, Any]:
    """The YAML between the two lines `---` at the beginning of a model card; empty when there is none to read."""
    import yaml

    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    match = re.match(r"\s*---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(\r?\n|$)", text, re.DOTALL)
    try:
        found = yaml.safe_load(match[1]) if match else None
    except yaml.YAMLError:
        return {}
    return found if isinstance(found, dict) else {}


def hub_folder(name: str, commit: str, *, fetch: bool = True) -> Path:
    """The snapshot of a hub repository: its parts by `model_index.json`, or its adapters, as safetensors.

    Raises:
        ConfigError: when there is no such repository or commit, or it is gated.
        TemporaryError: when the hub cannot be reached and the snapshot is not in the cache.
    """
    import huggingface_hub as hub
    from huggingface_hub import errors

    def get(patterns: list[str]) -> Path:
        return Path(
            hub.snapshot_download(
                name,
                revision=commit,
                allow_patterns=patterns,
                ignore_patterns=["*.fp16.*", "*.fp16-*"],  # a second copy of the same weights
                local_files_only=not fetch,
            )
        )

    address = f"https://huggingface.co/{name}"
    try:
        folder = get(["model_index.json", "README.md", "LICEN*"])
        below = "*/*" if (folder / "model_index.json").is_file() else "*"  # a pipeline's parts, or an adapter
        return get([below + suffix for suffix in SUFFIXES])
    except errors.GatedRepoError as error:
        raise ConfigError(
            f"`{name}` asks to accept its licence first", hint=f"accept it on {address}, then set HF_TOKEN"
        ) from error
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.HFValidationError) as error:
        raise ConfigError(f"the hub has no `{name}` at {commit}", hint=f"look at {address}/commits") from error
    except errors.LocalEntryNotFoundError as error:
        if fetch and not hub.constants.HF_HUB_OFFLINE:
            raise TemporaryError(f"the hub cannot be reached for `{name}`", hint="try again") from error
        raise ConfigError(
            f"`{name}` at {commit} is not in the cache of this machine",
            hint=f"fetch it where there is a network: `hf download {name} --revision {commit}`",
        ) from error


def s3_folder(address: str, revision: str, *, fetch: bool = True) -> Path:
    """A prefix of an object store, copied into the cache once and kept under its digest.

    Raises:
        ConfigError: when what lies there is not what is pinned; then nothing is kept.
    """
    target = cache_folder() / revision.removeprefix("sha256:")
    if target.is_dir():
        return target
    if not fetch:
        raise ConfigError(f"`{address}` is not in the cache of this machine", hint="run a stage first: it fetches it")
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=target.parent, prefix=".fetch-"))
    try:
        store = open_store(address)
        for key in store.list(""):
            (scratch / key).parent.mkdir(parents=True, exist_ok=True)
            store.fetch(key, scratch / key)
        found = folder_digest(scratch)
        if found != revision:
            raise ConfigError(
                f"the base moved: `{address}` holds {found}, but model.revision is {revision}",
                hint="upload the weights that were meant, or pin those that lie there",
            )
        _keep(scratch, target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target


def _keep(scratch: Path, target: Path) -> None:
    """Rename into the cache; when another process was first, its copy has the same digest."""
    move: Callable[[Path], Any] = scratch.rename
    try:
        move(target)
    except OSError:
        if not target.is_dir():
            raise


def cache_folder() -> Path:
    """`$TDM_R1_CACHE`, else `tdm-r1` in the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tdm-r1"
    return Path(os.environ.get("TDM_R1_CACHE") or default)
