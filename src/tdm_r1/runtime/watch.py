"""What is known of a run as a whole, from one listing of its storage, whoever works on it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tdm_r1.artifacts.leftovers import Entry
from tdm_r1.artifacts.repository import MANIFEST_NAME, read_manifest
from tdm_r1.artifacts.store import Store
from tdm_r1.config import RunConfig
from tdm_r1.runtime.audit_reading import parse_location
from tdm_r1.runtime.layout import STOP_FILE, Task, complete_iterations
from tdm_r1.runtime.observe import Observer, shelf_of
from tdm_r1.runtime.record_samples import stage_label
from tdm_r1.runtime.sweep import sweepable
from tdm_r1.telemetry.board import Sample, sample
from tdm_r1.telemetry.outlets import Say, harmless

OTHER = "other"


def ages_of(entries: Sequence[Entry]) -> dict[Task, float]:
    """Seconds since each record was committed, by the store's clock."""
    manifests = (e for e in entries if e.key.endswith(f"/{MANIFEST_NAME}"))
    found = ((parse_location(entry.key.removesuffix(f"/{MANIFEST_NAME}")), entry.age) for entry in manifests)
    return {task: age for task, age in found if task is not None}


def whole_run(entries: Sequence[Entry], config: RunConfig, run: str, now: float) -> list[Sample]:
    """Progress, size and backlog of a run.

    Args:
        now: seconds since 1970, when the listing was made.
    """
    ages = ages_of(entries)
    there = {task.location for task in ages}
    waiting = [age for task, age in ages.items() if task.stage == "rollout" and scored(task) not in there]
    found = [
        sample("run_iterations", config.iterations, run=run),
        sample("run_iterations_complete", complete_iterations(there, config), run=run),
        sample("run_stopped", any(entry.key == STOP_FILE for entry in entries), run=run),
        sample("scoring_backlog_shards", len(waiting), run=run),
        sample("scoring_backlog_age_seconds", max(waiting, default=0.0), run=run),
    ]
    if ages:
        found.append(sample("run_last_commit_timestamp_seconds", now - min(ages.values()), run=run))
    for stage, count in counted(stage_label(task) for task in ages).items():
        found.append(sample("run_records", count, run=run, stage=stage))
    for stage, size in sizes(entries).items():
        found.append(sample("run_stored_bytes", size, run=run, stage=stage))
    return found


def scored(rollout: Task) -> str:
    """Where the scores of a rollout lie."""
    return Task("reward_scoring", rollout.iteration, rollout.shard).location


def counted(names: Iterator[str]) -> dict[str, int]:
    """How often each name comes."""
    found: dict[str, int] = {}
    for name in names:
        found[name] = found.get(name, 0) + 1
    return found


def sizes(entries: Sequence[Entry]) -> dict[str, int]:
    """Bytes by stage, leftovers of killed writers included; what belongs to none is `other`."""
    found: dict[str, int] = {}
    for entry in entries:
        task = parse_location(entry.key.rpartition("/")[0])
        name = stage_label(task) if task else OTHER
        found[name] = found.get(name, 0) + entry.size
    return found


class Watch:
    """Looks at a run's storage again and again.

    Args:
        records: also read what others commit; the first look takes the newest record of each stage and shard.
    """

    def __init__(self, observer: Observer, store: Store, config: RunConfig, say: Say, *, records: bool) -> None:
        self._observer, self._store, self._config, self._say, self._records = observer, store, config, say, records
        self._seen: set[Task] = set()

    def look(self) -> None:
        """Publish the run as a whole, and the records that are new."""
        with harmless(self._say):
            entries = sweepable(self._store).objects()
            self._observer.whole(whole_run(entries, self._config, self._observer.run, time.time()))
            if self._records:
                self._read(set(ages_of(entries)))

    def _read(self, there: set[Task]) -> None:
        newest = {shelf_of(task): task for task in sorted(there - self._seen, key=lambda task: task.iteration)}
        self._seen = there
        for task in newest.values():
            manifest = read_manifest(self._store, task.location)
            if manifest is not None:
                self._observer.seen(self._store, self._config, task, manifest)

    @contextmanager
    def kept(self, every: float) -> Iterator[None]:
        """Look every so many seconds beside what happens in the block, and once more after it."""
        over = threading.Event()

        def again() -> None:
            self.look()
            while not over.wait(every):
                self.look()

        thread = threading.Thread(target=again, name="metrics", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join(30)
            self.look()
