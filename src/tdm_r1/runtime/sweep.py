"""Sweep: delete what writers that died or lost a race left behind, and nothing that anybody could still name.

A writer that lives is known by its age alone: no lock is taken, for a lock outlives who holds it. What is
older than the limit cannot be named by a manifest to come, as long as no commit takes longer than the limit
less `ADOPTED_SECONDS` (`repository.store_file` takes over young files only).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from tdm_r1.artifacts.leftovers import Entry, Sweepable, is_written_as
from tdm_r1.artifacts.manifest import Manifest
from tdm_r1.artifacts.records import RECORDS
from tdm_r1.artifacts.repository import MANIFEST_NAME, read_manifest
from tdm_r1.artifacts.store import Store, open_store
from tdm_r1.artifacts.tombstone import TOMBSTONE_NAME
from tdm_r1.errors import ArtifactError, ConfigError
from tdm_r1.runtime.audit_reading import parse_location
from tdm_r1.runtime.run_file import read_config

UNITS: Final[Mapping[str, float]] = MappingProxyType({"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0})


@dataclass(frozen=True, order=True)
class Leftover:
    """Something that no reader sees, and why it lies there."""

    entry: Entry
    why: str


@dataclass(frozen=True)
class SweepPlan:
    """What lies there that no reader sees."""

    older_than: float
    """The limit, in seconds."""
    doomed: tuple[Leftover, ...]
    """Older than the limit."""
    young: tuple[Leftover, ...]
    """Their writers may still live."""
    unreadable: tuple[str, ...]
    """Locations whose manifest cannot be read, so that nobody can tell what it names: they are left alone."""

    @property
    def size(self) -> int:
        """Bytes of what is doomed."""
        return sum(leftover.entry.size for leftover in self.doomed)


def parse_age(text: str) -> float:
    """Seconds of `90s`, `30m`, `24h` or `7d`.

    Raises:
        ConfigError: for another text.
    """
    match = re.fullmatch(r"(\d{1,9})([smhd])", text)
    if match is None:
        raise ConfigError(f"--older-than is {text!r}, expected a number and a unit", hint="write 90s, 30m, 24h or 7d")
    return int(match[1]) * UNITS[match[2]]


def plan_sweep(root: str, older_than: float) -> SweepPlan:
    """What a sweep would delete now. Nothing is changed.

    Args:
        older_than: age in seconds, by the store's clock, that only files of dead writers reach.

    Raises:
        ConfigError: when the root is no run.
    """
    store = open_store(root)
    read_config(store)
    entries = sweepable(store).entries()  # before the manifests: what is stored afterwards is not in this list
    manifests = read_manifests(store, entries)
    unreadable = tuple(sorted(where for where, manifest in manifests.items() if manifest is None))
    found = [Leftover(entry, why) for entry in entries if (why := why_left(entry, manifests))]
    doomed = tuple(leftover for leftover in found if leftover.entry.age > older_than)
    young = tuple(leftover for leftover in found if leftover.entry.age <= older_than)
    return SweepPlan(older_than, doomed, young, unreadable)


def sweep(root: str, plan: SweepPlan) -> int:
    """Delete what is doomed; return how many of them went.

    Each object's age is asked for again just before: one that was written anew since the plan stays.
    """
    store, gone = open_store(root), 0
    for entry in (leftover.entry for leftover in plan.doomed):
        age = entry.age if entry.upload else store.age(entry.key)
        if age is not None and age > plan.older_than:
            sweepable(store).discard(entry)
            gone += 1
    return gone


def sweepable(store: Store) -> Sweepable:
    """The same store, which can be swept: a directory and S3 can."""
    assert isinstance(store, Sweepable)
    return store


def read_manifests(store: Store, entries: Iterable[Entry]) -> dict[str, Manifest | None]:
    """The manifest of every location that has one, None for one that cannot be read."""
    found: dict[str, Manifest | None] = {}
    for location in sorted({entry.key.rpartition("/")[0] for entry in entries}):
        if parse_location(location) is None:
            continue
        try:
            manifest = read_manifest(store, location)
        except ArtifactError:
            found[location] = None
        else:
            found |= {location: manifest} if manifest else {}
    return found


def why_left(entry: Entry, manifests: Mapping[str, Manifest | None]) -> str:
    """Why nobody needs this entry, or nothing if somebody might, or if it is not ours.

    Args:
        manifests: by location; None for one that cannot be read.
    """
    location, _, name = entry.key.rpartition("/")
    if entry.upload:
        return "upload never completed"
    if entry.temporary:
        return "write never finished"
    task = parse_location(location)
    if task is None or name in (MANIFEST_NAME, TOMBSTONE_NAME) or not is_written_as(name, RECORDS[task.stage].files()):
        return ""
    if location not in manifests:
        return "commit never finished"
    manifest = manifests[location]
    named = manifest is None or name in {file.stored_as for file in manifest.files.values()}
    return "" if named else "of a writer that lost"
