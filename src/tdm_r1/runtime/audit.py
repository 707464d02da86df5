"""Audit a run: every manifest, every byte of every record, its lineage, and what lies beside them.

Nothing is written, and no figure of the run is trusted: sizes, hashes and rows are measured again.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tdm_r1.artifacts.manifest import FileEntry, Manifest, sha256_of
from tdm_r1.artifacts.records import RECORDS
from tdm_r1.artifacts.repository import MANIFEST_NAME, read_manifest
from tdm_r1.artifacts.store import ShowsUnfinished, Store, open_store
from tdm_r1.artifacts.tombstone import TOMBSTONE_NAME, read_tombstone
from tdm_r1.config import RunConfig
from tdm_r1.errors import ArtifactError, ConfigError
from tdm_r1.runtime.audit_faults import AuditReport, Fault, RecordAudit
from tdm_r1.runtime.history import REPORT_FILE
from tdm_r1.runtime.layout import (
    BASE,
    DRIVE,
    ONCE,
    PROMPTS,
    RUN_FILE,
    SHARDED,
    STAGES,
    STOP_FILE,
    Task,
    all_tasks,
    parents_of,
)
from tdm_r1.runtime.results import RESULT_FILE
from tdm_r1.runtime.run import digest_of
from tdm_r1.runtime.run_file import read_config

BESIDE: Final = frozenset({RUN_FILE, STOP_FILE, RESULT_FILE, REPORT_FILE})
"""What may lie in the root without a manifest."""


@dataclass(frozen=True)
class Walk:
    """What every worker knows: what is listed, what run.json says, and what each manifest says."""

    store: Store
    keys: frozenset[str]
    load: bool
    config: RunConfig | None
    """None when run.json cannot be read."""
    config_digests: frozenset[str]
    """Of run.json as it stands, and of what this version of the code reads from it."""
    read: Mapping[str, Manifest | Fault]
    """Manifest by location, or why it cannot be read."""


def audit(root: str, *, load: bool = True, threads: int | None = None) -> AuditReport:
    """Audit the run at `root`.

    Args:
        load: also load each record, so that it checks itself; at most one per thread is in memory.
        threads: workers; by default one per CPU of this process, at most 8.

    Raises:
        ConfigError: when the root is no run: neither run.json nor any record is there.
    """
    clock, workers = time.monotonic(), threads or default_threads()
    store = open_store(root)
    keys = frozenset(store.list(""))
    config, digests, damage = read_configuration(store, keys)
    tasks = all_tasks(config) if config else listed_tasks(keys)
    present = [task for task in tasks if manifest_key(task) in keys]
    with ThreadPoolExecutor(workers) as pool:
        read = dict(pool.map(lambda task: (task.location, read_one(store, task)), present))
        walk = Walk(store, keys, load, config, digests, read)
        records = tuple(pool.map(lambda task: audit_record(walk, task), present))
    beside = (*damage, *gaps(tasks, present), *strays(walk, tasks), *leftovers(store))
    total = len(tasks) if config else 0
    return AuditReport(root, records, beside, load, workers, time.monotonic() - clock, total)


def default_threads() -> int:
    """One per CPU that this process may use, at most 8."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(8, usable)


def manifest_key(task: Task) -> str:
    return f"{task.location}/{MANIFEST_NAME}"


def read_configuration(store: Store, keys: frozenset[str]) -> tuple[RunConfig | None, frozenset[str], list[Fault]]:
    """Read run.json; without a readable one the audit goes on with what the listing shows."""
    if RUN_FILE not in keys and not listed_tasks(keys):
        read_config(store)  # says that this is no run
    try:
        config = read_config(store)
        raw = store.read_bytes(RUN_FILE)
        stored = json.loads(raw)
        canonical = json.dumps(stored, indent=2, ensure_ascii=False).encode() + b"\n"
    except (ConfigError, ArtifactError, ValueError) as error:
        found = error.message if isinstance(error, ConfigError | ArtifactError) else str(error)
        return None, frozenset(), [Fault("configuration", RUN_FILE, first_line(found), "the run's configuration")]
    digests = frozenset({digest_of(stored), digest_of(config.model_dump(mode="json"))})
    if raw != canonical:
        return config, digests, [Fault("configuration", RUN_FILE, "other bytes", "the bytes that `init` writes")]
    return config, digests, []


def listed_tasks(keys: frozenset[str]) -> list[Task]:
    """The tasks whose manifests are listed, in order of their locations."""
    found = (
        parse_location(key.removesuffix(f"/{MANIFEST_NAME}"))
        for key in sorted(keys)
        if key.endswith("/" + MANIFEST_NAME)
    )
    return [task for task in found if task is not None]


