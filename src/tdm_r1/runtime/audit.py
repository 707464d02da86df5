"""Audit a run: every manifest, every byte of every record, its lineage, and what lies beside them.

Nothing is written, and no figure of the run is trusted: sizes, hashes and rows are measured again.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tdm_r1.artifacts.leftovers import Sweepable, is_written_as
from tdm_r1.artifacts.manifest import Manifest
from tdm_r1.artifacts.repository import MANIFEST_NAME, read_manifest
from tdm_r1.artifacts.store import Store, open_store
from tdm_r1.artifacts.tombstone import TOMBSTONE_NAME, read_tombstone
from tdm_r1.config import RunConfig
from tdm_r1.errors import ArtifactError
from tdm_r1.runtime.audit_faults import AuditReport, Fault, RecordAudit
from tdm_r1.runtime.audit_files import Files, check_files, first_line
from tdm_r1.runtime.audit_reading import listed_tasks, read_configuration, read_variants
from tdm_r1.runtime.layout import (
    CHECKPOINTS,
    DRIVE,
    EVALUATIONS,
    REPORT_FILE,
    RESULT_FILE,
    RUN_FILE,
    STOP_FILE,
    Task,
    all_tasks,
    parents_of,
    variant_tasks,
    votes_folder,
)
from tdm_r1.runtime.run_file import digest_of_config, listed_lengths
from tdm_r1.runtime.variants import listed_variants, reward_key

BESIDE: Final = frozenset({RUN_FILE, STOP_FILE, RESULT_FILE, REPORT_FILE})
"""What may lie in the root without a manifest."""


@dataclass(frozen=True)
class Walk:
    """What every worker knows: what is listed, what run.json says, and what each manifest says."""

    store: Store
    keys: frozenset[str]
    load: bool
    pixels: bool
    config: RunConfig | None
    """None when run.json cannot be read."""
    config_digests: frozenset[str]
    """Of run.json as it stands, and of what this version of the code reads from it."""
    variants: Mapping[str, RunConfig]
    """The configuration of each variant."""
    read: Mapping[str, Manifest | Fault]
    """Manifest by location, or why it cannot be read."""


def audit(root: str, *, load: bool = True, pixels: bool = False, threads: int | None = None) -> AuditReport:
    """Audit the run at `root`.

    Args:
        load: also read each record piece by piece, so that it checks itself.
        pixels: also decompress the pictures in it; without, their footer speaks for them.
        threads: workers; by default one per CPU of this process, at most 8.

    Raises:
        ConfigError: when the root is no run: neither run.json nor any record is there.
    """
    clock, workers = time.monotonic(), threads or default_threads()
    store = open_store(root)
    keys = frozenset(store.list(""))
    config, digests, damage = read_configuration(store, keys)
    variants, misread = read_variants(store, config, keys)
    own = all_tasks(config) if config else [task for task in listed_tasks(keys) if not task.variant]
    again = [task for name in variants for task in variant_tasks(name, config)] if config else []
    tasks = [*own, *again]
    present = [task for task in tasks if manifest_key(task) in keys]
    with ThreadPoolExecutor(workers) as pool:
        read = dict(pool.map(lambda task: (task.location, read_one(store, task)), present))
        walk = Walk(store, keys, load, pixels, config, digests, variants, read)
        order = sorted(present, key=lambda task: claimed_bytes(read[task.location]), reverse=True)  # none is last alone
        audited = dict(zip(order, pool.map(lambda task: audit_record(walk, task), order), strict=True))
    missing = gaps(own, [task for task in present if not task.variant])
    beside = (*damage, *misread, *missing, *strays(walk, tasks), *leftovers(store))
    total = len(own) + sum(bool(task.variant) for task in present) if config else 0
    records = tuple(audited[task] for task in present)
    return AuditReport(root, records, beside, load, load and pixels, workers, time.monotonic() - clock, total)


def default_threads() -> int:
    """One per CPU that this process may use, at most 8."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(8, usable)


def claimed_bytes(read: Manifest | Fault) -> int:
    """Of the files of a record, as its manifest says."""
    return sum(entry.size for entry in read.files.values()) if isinstance(read, Manifest) else 0


def manifest_key(task: Task) -> str:
    return f"{task.location}/{MANIFEST_NAME}"


def read_one(store: Store, task: Task) -> Manifest | Fault:
    """The manifest of a task, or the fault that makes it unusable."""
    try:
        manifest = read_manifest(store, task.location)
    except ArtifactError as error:
        return Fault("manifest", manifest_key(task), first_line(error.message), f"a manifest of `{task.stage}`")
    if manifest is None:
        return Fault("manifest", manifest_key(task), "it vanished during the audit", f"a manifest of `{task.stage}`")
    if manifest.kind != task.stage:
        return Fault("manifest", manifest_key(task), f"a record of kind `{manifest.kind}`", f"`{task.stage}`")
    return manifest


