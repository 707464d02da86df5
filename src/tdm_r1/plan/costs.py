"""What the stages cost, measured: seconds and bytes per unit of work, from the manifests of a run or as shipped.

A unit is what a stage's duration grows with: a network call for one trajectory, an image, a gradient of one sample. A
measured stage is planned for another size by its units alone, so a measurement near the planned size is better.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from importlib.resources import files
from itertools import pairwise
from typing import Any, Final

from tdm_r1.artifacts.store import Store
from tdm_r1.config import GeneratorConfig, RunConfig
from tdm_r1.errors import ConfigError
from tdm_r1.runtime.layout import STAGES, Task, iteration_tasks, once_tasks

SHIPPED: Final = "shapes_cpu"
STATES: Final = frozenset({"encode_prompts", "distill_base", "surrogate_update", "generator_update"})
"""Stages whose record has a size of its own, whatever the work was."""


@dataclass(frozen=True, kw_only=True)
class StageCost:
    """One stage, measured."""

    seconds: float
    """Per unit of work."""
    spread: float
    """Standard deviation of a task's seconds over their mean; 0 with less than two tasks."""
    bytes: float
    """Per sample, or of the whole record for a stage of `STATES`."""
    tasks: int
    """How many were measured."""


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Of all stages, and where they were measured."""

    source: str
    model: str
    """Weights that were measured: other weights cost something else."""
    device: str
    threads: int
    between: float
    """Seconds between the end of a stage and the beginning of the next: commit, exit, start, imports."""
    stages: Mapping[str, StageCost]

    def seconds(self, task: Task, config: RunConfig) -> float:
        """Expected duration of a task, as its manifest would say; none for a generator that does not move yet."""
        return 0.0 if idle(task, config) else self.stages[task.stage].seconds * units(task.stage, config)

    def bytes(self, task: Task, config: RunConfig) -> float:
        """Expected size of its record."""
        per = self.stages[task.stage].bytes
        return per if task.stage in STATES else per * samples(task.stage, config)


def samples(stage: str, config: RunConfig) -> int:
    """Samples in one record of a stage: trajectories of a shard, images, or trajectories trained on."""
    shard = config.rollout.groups * config.rollout.group_size // config.rollout.shards
    trained = config.surrogate.minibatch_groups * config.rollout.group_size
    return {
        "rollout": shard,
        "reward_scoring": shard,
        "evaluation": config.evaluation.prompts * config.evaluation.images_per_prompt,
        "surrogate_update": trained,
        "generator_update": config.generator.minibatch,
        "distill_base": config.distill.batch,
    }.get(stage, 1)


def units(stage: str, config: RunConfig) -> int:
    """Units of work of one task: what its duration is proportional to."""
    factor = {
        "rollout": config.sampler.steps,
        "evaluation": config.sampler.steps,
        "surrogate_update": config.surrogate.updates * config.surrogate.draws,
        "generator_update": config.generator.all_updates * _passes(config.generator, config.sampler.steps),
        "distill_base": (config.distill.fake_steps + config.distill.steps) // 2,
    }.get(stage, 1)
    return samples(stage, config) * factor


def _passes(section: GeneratorConfig, path_steps: int) -> int:
    """Steps of a trajectory that one optimizer step of the generator, with its fake-score steps, takes gradients of."""
    if section.path == "trajectory":
        return path_steps + section.fake_updates
    return section.steps_per_trajectory * (1 + section.fake_updates)


def idle(task: Task, config: RunConfig) -> bool:
    """Whether the generator stood still in it, so that its seconds are not those of its work."""
    return task.stage == "generator_update" and task.iteration < config.generator.start


def measured(store: Store, config: RunConfig) -> Costs:
    """Read what is committed of a run.

    Raises:
        ConfigError: when not every stage of an iteration is committed at least once.
    """
    from tdm_r1.artifacts.repository import read_manifest

    tasks = [*once_tasks(), *(t for n in range(1, config.iterations + 1) for t in iteration_tasks(n, config))]
    found = [(task, manifest) for task in tasks if (manifest := read_manifest(store, task.location)) is not None]
    stages = {}
    for stage in STAGES:
        working = [(t, m) for t, m in found if t.stage == stage and not idle(t, config)]
        own = [(m.provenance.seconds, sum(f.size for f in m.files.values())) for _, m in working]
        if not own:
            raise ConfigError(
                f"`{store.root}` has no committed {stage}, so its cost is not known",
                hint=f"finish an iteration with `tdm-r1 run --root {store.root}`, or leave --costs out",
            )
        stages[stage] = _stage_cost(stage, own, config)
    origin = found[-1][1].provenance
    return Costs(
        source=f"{len(found)} manifests of {store.root}",
        model=config.model.source,
        device=origin.device,
        threads=origin.threads,
        between=between([(m.provenance.started, m.provenance.finished) for _, m in found]),
        stages=stages,
    )


def _stage_cost(stage: str, own: Sequence[tuple[float, int]], config: RunConfig) -> StageCost:
    seconds = [value for value, _ in own]
    mean, size = statistics.fmean(seconds), statistics.fmean(bytes_ for _, bytes_ in own)
    return StageCost(
        seconds=mean / units(stage, config),
        spread=statistics.stdev(seconds) / mean if len(seconds) > 1 and mean else 0.0,
        bytes=size if stage in STATES else size / samples(stage, config),
        tasks=len(own),
    )


def between(times: Sequence[tuple[datetime, datetime]]) -> float:
    """Median pause from one stage's end to the next one's beginning, of (beginning, end) in any order.

    Stages side by side have none. A median, because a run that was resumed has a pause that no process made.
    """
    pauses = [(b[0] - a[1]).total_seconds() for a, b in pairwise(sorted(times))]
    return statistics.median([pause for pause in pauses if pause > 0] or [0.0])


def shipped() -> Costs:
    """The costs that come with the package.

    Source: benchmarks/costs.py on the fifth demonstration of 2026-11-22 (docs/log.md), preset `shapes_cpu`, two cores.
    """
    text = files("tdm_r1").joinpath("assets", "plan", f"{SHIPPED}.json").read_text(encoding="utf-8")
    return costs_from(json.loads(text))


def costs_from(values: Mapping[str, Any]) -> Costs:
    """The inverse of `as_json`."""
    stages = {stage: StageCost(**cost) for stage, cost in values["stages"].items()}
    return Costs(**{**values, "stages": stages})


def as_json(costs: Costs) -> dict[str, Any]:
    """Costs as they are shipped; numbers with four digits, for more were never measured."""

    def short(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: short(inner) for key, inner in value.items()}
        if not isinstance(value, float) or not value:
            return value
        return round(value, 3 - math.floor(math.log10(abs(value))))

    values: dict[str, Any] = short(asdict(costs))
    return values


def require_same_model(costs: Costs, config: RunConfig) -> None:
    """Refuse to plan one network with the costs of another.

    Raises:
        ConfigError: when the weights differ.
    """
    if costs.model != config.model.source:
        raise ConfigError(
            f"the costs were measured with `{costs.model}`, and `{config.preset}` has `{config.model.source}`",
            hint="measure an iteration of it (`tdm-r1 run --preset … --set iterations=1`), then give --costs ROOT; "
            "`plan --memory` and `run --dry-run` tell memory, FLOPs, bytes and counts without one",
        )
