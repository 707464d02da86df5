"""Checkpoints inside a long stage: its record so far, committed beside the run and deleted once the stage commits.

A checkpoint is a record of the stage's own kind below `checkpoints/`, verified like any other, whole whatever the
number of ranks: so a retry goes on from it with as many ranks as it likes. One of other parents is never taken.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Final

from tdm_r1 import console
from tdm_r1.artifacts.manifest import Manifest, Provenance
from tdm_r1.artifacts.records import RECORDS, TrainingState
from tdm_r1.artifacts.repository import MANIFEST_NAME, commit, load, read_manifest
from tdm_r1.errors import ArtifactError, StorageFullError, TemporaryError
from tdm_r1.models.checkpoints import Saved
from tdm_r1.models.world import World
from tdm_r1.runtime.layout import CHECKPOINTS, Task
from tdm_r1.runtime.run import Run

STEP: Final = "step-"


class StoredCheckpoints:
    """Those of one task, in the run's store; the first rank writes, every rank reads."""

    def __init__(
        self, run: Run, task: Task, parents: dict[str, str], world: World, provenance: Callable[[], Provenance]
    ) -> None:
        self._run, self._task, self._parents, self._world, self._provenance = run, task, parents, world, provenance
        self._folder = f"{CHECKPOINTS}/{task.location}"

    @cached_property
    def found(self) -> Saved | None:
        choice = self._newest() if self._world.rank == 0 else None
        steps = int(self._world.gather(str(choice.steps if choice else 0))[0])
        if steps == 0 or choice is not None:
            return choice
        try:
            return self._load(steps)
        except ArtifactError as error:
            raise TemporaryError(
                f"the checkpoint `{self._location(steps)}`, which rank 0 has read, is gone or damaged: {error.message}",
                hint="run the same command again",
            ) from error

    def _newest(self) -> Saved | None:
        """The newest one that fits and is whole; what is damaged goes, since the stage will store it again."""
        for steps in sorted(self._steps(), reverse=True):
            try:
                if self._fits(read_manifest(self._run.store, self._location(steps))):
                    return self._load(steps)
            except ArtifactError as error:
                console.ERR.print(f"checkpoint left aside: {error.message}", soft_wrap=True)
            self._delete(steps)
        return None

    def _fits(self, manifest: Manifest | None) -> bool:
        return (
            manifest is not None
            and manifest.parents == self._parents
            and manifest.config_digest == self._run.config_digest
        )

    def _load(self, steps: int) -> Saved:
        record, _ = load(self._run.store, self._location(steps), RECORDS[self._task.stage])
        assert isinstance(record, TrainingState)
        return Saved(steps, record)

    def offer(self, steps: int, record: Callable[[], TrainingState]) -> None:
        if steps % self._run.config.distributed.checkpoint_every:
            return
        state = record()
        if self._world.rank:
            return
        try:
            self._store(steps, state)
        except (ArtifactError, StorageFullError, TemporaryError) as error:  # the stage itself is none the worse
            console.ERR.print(f"no checkpoint after {steps} steps: {error.message}", soft_wrap=True)

    def _store(self, steps: int, state: TrainingState) -> None:
        older = [number for number in self._steps() if number < steps]
        commit(
            self._run.store,
            self._location(steps),
            state,
            parents=self._parents,
            config_digest=self._run.config_digest,
            provenance=self._provenance(),
        )
        for number in older:
            self._delete(number)

    def _location(self, steps: int) -> str:
        return f"{self._folder}/{STEP}{steps:06d}"

    def _steps(self) -> list[int]:
        """Steps of which anything is stored."""
        names = {key.removeprefix(f"{self._folder}/").partition("/")[0] for key in self._run.store.list(self._folder)}
        return [int(name.removeprefix(STEP)) for name in names if name.startswith(STEP)]

    def _delete(self, steps: int) -> None:
        """The manifest first, so that no reader finds half a record."""
        self._run.store.delete(f"{self._location(steps)}/{MANIFEST_NAME}")
        self._run.store.delete_prefix(self._location(steps))

    def forget(self) -> None:
        """Delete all of them."""
        for steps in self._steps():
            self._delete(steps)
