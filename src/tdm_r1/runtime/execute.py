"""Execute one task: load its parents, call the stage, commit what it returns."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

import pyarrow as pa

from tdm_r1.artifacts.codec import Record
from tdm_r1.artifacts.manifest import Manifest, Provenance
from tdm_r1.artifacts.records import (
    Base,
    Evaluation,
    Feedback,
    GeneratorState,
    PromptSet,
    Rewards,
    Rollout,
    SurrogateState,
    TrainingState,
    role_tensors,
)
from tdm_r1.artifacts.repository import commit, read_manifest, require_manifest
from tdm_r1.errors import ArtifactError
from tdm_r1.models.checkpoints import NO_CHECKPOINTS
from tdm_r1.models.progress import Progress, silent
from tdm_r1.models.world import ALONE, World
from tdm_r1.rng import Keys
from tdm_r1.runtime.ballots import collect
from tdm_r1.runtime.checkpoints import StoredCheckpoints
from tdm_r1.runtime.layout import FEEDBACK, TRAINED, Task, check, generator_after, generator_before, shard_tasks, window
from tdm_r1.runtime.lora_folder import starting_role
from tdm_r1.runtime.numerics import library_versions, require_trainable
from tdm_r1.runtime.run import AnyRecord, Run
from tdm_r1.stages.distill_base import distill_base
from tdm_r1.stages.encode_prompts import encode_prompts
from tdm_r1.stages.evaluation import evaluation, evaluation_again
from tdm_r1.stages.feedback import feedback
from tdm_r1.stages.generator_update import generator_update
from tdm_r1.stages.reward_scoring import reward_scoring
from tdm_r1.stages.rollout import rollout
from tdm_r1.stages.surrogate_update import surrogate_update
from tdm_r1.worlds.world import open_world


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
        found = self.run.load_all(tasks, record)
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
        return self.load(Task("encode_prompts"), PromptSet)

    def texts(self) -> pa.Table:
        """The prompts without their embeddings, for those who only judge images."""
        table, manifest = self.run.load_table(Task("encode_prompts"), PromptSet, "prompts")
        self.parents[Task("encode_prompts").location] = manifest.digest
        return table

    def generator(self, task: Task) -> TrainingState:
        if task.stage == "distill_base":
            return self.load(task, Base)
        return self.load(task, GeneratorState)

    def rollouts(self, iteration: int) -> list[Rollout]:
        return self.load_all(shard_tasks("rollout", iteration, self.run.config), Rollout)

    def scored(self, iteration: int) -> list[tuple[Rollout, Rewards]]:
        rewards = self.load_all(shard_tasks("reward_scoring", iteration, self.run.config), Rewards)
        return list(zip(self.rollouts(iteration), rewards, strict=True))


def _encode_prompts(inputs: Inputs) -> Record:
    run = inputs.run
    return encode_prompts(open_world(run.config.world), backbone=run.backbone)


def _distill_base(inputs: Inputs) -> Record:
    run = inputs.run
    return distill_base(
        inputs.prompts(),
        start=starting_role(run.config, run.backbone.base(), run.source.revision),
        backbone=run.backbone,
        config=run.config,
        keys=inputs.keys,
        progress=inputs.progress,
        **inputs.together(),
    )


def _rollout(inputs: Inputs) -> Record:
    run, task = inputs.run, inputs.task
    state = inputs.generator(generator_before(task.iteration)).state
    return rollout(
        inputs.prompts(),
        role_tensors(state, "generator"),
        shard=task.shard,
        backbone=run.backbone,
        config=run.config,
        keys=inputs.keys,
    )


def _reward_scoring(inputs: Inputs) -> Record:
    run, task = inputs.run, inputs.task
    images = inputs.load(Task("rollout", task.iteration, task.shard), Rollout)
    said = None
    if run.config.reward.people:
        said = inputs.load(Task(FEEDBACK, task.iteration, 0, task.variant), Feedback)
    return reward_scoring(inputs.texts(), images, said, judges=run.judges, config=run.config, progress=inputs.progress)


def _feedback(inputs: Inputs) -> Record:
    run, task = inputs.run, inputs.task
    rollouts = inputs.rollouts(task.iteration)
    collected = collect(run.store, task.variant, task.iteration, {inputs.parents[t.location] for t in _rolled(inputs)})
    return feedback(rollouts, collected.votes, collected.undone)


def _rolled(inputs: Inputs) -> list[Task]:
    return shard_tasks("rollout", inputs.task.iteration, inputs.run.config)


def _surrogate_update(inputs: Inputs) -> Record:
    run, iteration = inputs.run, inputs.task.iteration
    previous = inputs.load(Task("surrogate_update", iteration - 1), SurrogateState) if iteration > 1 else None
    scored = [(number, inputs.scored(number)) for number in window(iteration, run.config)]
    return surrogate_update(
        inputs.prompts(),
        scored,
        previous,
        backbone=run.backbone,
        config=run.config,
        keys=inputs.keys,
        progress=inputs.progress,
        **inputs.together(),
    )


def _generator_update(inputs: Inputs) -> Record:
    run, iteration = inputs.run, inputs.task.iteration
    return generator_update(
        inputs.prompts(),
        inputs.rollouts(iteration),
        inputs.load(Task("surrogate_update", iteration), SurrogateState),
        inputs.generator(generator_before(iteration)),
        first=iteration == 1,
        backbone=run.backbone,
        config=run.config,
        keys=inputs.keys,
        progress=inputs.progress,
        **inputs.together(),
    )


def _evaluation(inputs: Inputs) -> Record:
    run, iteration = inputs.run, inputs.task.iteration
    if inputs.task.variant:
        drawn = inputs.load(Task("evaluation", iteration), Evaluation)
        return evaluation_again(inputs.texts(), drawn, judges=run.judges, config=run.config, keys=inputs.keys)
    state = inputs.generator(generator_after(iteration)).state
    surrogate = None
    if iteration and run.config.evaluation.surrogate_steps:
        surrogate = inputs.load(Task("surrogate_update", iteration), SurrogateState).followed
    return evaluation(
        inputs.prompts(),
        role_tensors(state, "generator_ema"),
        name="tdm-r1" if iteration else "tdm",
        with_teacher=iteration == 0,
        surrogate=surrogate,
        judges=run.judges,
        backbone=run.backbone,
        config=run.config,
        keys=inputs.keys,
    )


CALLS: dict[str, Callable[[Inputs], Record]] = {
    "encode_prompts": _encode_prompts,
    "distill_base": _distill_base,
    "rollout": _rollout,
    "feedback": _feedback,
    "reward_scoring": _reward_scoring,
    "surrogate_update": _surrogate_update,
    "generator_update": _generator_update,
    "evaluation": _evaluation,
}


def execute(
    run: Run,
    task: Task,
    *,
    progress: Progress = silent,
    version: int | None = None,
    world: World = ALONE,
    resumable: bool = False,
) -> Manifest:
    """Commit a task's record, or return the manifest of the one that is already there.

    A stage that fails commits nothing, and of several ranks only the first commits. With `version`, a replay lays the
    record out as that version did. A `resumable` stage leaves checkpoints and begins at the newest.
    """
    check(task, run.config)
    present = read_manifest(run.store, task.location)
    if world.gather("there" if present else "")[0]:
        return present or require_manifest(run.store, task.location)
    if task.stage in TRAINED:
        require_trainable(run.config.model.dtype)
    run.store.require_writable()
    inputs = Inputs(run, task, progress, world, resumable)
    record = CALLS[task.stage](inputs)
    if world.rank:
        world.gather("")  # the first rank comes here after its commit
        return require_manifest(run.store, task.location)
    manifest = commit(
        run.store,
        task.location,
        record,
        parents=inputs.parents,
        config_digest=run.config_digest,
        provenance=inputs.provenance(),
        version=version,
    )
    if (checkpoints := inputs.checkpoints()) is not None:
        checkpoints.forget()
    world.gather("committed")
    return manifest
