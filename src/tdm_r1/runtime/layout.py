"""Where each stage's record lies below the root, and which records it is made from."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from tdm_r1.config import RunConfig
from tdm_r1.errors import ConfigError, ShardError

ONCE = ("encode_prompts", "distill_base")
SHARDED = ("rollout", "reward_scoring")
PER_ITERATION = ("surrogate_update", "generator_update", "evaluation")
STAGES = (*ONCE, *SHARDED, *PER_ITERATION)
TRAINED = ("distill_base", "surrogate_update", "generator_update")
"""Stages that take optimizer steps: several processes can share them, and they can leave checkpoints."""
AGAIN = ("reward_scoring", "evaluation")
"""Stages that a variant runs: they judge images, and change nothing that is trained on."""
FEEDBACK = "feedback"
"""The stage that people work for: it commits what they said. Only a run or a variant whose reward asks them has it."""
VOTES = "votes"
"""Folder of what people said before it is committed: nothing in it is ever changed."""

RUN_FILE = "run.json"
STOP_FILE = "STOP"
RESULT_FILE = "result.json"
REPORT_FILE = "report.html"
LENGTHS = "lengths"
"""Folder of what `extend` wrote: the run is as long as the longest of them says."""
DRIVE = "drive"
"""Folder in which drivers keep their lease and what they submitted; no stage reads it."""
CHECKPOINTS = "checkpoints"
"""Folder of what a training stage leaves between two of its steps; gone once it commits."""
EVALUATIONS = "evaluations"
"""Folder of what `evaluate --suite` measured; no stage reads it, and it changes no record."""
PROMPTS = "prompts"
BASE = "base"
VARIANTS = "variants"


@dataclass(frozen=True, order=True)
class Task:
    """One execution of a stage."""

    stage: str
    iteration: int = 0
    shard: int = 0
    variant: str = ""
    """Name of another reward that judges committed images again; empty for the run itself."""

    @property
    def location(self) -> str:
        if self.stage in ONCE:
            return {"encode_prompts": PROMPTS, "distill_base": BASE}[self.stage]
        above = f"{VARIANTS}/{self.variant}/" if self.variant else ""
        folder = f"{above}iter-{self.iteration:05d}/{self.stage}"
        return f"{folder}/shard-{self.shard:04d}" if self.stage in SHARDED else folder

    def arguments(self) -> list[str]:
        """Command-line arguments after `tdm-r1 stage`, without the root."""
        found = [self.stage]
        if self.stage not in ONCE:
            found += ["--iteration", str(self.iteration)]
        if self.stage in SHARDED:
            found += ["--shard", str(self.shard)]
        if self.variant:
            found += ["--variant", self.variant]
        return found


def votes_folder(variant: str = "") -> str:
    """Where what people say is kept until it is committed."""
    return f"{VARIANTS}/{variant}/{VOTES}" if variant else VOTES


def check(task: Task, config: RunConfig) -> None:
    """Refuse a task that this run does not have.

    Raises:
        ConfigError: for an unknown stage or an iteration out of range.
        ShardError: for a shard out of range.
    """
    if task.stage not in (*STAGES, FEEDBACK):
        raise ConfigError(f"there is no stage `{task.stage}`", hint=f"the stages are {', '.join(STAGES)}")
    if task.stage == FEEDBACK and not config.reward.people:
        raise ConfigError(
            "the reward asks no people, so there is no stage `feedback`",
            hint="name the scorer `feedback` in `reward.scorers` of the run, or of a variant of it",
        )
    if task.variant and task.stage not in (*AGAIN, FEEDBACK):
        raise ConfigError(
            f"`{task.stage}` has no variant `{task.variant}`: a variant judges again what is committed",
            hint=f"the stages of a variant are {' and '.join(AGAIN)}",
        )
    lowest = 0 if task.stage in (*ONCE, "evaluation") else 1
    if not lowest <= task.iteration <= config.iterations:
        raise ConfigError(
            f"iteration {task.iteration} of {task.stage} is out of range, expected {lowest}..{config.iterations}",
            hint="the run's length is `iterations` in run.json",
        )
    if task.stage in SHARDED and not 0 <= task.shard < config.rollout.shards:
        raise ShardError(
            f"shard {task.shard} is out of range, expected 0..{config.rollout.shards - 1}",
            hint="the number of shards is `rollout.shards` in run.json",
        )


def evaluation_due(iteration: int, config: RunConfig) -> bool:
    """Whether an iteration is evaluated: the first, the last, and every `evaluation.every`."""
    every = config.evaluation.every
    return iteration in (0, config.iterations) or (every > 0 and iteration % every == 0)


def once_tasks() -> list[Task]:
    return [Task(stage) for stage in ONCE]


def iteration_tasks(iteration: int, config: RunConfig) -> list[Task]:
    """The tasks of an iteration in an order in which every parent comes first."""
    shards = range(config.rollout.shards)
    tasks = [Task(stage, iteration, shard) for shard in shards for stage in SHARDED]
    if config.reward.people:
        rolled, scored = (shard_tasks(stage, iteration, config) for stage in SHARDED)
        tasks = [*rolled, Task(FEEDBACK, iteration), *scored]
    tasks += [Task("surrogate_update", iteration), Task("generator_update", iteration)]
    if evaluation_due(iteration, config):
        tasks.append(Task("evaluation", iteration))
    return tasks


def complete_iterations(there: Collection[str], config: RunConfig) -> int:
    """Iterations 1 to this one have all their records among these locations."""
    found = 0
    while found < config.iterations and all(t.location in there for t in iteration_tasks(found + 1, config)):
        found += 1
    return found


def all_tasks(config: RunConfig) -> list[Task]:
    """Every task of the run, in order."""
    tasks = [*once_tasks(), Task("evaluation", 0)]
    for iteration in range(1, config.iterations + 1):
        tasks += iteration_tasks(iteration, config)
    return tasks


def variant_tasks(name: str, config: RunConfig) -> list[Task]:
    """Everything that a variant can judge again: every scored shard and every evaluation."""
    asked = [Task(FEEDBACK, n, 0, name) for n in range(1, config.iterations + 1)]
    return [*asked, *(Task(t.stage, t.iteration, t.shard, name) for t in all_tasks(config) if t.stage in AGAIN)]


def shard_tasks(stage: str, iteration: int, config: RunConfig) -> list[Task]:
    return [Task(stage, iteration, shard) for shard in range(config.rollout.shards)]


def window(iteration: int, config: RunConfig) -> range:
    """Iterations whose scored rollouts the surrogate reads, oldest first."""
    return range(max(1, iteration - config.surrogate.replay), iteration + 1)


def generator_before(iteration: int) -> Task:
    """Whose generator iteration n starts from: n−1's, or stage 0's."""
    return Task("generator_update", iteration - 1) if iteration > 1 else Task("distill_base")


def generator_after(iteration: int) -> Task:
    """Whose generator iteration n leaves; iteration 0 is stage 0's."""
    return Task("generator_update", iteration) if iteration else Task("distill_base")


