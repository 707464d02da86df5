"""The files of one record, as an audit measures them again: size, hash, and what they hold."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tdm_r1.artifacts.blocks import Hashes, hash_file
from tdm_r1.artifacts.manifest import FileEntry, Manifest
from tdm_r1.artifacts.records import RECORDS
from tdm_r1.artifacts.store import Store
from tdm_r1.errors import ArtifactError
from tdm_r1.runtime.audit_faults import Fault


@dataclass(frozen=True)
class Files:
    """What a manifest says that there is, and a folder to fetch it to."""

    store: Store
    keys: frozenset[str]
    """That were listed."""
    location: str
    manifest: Manifest
    folder: Path

    def key(self, name: str) -> str:
        return f"{self.location}/{self.manifest.files[name].stored_as}"

    def size(self) -> int:
        """Bytes that were fetched."""
        return sum(path.stat().st_size for path in self.folder.iterdir() if path.exists())


def check_files(files: Files, dropped: set[str], *, load: bool, pixels: bool) -> list[Fault]:
    """Fetch every file and compare it with the manifest; with `load`, then read what they hold.

    Reading a file of tensors once, to hash it and look at it, is no faster: ADR 0027.

    Args:
        dropped: names of files that a tombstone vouches for; such a record is not read.
        pixels: also decompress the pictures in it.
    """
    checked = (check_file(files, name) for name in files.manifest.files if name not in dropped)
    faults = [fault for fault in checked if fault is not None]
    return faults if faults or dropped or not load else check_content(files, pixels=pixels)


def check_file(files: Files, name: str) -> Fault | None:
    """Fetch one file; its size and hash are what the manifest says, or there is a fault."""
    key, entry, local = files.key(name), files.manifest.files[name], files.folder / name
    if key not in files.keys and not files.store.exists(key):  # a stage may have committed it after the listing
        return Fault("missing", key, "no file", f"{entry.size:,} bytes with sha256 {entry.sha256}")
    try:
        files.store.fetch(key, local)
        size = local.stat().st_size
        found = hash_file(local, blocks=entry.blocks is not None) if size == entry.size else Hashes("", None)
    except (ArtifactError, OSError) as error:
        return Fault("missing", key, f"it cannot be read: {first_line(str(error))}", f"{entry.size:,} bytes")
    if size != entry.size:
        return Fault("size", key, f"{size:,} bytes", f"{entry.size:,} bytes")
    return hash_fault(key, found, entry)


def hash_fault(key: str, found: Hashes, entry: FileEntry) -> Fault | None:
    """Bytes that are not those of the manifest, or hashes of blocks in it that are not those of its bytes."""
    if found.sha256 != entry.sha256:
        return Fault("hash", key, f"sha256 {found.sha256}", f"sha256 {entry.sha256}")
    pairs = enumerate(zip(found.blocks or (), entry.blocks or (), strict=True))
    wrong = next(((number, ours, said) for number, (ours, said) in pairs if ours != said), None)
    if wrong is None:
        return None
    return Fault("hash", key, f"block {wrong[0]} with sha256 {wrong[1]}", f"sha256 {wrong[2]} of this block")


def check_content(files: Files, *, pixels: bool) -> list[Fault]:
    """Read the record piece by piece, so that it checks its columns, dtypes, shapes and values, and its rows."""
    manifest = files.manifest
    try:
        rows = RECORDS[manifest.kind].scan(files.folder, pixels=pixels)
    except Exception as error:  # whatever a library raises on bytes that are no record
        found, expected = f"{type(error).__name__}: {first_line(str(error))}", f"version {manifest.version}"
        return [Fault("content", files.location, found, f"a record of kind `{manifest.kind}` {expected}")]
    return [
        Fault("content", f"{files.location}/{name}", f"{rows[name]} rows", f"{entry.rows} rows")
        for name, entry in manifest.files.items()
        if rows[name] != entry.rows
    ]


def first_line(text: str) -> str:
    """Enough of an error for one line."""
    return " ".join(text.split())[:300]
