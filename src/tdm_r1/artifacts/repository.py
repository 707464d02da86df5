"""Commit a record to a location, and load it back verified.

Files are stored first and the manifest last, and none of them is ever overwritten. A location
without a manifest holds nothing for any reader, whatever a failed stage left there.
"""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import pyarrow as pa

from tdm_r1.artifacts import blocks
from tdm_r1.artifacts.codec import Record, row_specs
from tdm_r1.artifacts.foreign import REBUILD
from tdm_r1.artifacts.leftovers import ADOPTED_SECONDS
from tdm_r1.artifacts.manifest import FileEntry, Manifest, Provenance, sha256_of
from tdm_r1.artifacts.partial import Blocks, read_rows, require_rows_of
from tdm_r1.artifacts.records import Paths, Rollout
from tdm_r1.artifacts.schema import Dims, TableSpec, TensorsSpec, specs_of
from tdm_r1.artifacts.store import Store, storage_errors
from tdm_r1.artifacts.tables import read_columns
from tdm_r1.artifacts.tensors import read_tensors
from tdm_r1.artifacts.tombstone import refuse_pruned
from tdm_r1.errors import ArtifactError, CorruptArtifactError, MissingParentError, SchemaError

if TYPE_CHECKING:
    from torch import Tensor

MANIFEST_NAME = "manifest.json"

AnyRecord = TypeVar("AnyRecord", bound=Record)


def commit(
    store: Store,
    location: str,
    record: Record,
    *,
    parents: Mapping[str, str],
    config_digest: str,
    provenance: Provenance,
    version: int | None = None,
) -> Manifest:
    """Store `record` under `location/` and return the manifest that stands there afterwards.

    A location that already holds equal content is left as it is; its manifest is returned. `parents`
    gives the digest of each parent's manifest by its location, `config_digest` that of the
    configuration section which the stage saw, `version` an earlier layout than this record's own, for a replay.
    """
    with storage_errors(f"{store.root}/{location}"), tempfile.TemporaryDirectory(prefix="tdm-r1-") as scratch:
        directory = Path(scratch)
        record.write(directory, version=version)
        manifest = Manifest(
            kind=record.kind,
            version=version or record.version,
            files=describe_files(record, directory),
            parents=dict(parents),
            config_digest=config_digest,
            provenance=provenance,
        )
        if (present := read_manifest(store, location)) is not None:
            return require_equal(store, location, present, manifest)
        manifest = store_files(store, location, manifest, directory)
    if store.write_bytes_if_absent(f"{location}/{MANIFEST_NAME}", manifest.to_bytes()):
        return manifest
    return require_equal(store, location, require_manifest(store, location), manifest)


def load(
    store: Store, location: str, record: type[AnyRecord], *, manifest: Manifest | None = None
) -> tuple[AnyRecord, Manifest]:
    """Read the record committed at `location`, after checking kind, version and every file's bytes.

    Args:
        manifest: of this record, when it was read already.
    """
    manifest = manifest or require_kind(store, location, record)
    with tempfile.TemporaryDirectory(prefix="tdm-r1-") as scratch:
        for name, entry in manifest.files.items():
            fetch_verified(store, f"{location}/{entry.stored_as}", Path(scratch, name), entry)
        with at_location(store, location):
            loaded = record.read(Path(scratch))
            require_rows(manifest, loaded.row_counts())
        return loaded, manifest


def load_paths(store: Store, location: str) -> tuple[Paths, Manifest]:
    """Read the rollout committed at `location` without decoding its images; its bytes are verified all the same."""
    manifest = require_kind(store, location, Rollout)
    with tempfile.TemporaryDirectory(prefix="tdm-r1-") as scratch:
        for name, entry in manifest.files.items():
            fetch_verified(store, f"{location}/{entry.stored_as}", Path(scratch, name), entry)
        with at_location(store, location):
            found = Paths.read(Path(scratch))
            require_rows(manifest, dict.fromkeys(manifest.files, found.index.num_rows))
        return found, manifest


