"""Limits that a run would hit, with the numbers. Those of KFP and Argo are estimates made from users' objects.

The shape is that of `pipelines/block.py`: per task a driver's pod and a pod, four nodes of status; per DAG, and per
item of a loop, a driver's pod and three nodes. `python -m pipelines.compile --check` looks at the compiled file itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from tdm_r1.artifacts.tables import GROUP_ROWS
from tdm_r1.config import RunConfig
from tdm_r1.plan.costs import Costs, samples
from tdm_r1.profiles import Profile
from tdm_r1.quantities import bytes_of
from tdm_r1.runtime.layout import Task, iteration_tasks

FILE_FIXED: Final = 3_000
FILE_PER_ITERATION: Final = 31_700
"""Bytes of YAML, of the committed block (`test_the_estimate_of_the_compiled_file_is_close`)."""
SPEC_FIXED: Final = 24_000
SPEC_PER_ITERATION: Final = 38_000
"""Bytes of the Argo object that KFP compiles a block to."""
NODE_STORED: Final = 180
"""Bytes of a node of the status after compression. Source: kubeflow/pipelines#12131."""
STATUS_FIXED: Final = 54_000
STATUS_PER_ITERATION: Final = 79_000
STATUS_PER_SHARD: Final = 39_000
"""Bytes of all nodes before it, the last one for each shard of an iteration: what KFP's retry writes, as
`drive/sizes.py` counts it (`test_the_planner_and_the_checker_of_the_pipelines_estimate_the_same_run`)."""
DIGEST: Final = 72
"""Bytes of one digest in the argument that a fan-in hands on."""


@dataclass(frozen=True, kw_only=True)
class Limit:
    """One number and what it may be."""

    name: str
    found: float
    limit: float
    whose: str

    @property
    def broken(self) -> bool:
        return self.found > self.limit


def pods(shards: int, iterations: int) -> int:
    """Pods of one block on KFP, drivers included."""
    return 7 + iterations * (12 + 5 * shards)


def nodes(shards: int, iterations: int) -> int:
    """Nodes in the status of one block on KFP."""
    return 15 + iterations * (30 + 11 * shards)


def status(shards: int, iterations: int) -> int:
    """Bytes of these nodes, uncompressed."""
    return STATUS_FIXED + iterations * (STATUS_PER_ITERATION + STATUS_PER_SHARD * shards)


def limits(config: RunConfig, profile: Profile, costs: Costs, block: int) -> list[Limit]:
    """Every limit, broken or not.

    Args:
        block: iterations of a block.
    """
    shards, count = config.rollout.shards, nodes(config.rollout.shards, block)
    spec = SPEC_FIXED + SPEC_PER_ITERATION * block
    rows = samples("rollout", config)
    found = [
        Limit(
            name="compiled file, bytes",
            found=FILE_FIXED + FILE_PER_ITERATION * block,
            limit=400_000,
            whose="pipelines/check.py",
        ),
        Limit(name="workflow object, bytes", found=spec + count * NODE_STORED, limit=1 << 20, whose="Argo"),
        Limit(name="the same at KFP's retry, bytes", found=spec + status(shards, block), limit=3 << 19, whose="etcd"),
        Limit(name="longest argument, bytes", found=4_000 + DIGEST * shards, limit=1 << 17, whose="Linux"),
        Limit(name="row groups of a shard", found=-(-rows // GROUP_ROWS), limit=(1 << 15) - 1, whose="Parquet"),
    ]
    for task in {task.stage: task for task in iteration_tasks(config.iterations, config)}.values():
        found += _of_a_task(task, config, profile, costs)
    return found


def _of_a_task(task: Task, config: RunConfig, profile: Profile, costs: Costs) -> list[Limit]:
    pool = profile.pool_of(task.stage)
    timeout, scratch = profile.timeout_of(task.stage), bytes_of(pool.scratch)
    return [
        Limit(name=f"{task.stage}, seconds", found=costs.seconds(task, config), limit=timeout, whose=profile.name),
        Limit(
            name=f"{task.stage}, scratch bytes",
            found=2 * costs.bytes(task, config),
            limit=scratch,
            whose=profile.name,
        ),
    ]
