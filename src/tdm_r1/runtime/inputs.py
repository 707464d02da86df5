"""What one task reads: its parents, each verified, and their digests."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from typing import Any, TypeVar

import pyarrow as pa

from tdm_r1.artifacts.manifest import Manifest, Provenance
from tdm_r1.artifacts.records import Base, GeneratorState, Paths, PromptSet, Rewards, Rollout, TrainingState
from tdm_r1.errors import ArtifactError
from tdm_r1.models.checkpoints import NO_CHECKPOINTS
from tdm_r1.models.progress import Progress
from tdm_r1.models.prompts import PromptTexts
from tdm_r1.models.world import ALONE, World
from tdm_r1.rng import Keys
from tdm_r1.runtime.checkpoints import StoredCheckpoints
from tdm_r1.runtime.layout import FEEDBACK, TRAINED, Task, shard_tasks
from tdm_r1.runtime.numerics import library_versions
from tdm_r1.runtime.run import AnyRecord, Run

Loaded = TypeVar("Loaded")


@dataclass
class Inputs:
    """Loads the parents of one task and remembers their digests: the lineage of what is committed."""

    run: Run
    task: Task
    progress: Progress
    ranks: World = ALONE
    resumable: bool = False
    started: datetime = field(default_factory=lambda: datetime.now(UTC))
    clock: float = field(default_factory=time.monotonic)
    parents: dict[str, str] = field(default_factory=dict)

    def load(self, task: Task, record: type[AnyRecord]) -> AnyRecord:
        loaded, manifest = self.run.load(task, record)
        self.parents[task.location] = manifest.digest
        return loaded

    def load_all(self, tasks: Sequence[Task], record: type[AnyRecord]) -> list[AnyRecord]:
        """Several at a time."""
        return self._noted(tasks, self.run.load_all(tasks, record))

    def _noted(self, tasks: Sequence[Task], found: Sequence[tuple[Loaded, Manifest]]) -> list[Loaded]:
        self.parents |= {task.location: manifest.digest for task, (_, manifest) in zip(tasks, found, strict=True)}
        return [loaded for loaded, _ in found]

    @property
    def keys(self) -> Keys:
        return Keys(self.run.config.seed, self.task.iteration)

    def world(self) -> World:
        """The ranks, after all parents were loaded.

        Raises:
            ArtifactError: when they have not read the same, or are not the same program.
        """
        code = {"code": metadata.version("tdm-r1"), **library_versions()}
        seen = {"run.json": self.run.config_digest, **self.parents, **code}
        for rank, text in enumerate(self.ranks.gather(json.dumps(seen))):
            other = json.loads(text)
            if differing := sorted(key for key in seen.keys() | other.keys() if seen.get(key) != other.get(key)):
                raise ArtifactError(
                    f"rank {rank} has another `{differing[0]}` than rank {self.ranks.rank}: "
                    f"{other.get(differing[0])}, not {seen.get(differing[0])}",
                    hint="start all ranks from one image, with a --root that every machine sees",
                )
        return self.ranks

    def together(self) -> dict[str, Any]:
        """What a training stage is told of its ranks and its earlier attempts, after all parents were loaded."""
        return {"world": self.world(), "checkpoints": self.checkpoints() or NO_CHECKPOINTS}

    def checkpoints(self) -> StoredCheckpoints | None:
        """Of this task, when it may leave any."""
        if not self.resumable or not self.run.config.distributed.checkpoint_every or self.task.stage not in TRAINED:
            return None
        return StoredCheckpoints(self.run, self.task, self.parents, self.ranks, self.provenance)

    def provenance(self) -> Provenance:
        """Of a record that is committed now."""
        config, finished = self.run.config, datetime.now(UTC)
        judged = bool(self.task.variant) or self.task.stage in ("reward_scoring", FEEDBACK)
        device, size = "cpu" if judged else config.numerics.device, self.ranks.size
        return Provenance(
            code_version=metadata.version("tdm-r1"),
            libraries=library_versions(),
            device=device if size == 1 else f"{device}, {size} processes",
            threads=config.numerics.threads,
            started=self.started,
            finished=finished,
            seconds=time.monotonic() - self.clock,
            seed_root=config.seed,
            image_digest=os.environ.get("TDM_R1_IMAGE_DIGEST"),
            base=None if judged else self.run.source.facts(),
        )

    def prompts(self) -> PromptSet:
        """All prompts with their embeddings."""
        return self.load(Task("encode_prompts"), PromptSet)

    def listed(self) -> PromptTexts:
        """All prompts without their embeddings, for those who choose some."""
        return self.run.prompts.listed()[0]

    def chosen(self, prompt_ids: Iterable[str]) -> PromptSet:
        """These prompts with their embeddings; all of them where the file is too small to read a part of it."""
        found, manifest = self.run.prompts.chosen(prompt_ids)
        self.parents[Task("encode_prompts").location] = manifest.digest
        return found

    def prompts_of(self, rollouts: Iterable[Rollout | Paths]) -> PromptSet:
        """As `chosen`, of these samples."""
        return self.chosen({name for part in rollouts for name in part.index["prompt_id"].to_pylist()})

    def texts(self) -> pa.Table:
        """The prompts without their embeddings, for those who only judge images."""
        table, manifest = self.run.load_table(Task("encode_prompts"), PromptSet, "prompts")
        self.parents[Task("encode_prompts").location] = manifest.digest
        return table

    def generator(self, task: Task) -> TrainingState:
        if task.stage == "distill_base":
            return self.load(task, Base)
        return self.load(task, GeneratorState)

    def rollouts(self, iteration: int) -> list[Rollout | Paths]:
        """All shards, as they are trained on."""
        return self._noted(tasks := shard_tasks("rollout", iteration, self.run.config), self.run.load_paths(tasks))

    def scored(self, iteration: int) -> list[tuple[Rollout | Paths, Rewards]]:
        rewards = self.load_all(shard_tasks("reward_scoring", iteration, self.run.config), Rewards)
        return list(zip(self.rollouts(iteration), rewards, strict=True))
