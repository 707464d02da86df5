"""Retention: drop the heavy files of old iterations, and leave a tombstone that says so.

Manifests, reward tables, metrics, evaluations and generator weights stay, so that the lineage, the
figures and every generator of a pruned run can still be read. Only its replay is lost.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Final

from tdm_r1.artifacts.manifest import Manifest
from tdm_r1.artifacts.records import RECORDS
from tdm_r1.artifacts.repository import read_manifest
from tdm_r1.artifacts.store import Store
from tdm_r1.artifacts.tombstone import bury, write_tombstone
from tdm_r1.config import RunConfig
from tdm_r1.runtime.archive import Archive
from tdm_r1.runtime.layout import Task, all_tasks, iteration_tasks, parents_of

HEAVY: Final[Mapping[str, frozenset[str]]] = MappingProxyType(
    {
        "rollout": frozenset({"index"}),
        "surrogate_update": frozenset({"state", "optimizer"}),
        "generator_update": frozenset({"optimizer"}),
    }
)
"""Fields whose file may be dropped, by stage. The images and states of a rollout lie in the file of its index."""


@dataclass(frozen=True)
class Retention:
    """Which iterations keep everything."""

    keep_last: int
    keep_every: int
    """Multiples of this are kept; 0 keeps none of them."""

    def keeps(self, iteration: int, newest: int) -> bool:
        return iteration > newest - self.keep_last or (self.keep_every > 0 and iteration % self.keep_every == 0)

    def __str__(self) -> str:
        return f"--keep-last {self.keep_last} --keep-every {self.keep_every}"


@dataclass(frozen=True)
class Drop:
    """Files of one record that would go."""

    location: str
    iteration: int
    manifest: Manifest
    names: tuple[str, ...]
    """As the manifest names them."""

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(self.manifest.files[name].size for name in self.names)


@dataclass(frozen=True)
class Plan:
    """What a retention rule drops from a run."""

    rule: Retention
    newest: int
    """Last iteration with a committed record; 0 when there is none."""
    drops: tuple[Drop, ...]
    needed: tuple[str, ...]
    """Locations that the rule would prune, kept because a stage to come reads them."""

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(drop.size for drop in self.drops)


def plan_prune(run: Archive, rule: Retention) -> Plan:
    """What `rule` would drop from what is committed now. Nothing is changed."""
    committed = {task: m for task in all_tasks(run.config) if (m := read_manifest(run.store, task.location))}
    newest = max((task.iteration for task in committed), default=0)
    needed = still_read(set(committed), newest, run.config)
    drops, kept = [], []
    for task, manifest in committed.items():
        if task.stage not in HEAVY or rule.keeps(task.iteration, newest):
            continue
        names = heavy_files(run.store, task, manifest)
        if names and task in needed:
            kept.append(task.location)
        elif names:
            drops.append(Drop(task.location, task.iteration, manifest, names))
    return Plan(rule, newest, tuple(drops), tuple(kept))


def still_read(committed: set[Task], newest: int, config: RunConfig) -> set[Task]:
    """The tasks that an uncommitted one reads, and those that iteration `newest + 1` would.

    The second keeps the replay window and the newest states with their optimizers also in a finished run.
    """
    ahead = [task for task in all_tasks(config) if task not in committed] + iteration_tasks(newest + 1, config)
    return {parent for task in ahead for parent in parents_of(task, config)}


def heavy_files(store: Store, task: Task, manifest: Manifest) -> tuple[str, ...]:
    """The heavy files of a record that are there. One that is missing is never called pruned."""
    fields = RECORDS[task.stage].files()
    return tuple(
        name
        for name, entry in manifest.files.items()
        if fields[name] in HEAVY[task.stage] and store.exists(f"{task.location}/{entry.stored_as}")
    )


def prune(run: Archive, plan: Plan) -> None:
    """Do what `plan` says: of each record the tombstone first, then its files.

    Whoever is interrupted in between runs it again: a tombstone that stands is kept, and its files go.

    Raises:
        ArtifactError: when a tombstone stands that does not name the files of the plan.
    """
    now = datetime.now(UTC)
    for drop in plan.drops:
        tombstone = bury(drop.manifest, list(drop.names), pruned=now, rule=f"prune {plan.rule}")
        write_tombstone(run.store, drop.location, tombstone)
        for name in drop.names:
            run.store.delete(f"{drop.location}/{drop.manifest.files[name].stored_as}")