def load_tensors(store: Store, location: str, record: type[Record], field: str) -> tuple[dict[str, Tensor], Manifest]:
    """Read one field of tensors of the record at `location`, verified, without its other files."""
    manifest = require_kind(store, location, record)
    name = file_of(record, field)
    with tempfile.TemporaryDirectory(prefix="tdm-r1-") as scratch:
        local = Path(scratch, name)
        fetch_verified(store, f"{location}/{manifest.files[name].stored_as}", local, manifest.files[name])
        with at_location(store, location):
            found: dict[str, Tensor] = specs_of(record)[field].parse(read_tensors(local), field, Dims())
        return found, manifest


def load_rows(
    store: Store, location: str, record: type[Record], field: str, rows: Sequence[int]
) -> tuple[dict[str, Tensor], Manifest]:
    """Read some rows of every tensor of one field, [len(rows), ...] each in the order of `rows`, verified.

    Where the manifest has hashes of blocks, only the header and the blocks of these rows are read; else the file.

    Raises:
        CorruptArtifactError: for a block that is not what the manifest says.
        SchemaError: for a row that is not there.
    """
    manifest, name = require_kind(store, location, record), file_of(record, field)
    entry = manifest.files[name]
    if entry.blocks is None:
        import torch

        whole, manifest = load_tensors(store, location, record, field)
        for tensor, values in whole.items():
            require_rows_of(values.shape, rows, f"`{store.root}/{location}`: `{name}`[{tensor!r:.80}]")
        index = torch.tensor(rows, dtype=torch.int64)
        return {tensor: values[index] for tensor, values in whole.items()}, manifest
    key = f"{location}/{entry.stored_as}"
    require_there(store, key)
    with at_location(store, location):
        read = read_rows(Blocks(store, key, entry), name, rows)
        found: dict[str, Tensor] = specs_of(record)[field].parse(read, field, Dims())
        return found, manifest


def file_of(record: type[Record], field: str) -> str:
    """Name of the file in which a field of tensors lies."""
    return next(file for file, owner in record.files().items() if owner == field)


def load_table(store: Store, location: str, record: type[Record], field: str) -> tuple[pa.Table, Manifest]:
    """Read one table of the record at `location`, verified, without its row tensors and its other files."""
    manifest = require_kind(store, location, record)
    spec = specs_of(record)[field]
    assert isinstance(spec, TableSpec)
    with tempfile.TemporaryDirectory(prefix="tdm-r1-") as scratch:
        local = Path(scratch, spec.file)
        fetch_verified(store, f"{location}/{manifest.files[spec.file].stored_as}", local, manifest.files[spec.file])
        with at_location(store, location):
            return spec.parse(read_columns(local, spec, row_specs(record, spec.dim)), field, Dims()), manifest


@contextmanager
def at_location(store: Store, location: str) -> Iterator[None]:
    """Say of which record a refusal is."""
    try:
        yield
    except (SchemaError, CorruptArtifactError) as error:
        raise type(error)(f"`{store.root}/{location}`: {error.message}", hint=error.hint) from error


def require_rows(manifest: Manifest, found: Mapping[str, int | None]) -> None:
    """Refuse a record whose tables have not the rows that its manifest says."""
    for name, entry in manifest.files.items():
        if found[name] != entry.rows:
            raise CorruptArtifactError(f"`{name}` has {found[name]} rows but {entry.rows} are expected", hint=REBUILD)


def read_manifest(store: Store, location: str) -> Manifest | None:
    """Return the manifest at `location`, or None when nothing was committed there."""
    key = f"{location}/{MANIFEST_NAME}"
    if not store.exists(key):
        return None
    try:
        return Manifest.from_bytes(store.read_bytes(key))
    except (SchemaError, CorruptArtifactError) as error:
        raise type(error)(f"`{store.root}/{key}`: {error.message}", hint=error.hint) from error


def require_manifest(store: Store, location: str) -> Manifest:
    """Return the manifest at `location`, or refuse."""
    manifest = read_manifest(store, location)
    if manifest is None:
        raise MissingParentError(f"`{store.root}/{location}` has no manifest: it was never committed")
    return manifest


def require_kind(store: Store, location: str, record: type[Record]) -> Manifest:
    """Return the manifest at `location`, or refuse one that is not of this record."""
    manifest = require_manifest(store, location)
    if manifest.kind != record.kind or manifest.version not in record.readable:
        raise SchemaError(
            f"`{store.root}/{location}` holds `{manifest.kind}` version {manifest.version} "
            f"but `{record.kind}` version {record.version} is expected"
        )
    if set(manifest.files) != set(record.files()):
        raise CorruptArtifactError(
            f"`{store.root}/{location}` lists files {sorted(manifest.files)} but {sorted(record.files())} are expected"
        )
    return manifest


