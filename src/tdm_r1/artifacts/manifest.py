"""The manifest: what a committed record holds, what it was made of, and how it came to be."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, model_validator

from tdm_r1.artifacts.blocks import block_count, hash_file
from tdm_r1.artifacts.records import RECORDS
from tdm_r1.artifacts.seal import canonical_json, parse_object, seal_of, take_seal
from tdm_r1.errors import CorruptArtifactError, SchemaError

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
"""A SHA-256 in lower-case hex."""

Count = Annotated[int, Field(strict=True, ge=0, lt=1 << 63)]
"""A size or a number of rows."""

FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]*$", max_length=255)]
"""A name inside one folder: no separator, not hidden, neither `.` nor `..`."""

Location = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*$", max_length=1000)]
"""Where a record lies below the root."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class FileEntry(_Frozen):
    """One file of a record."""

    sha256: Digest
    size: Count
    """Bytes."""
    rows: Count | None
    """Rows of a table; null for any other file."""
    stored_as: FileName
    """Name inside the location: the file's own, unless another committer's bytes lay there. Not in the digest."""
    blocks: tuple[Digest, ...] | None = Field(default=None, exclude_if=lambda value: value is None)
    """SHA-256 of each `BLOCK_BYTES` of a large file of which stages read parts. Not in the digest: `sha256` is."""

    @model_validator(mode="after")
    def _has_all_blocks(self) -> Self:
        if self.blocks is not None and len(self.blocks) != block_count(self.size):
            raise ValueError(
                f"{len(self.blocks)} blocks of a file of {self.size} bytes, {block_count(self.size)} expected"
            )
        return self


class Provenance(_Frozen):
    """How a record came to be. None of it is in the content digest."""

    code_version: str
    libraries: dict[str, str]
    """Version by distribution name."""
    device: str
    threads: int
    """CPU threads of torch: their number changes results."""
    started: AwareDatetime
    finished: AwareDatetime
    seconds: float
    """Duration by the monotonic clock."""
    seed_root: int
    """Root of the counter-based random keys."""
    image_digest: str | None = None
    """Digest of the container image; null outside a container."""
    base: dict[str, str] | None = None
    """`source`, `revision` and `licence` of the frozen base; null for a stage that does not read it."""


class Manifest(_Frozen):
    """Content and lineage of one committed record, and its provenance apart."""

    kind: str
    version: int
    files: dict[FileName, FileEntry]
    parents: dict[Location, Digest]
    """Digest of each parent's manifest by its location."""
    config_digest: str
    """Digest of the configuration section that the stage saw."""
    provenance: Provenance

    @property
    def digest(self) -> str:
        """SHA-256 over the canonical JSON of everything except provenance: equal content, equal digest."""
        of_storage = {"files": {"__all__": {"stored_as", "blocks"}}}
        content = self.model_dump(mode="json", exclude={"provenance": True, **of_storage})
        return hashlib.sha256(canonical_json(content)).hexdigest()

    @property
    def in_blocks(self) -> bool:
        """Whether it has a large file of which parts can be read."""
        return any(entry.blocks is not None for entry in self.files.values())

    def to_bytes(self) -> bytes:
        """Return indented JSON; it carries the digest and, over provenance too, a seal: a reader notices any change."""
        body = self.model_dump(mode="json") | {"digest": self.digest}
        body["seal"] = seal_of(body)
        return json.dumps(body, indent=2, sort_keys=True, ensure_ascii=False).encode() + b"\n"

    @classmethod
    def from_bytes(cls, data: bytes) -> Manifest:
        """Parse what `to_bytes` wrote; refuse an unknown kind or version, and any change.

        A manifest of an earlier version has no seal; then a change of its provenance goes unnoticed.
        """
        body = _parse_object(data)
        require_known(body.get("kind"), body.get("version"))
        sealed = body.get("seal") is not None
        try:
            take_seal(body, "manifest")
        except CorruptArtifactError as error:
            raise CorruptArtifactError(error.message, hint=_REBUILD) from error
        recorded = body.pop("digest", None)
        try:
            manifest = cls.model_validate(body)
        except ValidationError as error:
            raise CorruptArtifactError(f"the manifest is not valid: {error}", hint=_REBUILD) from error
        if set(manifest.files) != set(RECORDS[manifest.kind].files()):
            raise CorruptArtifactError(
                f"the manifest lists files {sorted(manifest.files)} "
                f"but {sorted(RECORDS[manifest.kind].files())} are expected",
                hint=_REBUILD,
            )
        if manifest.in_blocks and not sealed:
            raise CorruptArtifactError("the manifest has hashes of blocks but no seal over them", hint=_REBUILD)
        if manifest.digest != recorded:
            raise CorruptArtifactError(
                f"the manifest says its digest is {recorded!r:.80} but its content hashes to {manifest.digest}",
                hint=_REBUILD,
            )
        return manifest


_REBUILD = "delete this stage directory and run the stage again"


def require_known(kind: Any, version: Any) -> None:
    """Refuse a record kind or version that this code cannot read."""
    if not isinstance(kind, str) or kind not in RECORDS:
        raise SchemaError(
            f"the manifest is of kind {kind!r:.80} but this version knows {sorted(RECORDS)}",
            hint="read it with the version of tdm-r1 named in its provenance",
        )
    if type(version) is not int or version not in RECORDS[kind].readable:
        raise SchemaError(
            f"the manifest holds version {version!r:.80} of `{kind}` "
            f"but this code reads {sorted(RECORDS[kind].readable)}",
            hint="read it with the version of tdm-r1 named in its provenance, or start a new run",
        )


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in lower-case hex."""
    return hash_file(path, blocks=False).sha256


def _parse_object(data: bytes) -> dict[str, Any]:
    try:
        return parse_object(data)
    except (ValueError, RecursionError) as error:
        raise CorruptArtifactError(f"the manifest is not canonical JSON: {error}", hint=_REBUILD) from error
