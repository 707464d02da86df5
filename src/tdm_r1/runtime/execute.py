"""Execute one task: load its parents, call the stage, commit what it returns."""

from __future__ import annotations

from collections.abc import Callable

from tdm_r1.artifacts.codec import Record
from tdm_r1.artifacts.manifest import Manifest
from tdm_r1.artifacts.records import Evaluation, Feedback, Rollout, SurrogateState, role_tensors
from tdm_r1.artifacts.repository import commit, read_manifest, require_manifest
from tdm_r1.models.progress import Progress, silent
from tdm_r1.models.world import ALONE, World
from tdm_r1.runtime.ballots import collect
from tdm_r1.runtime.inputs import Inputs
from tdm_r1.runtime.layout import FEEDBACK, TRAINED, Task, check, generator_after, generator_before, shard_tasks, window
from tdm_r1.runtime.lora_folder import starting_role
from tdm_r1.runtime.numerics import require_trainable
from tdm_r1.runtime.run import Run
from tdm_r1.runtime.warm import open_base
from tdm_r1.stages.distill_base import distill_base
from tdm_r1.stages.encode_prompts import encode_prompts
from tdm_r1.stages.evaluation import evaluation, evaluation_again, held_out
from tdm_r1.stages.feedback import feedback
from tdm_r1.stages.generator_update import generator_update
from tdm_r1.stages.reward_scoring import reward_scoring
from tdm_r1.stages.rollout import drawn_prompts, rollout
from tdm_r1.stages.surrogate_update import surrogate_update
from tdm_r1.worlds.world import open_world


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
    prompt_ids = drawn_prompts(inputs.listed(), shard=task.shard, config=run.config, keys=inputs.keys)
    return rollout(
        inputs.chosen(prompt_ids),
        prompt_ids,
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
    tasks = shard_tasks("rollout", task.iteration, run.config)
    rollouts = inputs.load_all(tasks, Rollout)  # with their images: a vote is for a picture
    collected = collect(run.store, task.variant, task.iteration, {inputs.parents[one.location] for one in tasks})
    return feedback(rollouts, collected.votes, collected.undone)


def _surrogate_update(inputs: Inputs) -> Record:
    run, iteration = inputs.run, inputs.task.iteration
    previous = inputs.load(Task("surrogate_update", iteration - 1), SurrogateState) if iteration > 1 else None
    scored = [(number, inputs.scored(number)) for number in window(iteration, run.config)]
    return surrogate_update(
        inputs.prompts_of(rollout for _, shards in scored for rollout, _ in shards),
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
    rollouts = inputs.rollouts(iteration)
    return generator_update(
        inputs.prompts_of(rollouts),
        rollouts,
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
        inputs.chosen(held_out(inputs.listed(), run.config)),
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
    open_base(run, task)
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
