"""From a configuration, a profile and measured costs to a plan: expectations, a simulation, money and limits."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from tdm_r1.config import RunConfig
from tdm_r1.errors import ConfigError
from tdm_r1.plan.costs import Costs, require_same_model
from tdm_r1.plan.limits import Limit, Orchestrator, limits, pods
from tdm_r1.plan.simulate import Cluster, Outcome, ideal, percentiles, repeats, simulate
from tdm_r1.profiles import POOL_OF, PoolName, Profile
from tdm_r1.runtime.dealing import require_all_fit
from tdm_r1.runtime.layout import PER_ITERATION, STAGES, Task, iteration_tasks, once_tasks

PROCESS_SECONDS: Final = 3.0
"""Of a stage's process before its clock begins: imports, opening the run. CPU seconds, machine of docs/log.md."""
DAG_DRIVERS: Final = 6
"""Nested DAGs, one in the other, that KFP opens before the first pod of an iteration."""
SHARES: Final = (0.5, 0.9, 0.99)
MOST_PODS: Final = 10_000


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is assumed of the cluster, beyond the profile."""

    orchestrator: Orchestrator = "kfp"
    rollout_pods: int | None = None
    """At once; None is the profile's `shards_at_once`."""
    scoring_pods: int | None = None
    block: int = 5
    """Iterations per block."""
    pod_start: float = 3.0
    """Seconds from a pod's creation to its process: scheduling, with the image on the node."""
    driver_start: float = 7.0
    """Seconds of one KFP driver pod. Estimate: 11 of them are one to two minutes of an iteration."""
    failure: float = 0.0
    """Probability that a pod fails."""
    taken_per_hour: float = 0.05
    """How often a spot machine is taken back; pools that are not `spot` are never."""
    gpu_speed: float = 1.0
    """How much faster rollouts and updates are than where they were measured."""
    cpu_speed: float = 1.0
    """How much faster scoring is."""
    events: int = 1_000_000
    """How much may be simulated: about a second per 200,000 events."""
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class StagePlan:
    """One stage of an iteration."""

    stage: str
    pool: PoolName
    tasks: int
    """Per iteration; of what runs once, per run."""
    seconds: float
    """Of one task."""
    bytes: float
    """Of all its records in an iteration."""
    cost: float | None
    """Of all its tasks, starts included; None without a price."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All that is printed."""

    preset: str
    profile: str
    source: str
    """Where the costs were measured."""
    stages: tuple[StagePlan, ...]
    block: int
    block_pods: int
    iteration_bytes: float
    """Mean: not every iteration is evaluated."""
    run_bytes: float
    rollout_pods: int
    scoring_pods: int
    enough_scoring_pods: int
    """From so many on, scoring does not hold up the rollouts."""
    enough_bodies: int
    """Shards in flight that keep both pools busy then: `shards_at_once` of the profile."""
    simulations: int
    block_seconds: Mapping[str, float]
    """Percentiles of the makespan of the last block, resubmissions included."""
    ideal_seconds: float
    """Of a block whose pods start at once and never fail."""
    overhead_share: float
    """Of the median block."""
    submissions: float
    """Mean per block; more than one when pods fail and nobody starts them again."""
    run_hours: float
    """By median blocks, less what the generator does not do before it starts."""
    iteration_cost: float | None
    """Mean over the run."""
    run_cost: float | None
    limits: tuple[Limit, ...]

    @property
    def broken(self) -> list[Limit]:
        return [limit for limit in self.limits if limit.broken]

    def as_json(self) -> dict[str, Any]:
        """The plan for machines; each limit says whether it is broken."""
        return asdict(self) | {"limits": [asdict(limit) | {"broken": limit.broken} for limit in self.limits]}


