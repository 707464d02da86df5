"""What writers that died or lost a race left behind, and how to tell it from what a living writer needs.

No reader sees any of it. An age alone decides whether its writer may still live: `store_file` takes over
bytes that lie there already only while they are younger than `ADOPTED_SECONDS`, so a file older than any
commit, by more than that, can never be named by a manifest to come.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Protocol, runtime_checkable

TEMPORARY_SUFFIX: Final = ".tmp"
ADOPTED_SECONDS: Final = 3600.0
"""An older file without a manifest is stored again under another name instead of being taken over."""


@dataclass(frozen=True, order=True)
class Entry:
    """One object as a store lists it, or an upload that was never completed."""

    key: str
    size: int
    """Bytes."""
    age: float
    """Seconds since it was written, by the store's own clock."""
    upload: str = ""
    """Identifier of an unfinished upload; empty for an object."""

    @property
    def temporary(self) -> bool:
        """Whether it is, by itself, nothing that any reader sees."""
        return bool(self.upload) or any(is_temporary(part) for part in self.key.split("/"))


@runtime_checkable
class Sweepable(Protocol):
    """A store that can also name what no reader of it sees, and delete it."""

    def entries(self) -> list[Entry]:
        """Return everything below the root, sorted: objects, temporary files and unfinished uploads."""

    def objects(self) -> list[Entry]:
        """Return the same without uploads, which not every role may list."""

    def discard(self, entry: Entry) -> None:
        """Delete one entry; none there is fine."""


def is_temporary(name: str) -> bool:
    """Whether `name` is that of an unfinished write or a delete in progress."""
    return name.startswith(".") and name.endswith(TEMPORARY_SUFFIX)


def is_written_as(name: str, files: Iterable[str]) -> bool:
    """Whether `store_file` may have given this name to one of `files`."""
    return re.sub(r"^[0-9a-f]{16}\.(?:[0-9a-f]{8}\.)?", "", name) in files
