"""What an audit can find, and its report: values without behaviour."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

from tdm_r1.runtime.layout import Task

Kind = Literal[
    "manifest", "missing", "size", "hash", "content", "lineage", "configuration", "gap", "orphan", "unfinished"
]
KINDS: Final[Mapping[Kind, str]] = MappingProxyType(
    {
        "manifest": "manifests that cannot be read, or are of another kind",
        "missing": "files that a manifest names and that are not there",
        "size": "files of another size than their manifest says",
        "hash": "files whose bytes are not those of their manifest",
        "content": "records that break their own contract",
        "lineage": "parents that are not the records which stand there",
        "configuration": "records made from another configuration",
        "gap": "records missing before later ones",
        "orphan": "files that no manifest names",
        "unfinished": "left by writers that died or lost, seen by no reader (not a fault; `tdm-r1 sweep` deletes them)",
    }
)


@dataclass(frozen=True, order=True)
class Fault:
    """One thing that is not as it should be; of kind `unfinished` it is a note."""

    kind: Kind
    location: str
    """Key of the file or location of the record."""
    found: str
    expected: str


@dataclass(frozen=True)
class RecordAudit:
    """What was found at the location of one task."""

    task: Task
    rows: int = 0
    """Of its longest table, as the manifest says."""
    bytes: int = 0
    """That were really read and hashed."""
    seconds: float = 0.0
    """Its stage took."""
    digest: str = ""
    pruned: int = 0
    """Files that were dropped on purpose and that a tombstone vouches for."""
    faults: tuple[Fault, ...] = ()

    @property
    def verdict(self) -> str:
        return ", ".join(sorted({fault.kind for fault in self.faults})) or ("pruned" if self.pruned else "ok")


@dataclass(frozen=True)
class AuditReport:
    """All that an audit found."""

    root: str
    records: tuple[RecordAudit, ...]
    beside: tuple[Fault, ...]
    """Faults and notes that belong to no committed record."""
    loaded: bool
    """Whether the records were loaded too, not only hashed."""
    pixels: bool
    """Whether the pictures in them were decompressed as well."""
    threads: int
    seconds: float
    total: int
    """Tasks of the whole run; 0 when run.json cannot be read."""

    @property
    def bytes(self) -> int:
        return sum(record.bytes for record in self.records)

    @property
    def faults(self) -> tuple[Fault, ...]:
        every = (*self.beside, *(fault for record in self.records for fault in record.faults))
        return tuple(sorted(fault for fault in every if fault.kind != "unfinished"))

    @property
    def notes(self) -> tuple[Fault, ...]:
        return tuple(sorted(fault for fault in self.beside if fault.kind == "unfinished"))

    @property
    def clean(self) -> bool:
        return not self.faults
