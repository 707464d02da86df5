"""Replay: execute a committed stage again from its recorded parents, and compare what comes out.

The run is only read. What the replay commits goes to a store of its own, beside which the original
shows through everywhere but at the replayed location; so every stage starts from recorded parents,
also when a whole iteration is replayed.
"""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tdm_r1.artifacts.manifest import Manifest, Provenance
from tdm_r1.artifacts.repository import fetch_verified, read_manifest
from tdm_r1.artifacts.store import Store, open_store
from tdm_r1.config import RunConfig
from tdm_r1.errors import ArtifactError, ConfigError, MissingParentError
from tdm_r1.models.progress import Progress, silent
from tdm_r1.runtime.compare import Difference, compare_files
from tdm_r1.runtime.execute import execute
from tdm_r1.runtime.layout import BASE, ONCE, PROMPTS, SHARDED, Task, all_tasks, check
from tdm_r1.runtime.run import Run
from tdm_r1.runtime.run_file import read_config


@dataclass(frozen=True)
class Environment:
    """One thing about the machine or its software that was not the same."""

    name: str
    recorded: str
    now: str


@dataclass(frozen=True)
class Replayed:
    """A committed record beside what its stage makes now."""

    location: str
    recorded: str
    """Digest of the record."""
    replayed: str
    difference: Difference | None
    """None when the digests agree."""
    environment: tuple[Environment, ...]
    seconds: float
    """The stage took now."""

    @property
    def identical(self) -> bool:
        return self.recorded == self.replayed


class OverlayStore:
    """Two stores in one: keys at or below `location` live in `above`, all others are those of `below`, read-only."""

    def __init__(self, below: Store, above: Store, location: str) -> None:
        self._below, self._above, self._location = below, above, location

    @property
    def root(self) -> str:
        return self._below.root

    def exists(self, key: str) -> bool:
        return self._of(key).exists(key)

    def read_bytes(self, key: str) -> bytes:
        return self._of(key).read_bytes(key)

    def fetch(self, key: str, local: Path) -> None:
        self._of(key).fetch(key, local)

    def read_range(self, key: str, start: int, length: int) -> bytes:
        return self._of(key).read_range(key, start, length)

    def list(self, prefix: str) -> list[str]:
        below = [key for key in self._below.list(prefix) if not self._is_above(key)]
        return sorted(below + [key for key in self._above.list(prefix) if self._is_above(key)])

    def write_bytes_if_absent(self, key: str, data: bytes) -> bool:
        return self._writable(key).write_bytes_if_absent(key, data)

    def put_file_if_absent(self, local: Path, key: str) -> bool:
        return self._writable(key).put_file_if_absent(local, key)

    def require_writable(self) -> None:
        self._above.require_writable()

    def is_exclusive(self, size: int) -> bool:
        return self._above.is_exclusive(size)

    def age(self, key: str) -> float | None:
        return self._of(key).age(key)

    def overwrite(self, key: str, data: bytes) -> None:
        self._writable(key).overwrite(key, data)

    def delete(self, key: str) -> None:
        self._writable(key).delete(key)

    def delete_prefix(self, prefix: str) -> None:
        self._writable(prefix).delete_prefix(prefix)

    def _is_above(self, key: str) -> bool:
        return f"{key}/".startswith(f"{self._location}/")

    def _of(self, key: str) -> Store:
        return self._above if self._is_above(key) else self._below

    def _writable(self, key: str) -> Store:
        if not self._is_above(key):
            raise ArtifactError(f"`{key}` may not be written: a replay writes below `{self._location}` only")
        return self._above


def targets(text: str, config: RunConfig) -> list[Task]:
    """The tasks that `N`, `N/STAGE`, `N/STAGE/SHARD`, `prompts` or `base` names.

    Raises:
        ConfigError: for another text, or what this run does not have.
    """
    once = dict(zip((PROMPTS, BASE), ONCE, strict=True))
    if text in once:
        return [Task(once[text])]
    match = re.fullmatch(r"(?:iter-)?(\d{1,5})(?:/([a-z_]+)(?:/(?:shard-)?(\d{1,4}))?)?", text)
    if match is None or match[2] in ONCE or (match[3] and match[2] not in SHARDED):
        raise ConfigError(
            f"--replay `{text}` names no stage of a run",
            hint="write an iteration (7), a stage (7/rollout), a shard (7/rollout/0), or `prompts` or `base`",
        )
    number, stage = int(match[1]), match[2]
    if match[3]:
        found = [Task(stage, number, int(match[3]))]
    else:
        found = [t for t in all_tasks(config) if t.iteration == number and t.stage == (stage or t.stage)]
        found = [t for t in found if t.stage not in ONCE] or [Task(stage or "rollout", number)]
    for task in found:
        check(task, config)
    return found


