"""The tombstone: what a person dropped from a committed record on purpose, and by which rule.

`pruned.json` stands next to the manifest, which stays. A file that the manifest lists and that is not
there is pruned when the tombstone names it, and missing otherwise.
"""

from __future__ import annotations

import json
from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict

from tdm_r1.artifacts.manifest import Count, Digest, FileName, Manifest
from tdm_r1.artifacts.seal import parse_object, seal_of, take_seal
from tdm_r1.artifacts.store import Store
from tdm_r1.errors import ArtifactError, CorruptArtifactError, PrunedError

TOMBSTONE_NAME = "pruned.json"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PrunedFile(_Frozen):
    """One dropped file, as the manifest describes it."""

    sha256: Digest
    size: Count
    """Bytes."""
    stored_as: FileName
    """Name inside the location."""


class Tombstone(_Frozen):
    """The dropped files of one record."""

    version: Literal[1] = 1
    manifest: Digest
    """Digest of the manifest that still stands beside it."""
    files: dict[FileName, PrunedFile]
    """By their name in the manifest."""
    pruned: AwareDatetime
    rule: str
    """Such as `--keep-last 2 --keep-every 10`."""

    def to_bytes(self) -> bytes:
        """Return indented JSON with a seal over all of it: a reader notices any change."""
        body = self.model_dump(mode="json")
        return json.dumps(body | {"seal": seal_of(body)}, indent=2, ensure_ascii=False).encode() + b"\n"

    @classmethod
    def from_bytes(cls, data: bytes) -> Tombstone:
        """Parse what `to_bytes` wrote; one of an earlier version has no seal."""
        body = parse_object(data)
        take_seal(body, "tombstone")
        return cls.model_validate_json(json.dumps(body))


def bury(manifest: Manifest, names: list[str], *, pruned: AwareDatetime, rule: str) -> Tombstone:
    """Describe `names` of a record's files as dropped."""
    entries = {name: manifest.files[name] for name in names}
    return Tombstone(
        manifest=manifest.digest,
        files={n: PrunedFile(sha256=e.sha256, size=e.size, stored_as=e.stored_as) for n, e in entries.items()},
        pruned=pruned,
        rule=rule,
    )


def read_tombstone(store: Store, location: str) -> Tombstone | None:
    """Return the tombstone at `location`, or None when nothing was pruned there."""
    key = f"{location}/{TOMBSTONE_NAME}"
    if not store.exists(key):
        return None
    try:
        return Tombstone.from_bytes(store.read_bytes(key))
    except (ValueError, RecursionError, CorruptArtifactError) as error:  # pydantic's ValidationError is a ValueError
        raise CorruptArtifactError(f"`{store.root}/{key}` is not a valid tombstone: {error}") from error


def write_tombstone(store: Store, location: str, tombstone: Tombstone) -> Tombstone:
    """Store the tombstone and return the one that stands there afterwards; the first one stays.

    Raises:
        ArtifactError: when the one that stands there is of another record, or does not name all of these files.
    """
    if store.write_bytes_if_absent(f"{location}/{TOMBSTONE_NAME}", tombstone.to_bytes()):
        return tombstone
    present = read_tombstone(store, location)
    if (
        present is None
        or present.manifest != tombstone.manifest
        or not tombstone.files.items() <= present.files.items()
    ):
        raise ArtifactError(
            f"`{store.root}/{location}/{TOMBSTONE_NAME}` says that other files were pruned than are pruned now",
            hint="nothing was deleted here; look at what that file names, and remove it if it is not of this record",
        )
    return present


def refuse_pruned(store: Store, key: str) -> None:
    """Raise PrunedError when a tombstone says that this missing object was dropped on purpose."""
    location, _, name = key.rpartition("/")
    tombstone = read_tombstone(store, location)
    if tombstone is not None and any(file.stored_as == name for file in tombstone.files.values()):
        raise PrunedError(
            f"`{store.root}/{key}` was pruned at {tombstone.pruned:%Y-%m-%d %H:%M:%S %Z} by `{tombstone.rule}`",
            hint="its manifest and tables are kept; to have the file again, restore it from a copy",
        )