def require_equal(store: Store, location: str, present: Manifest, ours: Manifest) -> Manifest:
    """Return the manifest already committed when it has our digest, or refuse."""
    if present.digest != ours.digest:
        raise ArtifactError(
            f"`{store.root}/{location}` is already committed with digest {present.digest}, not {ours.digest}",
            hint="the committed record stands; delete its directory first if the new one should replace it",
        )
    return present


def describe_files(record: Record, directory: Path) -> dict[str, FileEntry]:
    """Return hashes, size and rows of each file that `record.write` left in `directory`."""
    fields, specs, found = record.files(), specs_of(record), {}
    for name, count in record.row_counts().items():
        spec, size = specs[fields[name]], (directory / name).stat().st_size
        in_blocks = isinstance(spec, TensorsSpec) and spec.by_rows and size > blocks.BLOCK_BYTES
        hashed = blocks.hash_file(directory / name, blocks=in_blocks)
        found[name] = FileEntry(sha256=hashed.sha256, size=size, rows=count, stored_as=name, blocks=hashed.blocks)
    return found


def store_files(store: Store, location: str, manifest: Manifest, directory: Path) -> Manifest:
    """Store every file, and return the manifest that says under which names."""
    stored = {
        name: entry.model_copy(update={"stored_as": store_file(store, location, directory / name, entry)})
        for name, entry in manifest.files.items()
    }
    return manifest.model_copy(update={"files": stored})


def store_file(store: Store, location: str, local: Path, entry: FileEntry) -> str:
    """Store one file without overwriting, and return its name in `location`.

    Other bytes under its own name are either left by a failed stage or being committed by a rival
    right now. Nobody can tell, so they stay, and this file gets its hash in front of its name. Where the
    store cannot exclude a rival, as for a multipart upload, it gets it at once: then a rival who writes
    the same key at the same moment writes the same bytes.

    Its own bytes are taken over where they lie, but only young ones: old ones may be about to be swept.
    """
    addressed = f"{entry.sha256[:16]}.{local.name}"
    own = [local.name, addressed] if store.is_exclusive(entry.size) else [addressed]
    for name in [*own, f"{entry.sha256[:16]}.{uuid.uuid4().hex[:8]}.{local.name}"]:
        key = f"{location}/{name}"
        if store.put_file_if_absent(local, key) or (is_young(store, key) and holds(store, key, entry)):
            return name
    raise CorruptArtifactError(f"`{store.root}/{key}` is damaged", hint=f"delete `{store.root}/{location}` and retry")


def is_young(store: Store, key: str) -> bool:
    """Whether the object at `key` is so new that no sweep takes it before its commit ends."""
    age = store.age(key)
    return age is not None and age < ADOPTED_SECONDS


def holds(store: Store, key: str, entry: FileEntry) -> bool:
    """Whether the object at `key` has the bytes of `entry`."""
    with tempfile.TemporaryDirectory(prefix="tdm-r1-") as scratch:
        try:
            fetch_verified(store, key, Path(scratch, "file"), entry)
        except ArtifactError:  # a full disk or a server that fails says nothing about the object
            return False
    return True


def fetch_verified(store: Store, key: str, local: Path, entry: FileEntry) -> None:
    """Fetch one object to `local`, or refuse when it is missing or not the bytes of `entry`."""
    hint = REBUILD
    require_there(store, key)
    store.fetch(key, local)
    if (size := local.stat().st_size) != entry.size:
        raise CorruptArtifactError(
            f"`{store.root}/{key}` has {size} bytes but {entry.size} are expected, with sha256 {entry.sha256}; "
            f"found {sha256_of(local)}",
            hint=hint,
        )
    if (found := sha256_of(local)) != entry.sha256:
        raise CorruptArtifactError(f"`{store.root}/{key}` has sha256 {found} but {entry.sha256} is expected", hint=hint)


def require_there(store: Store, key: str) -> None:
    """Refuse an object that a manifest lists and that is missing, or was pruned."""
    if not store.exists(key):
        refuse_pruned(store, key)
        raise CorruptArtifactError(f"`{store.root}/{key}` is missing but its manifest lists it", hint=REBUILD)