def replay(root: str, text: str, *, progress: Progress = silent) -> list[Replayed]:
    """Execute the committed tasks that `text` names again, each from its recorded parents.

    Raises:
        MissingParentError: when none of them is committed, or a parent is not.
        CorruptArtifactError: when a parent is not what its manifest says.
    """
    original = open_store(root)
    config = read_config(original)
    tasks = [(task, read_manifest(original, task.location)) for task in targets(text, config)]
    committed = [(task, manifest) for task, manifest in tasks if manifest is not None]
    if not committed:
        raise MissingParentError(
            f"`{root}/{tasks[0][0].location}` has no manifest: there is nothing to replay",
            hint=f"see what is committed with `tdm-r1 inspect --root {root}`",
        )
    run = Run(original, config)
    with tempfile.TemporaryDirectory(prefix="tdm-r1-") as scratch:
        above = open_store(scratch)
        return [replay_one(run, original, above, task, manifest, progress) for task, manifest in committed]


def replay_one(run: Run, original: Store, above: Store, task: Task, recorded: Manifest, progress: Progress) -> Replayed:
    """Execute one task with the original showing through everywhere but at its own location."""
    run.store = OverlayStore(original, above, task.location)
    replayed = execute(run, task, progress=progress, version=recorded.version)
    same = replayed.digest == recorded.digest
    difference = None if same else first_difference(original, above, task.location, recorded, replayed)
    environment = environment_differences(recorded.provenance, replayed.provenance)
    above.delete_prefix(task.location)
    return Replayed(
        task.location, recorded.digest, replayed.digest, difference, environment, replayed.provenance.seconds
    )


def first_difference(
    original: Store, above: Store, location: str, recorded: Manifest, replayed: Manifest
) -> Difference:
    """What makes two digests differ: a file's content, its encoding, a parent, or the configuration."""
    for name, entry in recorded.files.items():
        other = replayed.files[name]
        if entry.sha256 == other.sha256:
            continue
        with tempfile.TemporaryDirectory(prefix="tdm-r1-") as scratch:
            left, right = Path(scratch, "recorded"), Path(scratch, "replayed")
            fetch_verified(original, f"{location}/{entry.stored_as}", left, entry)
            fetch_verified(above, f"{location}/{other.stored_as}", right, other)
            found = compare_files(left, right, name)
        return found or Difference(f"{name}, encoding of equal content", f"{entry.size:,} B", f"{other.size:,} B")
    for parent in sorted(recorded.parents.keys() | replayed.parents.keys()):
        was, now = (manifest.parents.get(parent, "absent")[:12] for manifest in (recorded, replayed))
        if was != now:
            return Difference(f"parent {parent}, digest", was, now)
    if recorded.config_digest != replayed.config_digest:
        return Difference("configuration, digest", recorded.config_digest[:12], replayed.config_digest[:12])
    rows = [str({name: entry.rows for name, entry in m.files.items()}) for m in (recorded, replayed)]
    return Difference("rows in the manifest", rows[0], rows[1])


def environment_differences(recorded: Provenance, now: Provenance) -> tuple[Environment, ...]:
    """What provenance knows about code, libraries, threads and device, where it differs."""
    left, right = described(recorded), described(now)
    names = sorted(left.keys() | right.keys())
    return tuple(
        Environment(name, left.get(name, "absent"), right.get(name, "absent"))
        for name in names
        if left.get(name) != right.get(name)
    )


def described(provenance: Provenance) -> dict[str, str]:
    """What a result may depend on beside its parents, configuration and keys."""
    return {
        "code": provenance.code_version,
        "device": provenance.device,
        "threads": str(provenance.threads),
        "image": provenance.image_digest or "none",
        **provenance.libraries,
    }