def make_plan(config: RunConfig, profile: Profile, measured: Costs, setting: Setting) -> Plan:
    """Plan a run.

    Raises:
        ConfigError: when the costs are those of another network, a number of pods is out of range, or the work of a
            stage cannot be dealt among the processes of the profile.
    """
    require_same_model(measured, config)
    require_all_fit({stage: profile.pool_of(stage).processes for stage in STAGES}, config)
    costs = faster(measured, {"rollout": setting.gpu_speed, "update": setting.gpu_speed, "scoring": setting.cpu_speed})
    cluster, block = cluster_of(profile, setting), min(setting.block, config.iterations)
    numbers = range(config.iterations - block + 1, config.iterations + 1)  # the last block: by then every stage works
    count = repeats(config, block, setting.events)
    outcomes = [simulate(config, costs, cluster, numbers, setting.seed + index) for index in range(count)]
    makespan = percentiles([outcome.seconds for outcome in outcomes], SHARES)
    floor = ideal(config, costs, cluster, numbers)
    enough = enough_scoring_pods(config, costs, cluster)
    stages = tuple(stage_plan(stage, config, profile, costs, cluster) for stage in STAGES)
    blocks, beyond = config.iterations / block, beyond_blocks(config, costs, cluster, block)
    repeated, once = repeated_cost(outcomes, profile, blocks, beyond), once_cost(stages)
    once_seconds = math.fsum(cluster.start + costs.seconds(task, config) for task in once_tasks())
    per_iteration, total = storage(config, costs)
    return Plan(
        preset=config.preset,
        profile=profile.name,
        source=measured.source,
        stages=stages,
        block=block,
        block_pods=pods(config.rollout.shards, block),
        iteration_bytes=per_iteration,
        run_bytes=total,
        rollout_pods=cluster.pods["rollout"],
        scoring_pods=cluster.pods["scoring"],
        enough_scoring_pods=enough,
        enough_bodies=min(config.rollout.shards, cluster.pods["rollout"] + enough),
        simulations=count,
        block_seconds={f"p{share * 100:g}": value for share, value in zip(SHARES, makespan, strict=True)},
        ideal_seconds=floor,
        overhead_share=max(0.0, 1 - floor / makespan[0]) if makespan[0] else 0.0,
        submissions=statistics.fmean(outcome.submissions for outcome in outcomes),
        run_hours=(once_seconds + blocks * makespan[0] + math.fsum(beyond.values())) / 3600,
        iteration_cost=None if repeated is None else repeated / config.iterations,
        run_cost=None if repeated is None or once is None else once + repeated,
        limits=tuple(limits(config, profile, costs, block, setting.orchestrator)),
    )


def storage(config: RunConfig, costs: Costs) -> tuple[float, float]:
    """Bytes of an iteration on average, and of the whole run."""
    iterations = (task for number in range(1, config.iterations + 1) for task in iteration_tasks(number, config))
    repeated = math.fsum(costs.bytes(task, config) for task in iterations)
    return repeated / config.iterations, repeated + math.fsum(costs.bytes(task, config) for task in once_tasks())


def cluster_of(profile: Profile, setting: Setting) -> Cluster:
    """What the simulation needs of a profile."""
    for name, value in (("--rollout-pods", setting.rollout_pods), ("--scoring-pods", setting.scoring_pods)):
        if value is not None and not 1 <= value <= MOST_PODS:
            hint = "plan for several runs beyond that"
            raise ConfigError(f"{name} is {value}, expected 1..{MOST_PODS:,}", hint=hint)
    at_once = profile.shards_at_once
    counts: dict[PoolName, int] = {
        "rollout": setting.rollout_pods or at_once,
        "scoring": setting.scoring_pods or at_once,
        "update": 1,
        "control": at_once,
    }
    pools: Sequence[PoolName] = tuple(counts)
    driver = setting.driver_start if setting.orchestrator == "kfp" else 0.0
    return Cluster(
        pods=counts,
        bodies=max(at_once, setting.rollout_pods or 0, setting.scoring_pods or 0),
        start=driver + setting.pod_start + PROCESS_SECONDS,
        opening=DAG_DRIVERS * driver,
        failures=dict.fromkeys(pools, setting.failure),
        taken_per_hour={pool: setting.taken_per_hour if profile.pool(pool).spot else 0.0 for pool in pools},
        restarts=setting.orchestrator == "argo",
    )


