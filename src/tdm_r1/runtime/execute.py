"""Execute one task: load its parents, call the stage, commit what it returns."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata

from tdm_r1.artifacts.codec import Record
from tdm_r1.artifacts.manifest import Manifest, Provenance
from tdm_r1.artifacts.records import (
    Base,
    Evaluation,
    GeneratorState,
    PromptSet,
    Rewards,
    Rollout,
    SurrogateState,
    TrainingState,
    role_tensors,
)
from tdm_r1.artifacts.repository import commit, read_manifest
from tdm_r1.models.progress import Progress, silent
from tdm_r1.rng import Keys
from tdm_r1.runtime.layout import Task, check, generator_after, generator_before, shard_tasks, window
from tdm_r1.runtime.lora_folder import starting_role
from tdm_r1.runtime.numerics import library_versions
from tdm_r1.runtime.run import AnyRecord, Run
from tdm_r1.stages.distill_base import distill_base
from tdm_r1.stages.encode_prompts import encode_prompts
from tdm_r1.stages.evaluation import evaluation, evaluation_again
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
    parents: dict[str, str] = field(default_factory=dict)

    def load(self, task: Task, record: type[AnyRecord]) -> AnyRecord:
        loaded, manifest = self.run.load(task, record)
        self.parents[task.location] = manifest.digest
        return loaded

    @property
    def keys(self) -> Keys:
        return Keys(self.run.config.seed, self.task.iteration)

    def prompts(self) -> PromptSet:
        return self.load(Task("encode_prompts"), PromptSet)

    def generator(self, task: Task) -> TrainingState:
        if task.stage == "distill_base":
            return self.load(task, Base)
        return self.load(task, GeneratorState)

    def rollouts(self, iteration: int) -> list[Rollout]:
        return [self.load(task, Rollout) for task in shard_tasks("rollout", iteration, self.run.config)]

    def scored(self, iteration: int) -> list[tuple[Rollout, Rewards]]:
        rewards = [self.load(task, Rewards) for task in shard_tasks("reward_scoring", iteration, self.run.config)]
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
    return reward_scoring(inputs.prompts(), images, judges=run.judges, config=run.config, progress=inputs.progress)


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
    )


def _evaluation(inputs: Inputs) -> Record:
    run, iteration = inputs.run, inputs.task.iteration
    if inputs.task.variant:
        drawn = inputs.load(Task("evaluation", iteration), Evaluation)
        return evaluation_again(inputs.prompts(), drawn, judges=run.judges, config=run.config, keys=inputs.keys)
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
    "reward_scoring": _reward_scoring,
    "surrogate_update": _surrogate_update,
    "generator_update": _generator_update,
    "evaluation": _evaluation,
}


def execute(run: Run, task: Task, *, progress: Progress = silent, version: int | None = None) -> Manifest:
    """Commit a task's record, or return the manifest of the one that is already there.

    A stage that fails commits nothing. With `version`, a replay lays the record out as that version did.
    """
    check(task, run.config)
    present = read_manifest(run.store, task.location)
    if present is not None:
        return present
    run.store.require_writable()
    started, clock = datetime.now(UTC), time.monotonic()
    inputs = Inputs(run, task, progress)
    record = CALLS[task.stage](inputs)
    provenance = Provenance(
        code_version=metadata.version("tdm-r1"),
        libraries=library_versions(),
        device=run.config.numerics.device,
        threads=run.config.numerics.threads,
        started=started,
        finished=datetime.now(UTC),
        seconds=time.monotonic() - clock,
        seed_root=run.config.seed,
        image_digest=os.environ.get("TDM_R1_IMAGE_DIGEST"),
        base=None if task.stage == "reward_scoring" else run.source.facts(),
    )
    return commit(
        run.store,
        task.location,
        record,
        parents=inputs.parents,
        config_digest=run.config_digest,
        provenance=provenance,
        version=version,
    )