def parse_location(location: str) -> Task | None:
    """The task that commits to this location, or None."""
    once = {PROMPTS: ONCE[0], BASE: ONCE[1]}
    if location in once:
        return Task(once[location])
    match = re.fullmatch(r"iter-(\d{5})/([a-z_]+)(?:/shard-(\d{4}))?", location)
    if match is None or match[2] not in STAGES or match[2] in ONCE or (match[2] in SHARDED) != bool(match[3]):
        return None
    return Task(match[2], int(match[1]), int(match[3] or 0))


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
    if walk.config_digests and manifest.config_digest not in walk.config_digests:
        expected = " or ".join(sorted(digest[:12] for digest in walk.config_digests))
        faults.append(Fault("configuration", task.location, manifest.config_digest[:12], f"{expected}, of {RUN_FILE}"))
    dropped, grave = pruned(walk, task, manifest)
    faults += grave
    size = 0
    with tempfile.TemporaryDirectory() as scratch:
        damaged = []
        for name, entry in manifest.files.items():
            if name in dropped:
                continue
            local = Path(scratch, name)
            damaged += check_file(walk, f"{task.location}/{entry.stored_as}", local, entry)
            size += local.stat().st_size if local.exists() else 0
        if walk.load and not damaged and not dropped:
            damaged += check_content(task, manifest, Path(scratch))
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


def check_file(walk: Walk, key: str, local: Path, entry: FileEntry) -> list[Fault]:
    """Fetch one file to `local`; its size and hash are what the manifest says, or there is a fault."""
    if key not in walk.keys:
        return [Fault("missing", key, "no file", f"{entry.size:,} bytes with sha256 {entry.sha256}")]
    try:
        walk.store.fetch(key, local)
        size = local.stat().st_size
        found = sha256_of(local) if size == entry.size else ""
    except (ArtifactError, OSError) as error:
        return [Fault("missing", key, f"it cannot be read: {first_line(str(error))}", f"{entry.size:,} bytes")]
    if size != entry.size:
        return [Fault("size", key, f"{size:,} bytes", f"{entry.size:,} bytes")]
    return [Fault("hash", key, f"sha256 {found}", f"sha256 {entry.sha256}")] if found != entry.sha256 else []


def check_content(task: Task, manifest: Manifest, directory: Path) -> list[Fault]:
    """Load the record, so that it checks its columns, dtypes and shapes; its rows are those of the manifest."""
    try:
        rows = RECORDS[manifest.kind].read(directory).row_counts()
    except Exception as error:  # whatever a library raises on bytes that are no record
        found = f"{type(error).__name__}: {first_line(str(error))}"
        return [
            Fault("content", task.location, found, f"a record of kind `{manifest.kind}` version {manifest.version}")
        ]
    return [
        Fault("content", f"{task.location}/{name}", f"{rows[name]} rows", f"{entry.rows} rows")
        for name, entry in manifest.files.items()
        if rows[name] != entry.rows
    ]


def lineage(walk: Walk, task: Task, manifest: Manifest) -> Iterator[Fault]:
    """The parents are those that the stage reads, and the records that stand there."""
    if walk.config is not None:
        expected = {parent.location for parent in parents_of(task, walk.config)}
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
    """Files that no manifest names: orphans, or unfinished where nothing is committed yet."""
    found = []
    locations = {task.location for task in tasks}
    for key in sorted(walk.keys - BESIDE):
        if key.startswith(f"{DRIVE}/"):
            continue
        location, _, name = key.rpartition("/")
        manifest = walk.read.get(location)
        if location not in locations:
            found.append(Fault("orphan", key, "a file", "nothing: this run has no such record"))
        elif manifest is None:
            found.append(Fault("unfinished", key, "a file", "a manifest, once the stage has run"))
        elif isinstance(manifest, Manifest) and name not in names_of(manifest):
            found.append(Fault("orphan", key, "a file", "nothing: the manifest beside it does not name it"))
    return found


def names_of(manifest: Manifest) -> set[str]:
    """Every name that belongs into the folder of this record."""
    return {MANIFEST_NAME, TOMBSTONE_NAME, *(entry.stored_as for entry in manifest.files.values())}


def leftovers(store: Store) -> list[Fault]:
    """What writers that died left behind, where the store can tell."""
    names = store.unfinished() if isinstance(store, ShowsUnfinished) else []
    return [Fault("unfinished", name, "a temporary file", "nothing, unless a stage runs now") for name in names]


def first_line(text: str) -> str:
    """Enough of an error for one line."""
    return " ".join(text.split())[:300]