def parents_of(task: Task, config: RunConfig) -> list[Task]:
    """Which records a task is made from."""
    n = task.iteration
    if task.stage == FEEDBACK:
        return shard_tasks("rollout", n, config)
    said = [Task(FEEDBACK, n, 0, task.variant)] if task.stage == "reward_scoring" and config.reward.people else []
    if task.variant:
        judged = Task("evaluation", n) if task.stage == "evaluation" else Task("rollout", n, task.shard)
        return [Task("encode_prompts"), judged, *said]
    rolled, learned = shard_tasks("rollout", n, config), Task("surrogate_update", n)
    scored = [shard for i in window(n, config) for stage in SHARDED for shard in shard_tasks(stage, i, config)]
    parents = {
        "encode_prompts": [],
        "distill_base": [],
        "rollout": [generator_before(n)],
        "reward_scoring": [Task("rollout", n, task.shard), *said],
        "surrogate_update": [*([Task("surrogate_update", n - 1)] if n > 1 else []), *scored],
        "generator_update": [*rolled, learned, generator_before(n)],
        "evaluation": [generator_after(n), *([learned] if n and config.evaluation.surrogate_steps else [])],
    }[task.stage]
    return parents if task.stage == "encode_prompts" else [Task("encode_prompts"), *parents]
