"""A block as a discrete-event simulation: pods that start, wait for a machine, fail and are taken back (SimPy).

What is simulated is `pipelines/block.py` under `tdm-r1 drive`: per iteration a loop over shards, rollout then scoring
in one body with so many bodies at once, then the updates and the evaluation. A block in which a pod fails starts
nothing more, lets its other pods end, and is submitted again: what is committed costs the start of a pod and no more.
"""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import simpy

from tdm_r1.config import RunConfig
from tdm_r1.plan.costs import Costs
from tdm_r1.profiles import POOL_OF, PoolName
from tdm_r1.runtime.layout import PER_ITERATION, SHARDED, Task, iteration_tasks

Steps = Generator[simpy.Event, Any, Any]
EVENTS_PER_TASK: Final = 6


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """What stages meet outside of themselves."""

    pods: Mapping[PoolName, int]
    """Pods at once, by pool."""
    bodies: int
    """Shards in flight."""
    start: float = 0.0
    """Seconds of a pod before its stage begins and after it ends: orchestrator, scheduling, imports, commit."""
    opening: float = 0.0
    """Seconds before the first pod of an iteration: the drivers of its nested DAGs on KFP."""
    failures: Mapping[PoolName, float] = field(default_factory=dict)
    """Probability that a pod fails, by pool."""
    taken_per_hour: Mapping[PoolName, float] = field(default_factory=dict)
    """How often a machine is taken back, by pool."""
    restarts: bool = False
    """True where the orchestrator starts a failed pod again (Argo); else the whole block is submitted again (KFP)."""
    resubmit: float = 60.0
    """Seconds from the end of a failed block to the first pod of the next."""


@dataclass
class Outcome:
    """Of one simulated block."""

    seconds: float = 0.0
    busy: dict[PoolName, float] = field(default_factory=dict)
    """Seconds of pods, starts and lost work included, by pool."""
    lost: int = 0
    """Pods that failed or were taken back."""
    submissions: int = 1


class BlockFailed(Exception):  # noqa: N818 - an event of the simulation
    """A pod failed, and nobody starts it again."""


@dataclass
class _World:
    environment: simpy.Environment
    cluster: Cluster
    costs: Costs
    config: RunConfig
    chance: random.Random
    outcome: Outcome
    machines: Mapping[PoolName, simpy.Resource]
    committed: set[Task] = field(default_factory=set)
    failing: bool = False

    def task(self, task: Task) -> Steps:
        """One task until it is committed: wait for a machine, start, run; again when it is lost."""
        pool = POOL_OF[task.stage]
        while True:
            if self.failing:
                raise BlockFailed
            with self.machines[pool].request() as machine:
                yield machine
                if self.failing:
                    raise BlockFailed
                seconds, survives = self.drawn(task, pool)
                yield self.environment.timeout(seconds)
            self.outcome.busy[pool] = self.outcome.busy.get(pool, 0.0) + seconds
            if survives:
                self.committed.add(task)
                return
            self.outcome.lost += 1
            if not self.cluster.restarts:
                self.failing = True
                raise BlockFailed

    def drawn(self, task: Task, pool: PoolName) -> tuple[float, bool]:
        """Seconds until the pod ends, and whether it ends well."""
        cost = self.costs.stages[task.stage]
        work = 0.0 if task in self.committed else self.costs.seconds(task, self.config)
        if work and cost.spread:
            sigma = math.sqrt(math.log1p(cost.spread**2))  # log-normal with this mean and relative deviation
            work = self.chance.lognormvariate(math.log(work) - sigma**2 / 2, sigma)
        seconds = self.cluster.start + work
        rate = self.cluster.taken_per_hour.get(pool, 0.0) / 3600
        taken = self.chance.expovariate(rate) if rate else math.inf
        if taken < seconds:
            return taken, False
        return seconds, self.chance.random() >= self.cluster.failures.get(pool, 0.0)

    def body(self, iteration: int, shard: int, slots: simpy.Resource) -> Steps:
        with slots.request() as slot:
            yield slot
            for stage in SHARDED:
                yield from self.task(Task(stage, iteration, shard))

    def iteration(self, number: int) -> Steps:
        """Shards side by side, then what follows; a failure is raised when all shards have ended."""
        yield self.environment.timeout(self.cluster.opening)
        slots = simpy.Resource(self.environment, self.cluster.bodies)
        shards = range(self.config.rollout.shards)
        bodies = [self.environment.process(_caught(self.body(number, shard, slots))) for shard in shards]
        yield self.environment.all_of(bodies)
        if self.failing:
            raise BlockFailed
        for task in iteration_tasks(number, self.config):
            if task.stage in PER_ITERATION:
                yield from self.task(task)

    def run(self, first: int, last: int) -> Steps:
        """Submit until every iteration is committed."""
        while True:
            try:
                for number in range(first, last + 1):
                    yield from self.iteration(number)
                    first = number + 1  # the next submission begins behind what is complete
                return
            except BlockFailed:
                self.failing = False
                self.outcome.submissions += 1
                yield self.environment.timeout(self.cluster.resubmit)


def _caught(steps: Steps) -> Steps:
    try:
        yield from steps
    except BlockFailed:
        return


def simulate(
    config: RunConfig,
    costs: Costs,
    cluster: Cluster,
    iterations: Sequence[int],
    seed: int,
    committed: Collection[Task] = (),
) -> Outcome:
    """Simulate the given consecutive iterations once.

    Args:
        committed: tasks whose records are there already: their pods only start.
    """
    environment = simpy.Environment()
    machines = {pool: simpy.Resource(environment, count) for pool, count in cluster.pods.items()}
    world = _World(environment, cluster, costs, config, random.Random(seed), Outcome(), machines)
    world.committed.update(committed)
    environment.run(environment.process(world.run(iterations[0], iterations[-1])))
    world.outcome.seconds = environment.now
    return world.outcome


def ideal(config: RunConfig, costs: Costs, cluster: Cluster, iterations: Sequence[int]) -> float:
    """Seconds if pods started at once, never failed, and always took their mean."""
    flat = {stage: replace(cost, spread=0.0) for stage, cost in costs.stages.items()}
    perfect = replace(cluster, start=0.0, opening=0.0, failures={}, taken_per_hour={})
    return simulate(config, replace(costs, stages=flat), perfect, iterations, 0).seconds


def percentiles(values: Sequence[float], shares: Sequence[float]) -> list[float]:
    """Nearest-rank percentiles: always a value that occurred."""
    ordered = sorted(values)
    return [ordered[max(0, math.ceil(share * len(ordered)) - 1)] for share in shares]


def repeats(config: RunConfig, block: int, budget: int) -> int:
    """How many simulations `budget` events allow: at least 5, at most 200."""
    tasks = block * (2 * config.rollout.shards + 3)
    return max(5, min(200, budget // (tasks * EVENTS_PER_TASK)))