def faster(costs: Costs, speed: Mapping[str, float]) -> Costs:
    """Costs on machines that are faster by a factor, by pool."""
    stages = {
        stage: replace(cost, seconds=cost.seconds / speed.get(POOL_OF[stage], 1.0))
        for stage, cost in costs.stages.items()
    }
    return replace(costs, stages=stages)


def enough_scoring_pods(config: RunConfig, costs: Costs, cluster: Cluster) -> int:
    """The fewest scoring pods that finish shards as fast as the rollout pods deliver them.

    Little's law: r rollout pods deliver r / t_rollout shards per second, and each is scored for t_scoring.
    """
    rollout, scoring = (
        cluster.start + costs.seconds(Task(stage, 1), config) for stage in ("rollout", "reward_scoring")
    )
    busy = min(cluster.pods["rollout"], config.rollout.shards)
    return max(1, min(config.rollout.shards, math.ceil(busy * scoring / rollout - 1e-9)))


def stage_plan(stage: str, config: RunConfig, profile: Profile, costs: Costs, cluster: Cluster) -> StagePlan:
    """One row of the table."""
    tasks = [task for task in [*once_tasks(), *iteration_tasks(config.iterations, config)] if task.stage == stage]
    seconds, price = costs.seconds(tasks[0], config), profile.pool_of(stage).price_per_hour
    return StagePlan(
        stage=stage,
        pool=POOL_OF[stage],
        tasks=len(tasks),
        seconds=seconds,
        bytes=math.fsum(costs.bytes(task, config) for task in tasks),
        cost=None if price is None else len(tasks) * (cluster.start + seconds) * price / 3600,
    )


def beyond_blocks(config: RunConfig, costs: Costs, cluster: Cluster, block: int) -> dict[PoolName, float]:
    """Seconds that the run takes more than as many blocks like its last, by pool; negative where it takes less.

    The stages that follow one another differ: a generator that stands still at first, and what is not always evaluated.
    """

    def serial(first: int) -> dict[PoolName, float]:
        tasks = (task for number in range(first, config.iterations + 1) for task in iteration_tasks(number, config))
        found: dict[PoolName, float] = {}
        for task in tasks:
            if task.stage in PER_ITERATION:
                pool = POOL_OF[task.stage]
                found[pool] = found.get(pool, 0.0) + cluster.start + costs.seconds(task, config)
        return found

    last = serial(config.iterations - block + 1)
    blocks = config.iterations / block
    return {pool: seconds - blocks * last.get(pool, 0.0) for pool, seconds in serial(1).items()}


def repeated_cost(
    outcomes: Sequence[Outcome], profile: Profile, blocks: float, beyond: Mapping[PoolName, float]
) -> float | None:
    """Mean cost of all iterations: pods are paid while they start, and when their work is lost."""
    busy = {pool: beyond.get(pool, 0.0) for pool in {pool for outcome in outcomes for pool in outcome.busy}}
    for outcome in outcomes:
        for pool, seconds in outcome.busy.items():
            busy[pool] += blocks * seconds / len(outcomes)
    prices = {pool: profile.pool(pool).price_per_hour for pool in busy}
    if any(price is None for price in prices.values()):
        return None
    return math.fsum(seconds * (prices[pool] or 0.0) for pool, seconds in busy.items()) / 3600


def once_cost(stages: Sequence[StagePlan]) -> float | None:
    """Of what a run needs once."""
    found = [plan.cost for plan in stages if plan.stage in ("encode_prompts", "distill_base")]
    return None if None in found else math.fsum(cost for cost in found if cost is not None)