def audit_record(walk: Walk, task: Task) -> RecordAudit:
    """Hash the files of one record, load it if asked, and compare what it was made of."""
    manifest = walk.read[task.location]
    if isinstance(manifest, Fault):
        return RecordAudit(task, faults=(manifest,))
    faults = [*lineage(walk, task, manifest)]
    digests = {digest_of_config(walk.variants[task.variant])} if task.variant else walk.config_digests
    if digests and manifest.config_digest not in digests:
        expected, file = " or ".join(sorted(digest[:12] for digest in digests)), RUN_FILE
        if task.variant:
            file = reward_key(task.variant)
        faults.append(Fault("configuration", task.location, manifest.config_digest[:12], f"{expected}, of {file}"))
    dropped, grave = pruned(walk, task, manifest)
    faults += grave
    with tempfile.TemporaryDirectory(prefix="tdm-r1-") as scratch:
        files = Files(walk.store, walk.keys, task.location, manifest, Path(scratch))
        damaged = check_files(files, dropped, load=walk.load, pixels=walk.pixels)
        size = files.size()
    return RecordAudit(
        task,
        rows=max((entry.rows or 0 for entry in manifest.files.values()), default=0),
        bytes=size,
        seconds=manifest.provenance.seconds,
        digest=manifest.digest,
        pruned=len(dropped),
        faults=(*faults, *damaged),
    )


def pruned(walk: Walk, task: Task, manifest: Manifest) -> tuple[set[str], list[Fault]]:
    """Names of the files that a tombstone says were dropped and that are gone; or why the tombstone is no good."""
    key = f"{task.location}/{TOMBSTONE_NAME}"
    if key not in walk.keys:
        return set(), []
    try:
        tombstone = read_tombstone(walk.store, task.location)
    except ArtifactError as error:
        return set(), [Fault("manifest", key, first_line(error.message), "a tombstone")]
    if tombstone is None or tombstone.manifest != manifest.digest:
        return set(), [Fault("manifest", key, "the tombstone of another record", f"that of {manifest.digest[:12]}")]
    gone = {name for name, file in tombstone.files.items() if f"{task.location}/{file.stored_as}" not in walk.keys}
    return gone & set(manifest.files), []


def lineage(walk: Walk, task: Task, manifest: Manifest) -> Iterator[Fault]:
    """The parents are those that the stage reads, and the records that stand there."""
    if walk.config is not None:
        config = walk.variants[task.variant] if task.variant else walk.config
        expected = {parent.location for parent in parents_of(task, config)}
        if missing := sorted(expected - set(manifest.parents)):
            yield Fault("lineage", task.location, f"no parent `{missing[0]}`", f"{len(expected)} parents")
        if strange := sorted(set(manifest.parents) - expected):
            yield Fault("lineage", task.location, f"parent `{strange[0]}`", f"{len(expected)} parents, not this one")
    for location, digest in manifest.parents.items():
        parent = walk.read.get(location)
        if isinstance(parent, Manifest) and parent.digest != digest:
            found = f"parent `{location}` had digest {digest[:12]}"
            yield Fault("lineage", task.location, found, f"{parent.digest[:12]}, which stands there")
        elif parent is None:
            yield Fault("lineage", task.location, f"parent `{location}` is not committed", f"digest {digest[:12]}")


def gaps(tasks: Sequence[Task], present: Sequence[Task]) -> list[Fault]:
    """Records missing from an iteration while a later one is committed.

    The evaluation of iteration 0 is a baseline that an orchestrator may leave out.
    """
    last = max((task.iteration for task in present), default=0)
    there = set(present)
    return [
        Fault("gap", task.location, "no manifest", f"a record, for iteration {last} is committed")
        for task in tasks
        if task.iteration < last and task not in there and task != Task("evaluation", 0)
    ]


def strays(walk: Walk, tasks: Sequence[Task]) -> list[Fault]:
    """Files that no manifest names: unfinished if a writer that died or lost left them, else orphans."""
    found = []
    locations = {task.location for task in tasks}
    rewards = {reward_key(name) for name in listed_variants(walk.keys)}
    ballots = tuple(f"{votes_folder(name)}/" for name in ("", *walk.variants))
    for key in sorted(walk.keys - BESIDE - rewards - listed_lengths(walk.keys).keys()):
        if key.startswith((f"{DRIVE}/", f"{CHECKPOINTS}/", f"{EVALUATIONS}/", *ballots)):
            continue
        location, _, name = key.rpartition("/")
        manifest = walk.read.get(location)
        if location not in locations:
            found.append(Fault("orphan", key, "a file", "nothing: this run has no such record"))
        elif manifest is None:
            found.append(Fault("unfinished", key, "a file", "a manifest, once the stage has run"))
        elif isinstance(manifest, Manifest) and name not in names_of(manifest):
            lost = is_written_as(name, manifest.files)
            found.append(Fault("unfinished" if lost else "orphan", key, "a file", _UNNAMED))
    return found


_UNNAMED: Final = "nothing: the manifest beside it does not name it"


def names_of(manifest: Manifest) -> set[str]:
    """Every name that belongs into the folder of this record."""
    return {MANIFEST_NAME, TOMBSTONE_NAME, *(entry.stored_as for entry in manifest.files.values())}


def leftovers(store: Store) -> list[Fault]:
    """What writers that died left behind, where the store can tell."""
    entries = store.entries() if isinstance(store, Sweepable) else []
    return [
        Fault("unfinished", entry.key, f"a temporary {'upload' if entry.upload else 'file'}", _RUNNING)
        for entry in entries
        if entry.temporary
    ]


_RUNNING: Final = "nothing, unless a stage runs now"
