"""Watches that nothing committed is ever lost, changed or half visible."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tdm_r1.artifacts.store import open_store
from tdm_r1.runtime.audit import audit
from tdm_r1.runtime.layout import RUN_FILE

Record = Callable[[str, object], None]


@dataclass
class Guard:
    """The committed records of one run, as they were seen first."""

    root: str
    digests: dict[str, str] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    lost: int = 0
    """Bytes of committed records that were not there again, or not the same."""

    def check(self) -> bool:
        """Hash every committed file again; whether all is well."""
        if not open_store(self.root).exists(RUN_FILE):
            found: dict[str, Any] = {}
            faults: tuple[Any, ...] = ()
        else:
            report = audit(self.root, load=False, threads=1)
            found, faults = {record.task.location: record for record in report.records}, report.faults
        gone = {where for where, digest in self.digests.items() if where not in found or found[where].digest != digest}
        damaged = {where for where, record in found.items() if record.faults}
        self.digests |= {where: record.digest for where, record in found.items()}
        self.sizes |= {where: record.bytes for where, record in found.items()}
        self.lost += sum(self.sizes[where] for where in gone | damaged)
        return not faults and not gone

    @property
    def checked(self) -> int:
        """Bytes of the records that were committed."""
        return sum(self.sizes.values())


@dataclass
class Ledger:
    """Counts for the fault report."""

    record: Record
    kind: str
    where: Counter[str] = field(default_factory=Counter)
    survived: int = 0
    checked: int = 0
    lost: int = 0

    @property
    def injected(self) -> int:
        return sum(self.where.values())

    def close(self, *guards: Guard) -> None:
        """Report, and fail when something was lost."""
        self.checked += sum(guard.checked for guard in guards)
        self.lost += sum(guard.lost for guard in guards)
        counts = {"injected": self.injected, "survived": self.survived}
        counts |= {"bytes_checked": self.checked, "bytes_lost": self.lost}
        self.record("faults", {"kind": self.kind, "where": dict(self.where), **counts})
        assert (self.survived, self.lost) == (self.injected, 0)
