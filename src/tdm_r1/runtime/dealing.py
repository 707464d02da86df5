"""Among how many processes the work of a training stage can be dealt; known before one of them starts."""

from __future__ import annotations

from collections.abc import Mapping

from tdm_r1.config import RunConfig
from tdm_r1.errors import ConfigError
from tdm_r1.runtime.layout import ONCE, TRAINED, Task, check, window


def require_all_fit(processes: Mapping[str, int], config: RunConfig) -> None:
    """Refuse stages that shall run in more processes than can share the work of their first execution.

    Args:
        processes: number by stage; 1 always fits.

    Raises:
        ConfigError: of `require_fit`.
    """
    for stage, size in processes.items():
        if size > 1:
            require_fit(Task(stage, 0 if stage in ONCE else 1), config, size)


def require_fit(task: Task, config: RunConfig, size: int) -> None:
    """Refuse a number of processes among which the work of a stage cannot be dealt.

    Raises:
        ConfigError: for a stage that one process does, or for more processes than parts of an optimizer step.
    """
    check(task, config)
    if task.stage not in TRAINED:
        raise ConfigError(
            f"`{task.stage}` is to run in {size} processes, but one does it",
            hint=f"start it without torchrun; the stages for torchrun are {', '.join(TRAINED)}",
        )
    count, knobs = _parts(task, config)
    whole = task.stage == "distill_base"
    if size > count or (whole and count % size):
        wanted = f"a divisor of {count}" if whole else f"at most {count}"
        raise ConfigError(
            f"`{task.stage}` is to run in {size} processes, expected {wanted}: {knobs}", hint=_smaller(task.stage)
        )


def _parts(task: Task, config: RunConfig) -> tuple[int, str]:
    """Into how many parts an optimizer step can be dealt, and which knobs say so."""
    if task.stage == "distill_base":
        count = config.distill.batch // config.sampler.steps or 1
        return count, f"distill.batch={config.distill.batch} is {count} trajectories for each of the sampler's steps"
    if task.stage == "surrogate_update":
        section = config.surrogate
        groups = min(section.minibatch_groups, config.rollout.groups * len(window(task.iteration, config)))
        count = -(-groups // section.microbatch_groups)
        return count, f"{groups} groups by surrogate.microbatch_groups={section.microbatch_groups} are {count} parts"
    rows = min(config.generator.minibatch, config.rollout.groups * config.rollout.group_size)
    count = -(-rows // config.generator.microbatch)
    return count, f"{rows} trajectories by generator.microbatch={config.generator.microbatch} are {count} parts"


def _smaller(stage: str) -> str:
    knob = {
        "distill_base": "distill.batch, a multiple of sampler.steps times the processes",
        "surrogate_update": "a smaller surrogate.microbatch_groups: a group is never split",
        "generator_update": "a smaller generator.microbatch",
    }[stage]
    fewer = "start fewer processes (--nproc-per-node; `processes` in [pools.update] of a profile)"
    return f"{fewer}, or begin a run with {knob}"
