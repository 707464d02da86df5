"""Limits that a run would hit, with the numbers and what to change. Those of KFP and Argo are estimates.

The shape is that of `pipelines/block.py`: per task a driver's pod and a pod, four nodes of status; per DAG, and per
item of a loop, a driver's pod and three nodes. `python -m pipelines.compile --check` looks at the compiled file itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

from tdm_r1.artifacts.tables import GROUP_ROWS
from tdm_r1.ceilings import (
    MAX_ARGUMENT,
    MAX_FAN_IN,
    MAX_FILE,
    MAX_RETRYABLE,
    MAX_STORED,
    NODE_STORED,
    argument_bytes,
)
from tdm_r1.config import RunConfig
from tdm_r1.plan.costs import Costs, samples
from tdm_r1.profiles import POOL_OF, Profile
from tdm_r1.quantities import bytes_of
from tdm_r1.runtime.layout import Task, iteration_tasks

Orchestrator = Literal["kfp", "argo"]

FILE_FIXED: Final = 3_000
FILE_PER_ITERATION: Final = 31_700
"""Bytes of YAML, of the committed block (`test_the_estimate_of_the_compiled_file_is_close`)."""
SPEC_FIXED: Final = 24_000
SPEC_PER_ITERATION: Final = 38_000
"""Bytes of the Argo object that KFP compiles a block to."""
STATUS_FIXED: Final = 54_000
STATUS_PER_ITERATION: Final = 79_000
STATUS_PER_SHARD: Final = 39_000
"""Bytes of all nodes before it, the last one for each shard of an iteration: what KFP's retry writes, as
`drive/sizes.py` counts it (`test_the_planner_and_the_checker_of_the_pipelines_estimate_the_same_run`)."""
ARGO_FIXED: Final = 16_500
"""Bytes of the template, and of the nodes outside of iterations."""


@dataclass(frozen=True, kw_only=True)
class Limit:
    """One number and what it may be."""

    name: str
    found: float
    limit: float
    whose: str
    hint: str
    """What to change when it is broken."""

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


def argo_nodes(shards: int, iterations: int) -> int:
    """Nodes in the status of an Argo workflow, without those that come once."""
    return iterations * (17 + 7 * shards)


def file_bytes(block: int) -> int:
    """Of the compiled block."""
    return FILE_FIXED + FILE_PER_ITERATION * block


def stored_bytes(shards: int, block: int, orchestrator: Orchestrator) -> int:
    """Of the object that Argo stores, its status compressed."""
    if orchestrator == "argo":
        return ARGO_FIXED + argo_nodes(shards, block) * NODE_STORED
    return SPEC_FIXED + SPEC_PER_ITERATION * block + nodes(shards, block) * NODE_STORED


def retry_bytes(shards: int, block: int) -> int:
    """Of the same object as KFP's retry writes it, its status as it is."""
    return SPEC_FIXED + SPEC_PER_ITERATION * block + status(shards, block)


def limits(
    config: RunConfig, profile: Profile, costs: Costs, block: int, orchestrator: Orchestrator = "kfp"
) -> list[Limit]:
    """Every limit, broken or not.

    Args:
        block: iterations of a block.
        orchestrator: whose limits; those of KFP's files, arguments and retry are not Argo's.
    """
    shards = config.rollout.shards
    found = _argo(shards, block) if orchestrator == "argo" else _kfp(shards, block)
    row_groups = -(-samples("rollout", config) // GROUP_ROWS)
    most = (1 << 15) - 1
    name, hint = "row groups of a shard", "more rollout.shards"
    found.append(Limit(name=name, found=row_groups, limit=most, whose="Parquet", hint=hint))
    for task in {task.stage: task for task in iteration_tasks(config.iterations, config)}.values():
        found += _of_a_task(task, config, profile, costs)
    return found


def _kfp(shards: int, block: int) -> list[Limit]:
    def smaller(fits: Callable[[int], bool]) -> str:
        return _smaller(fits, block, "--block {0}, and compile with --iterations {0}")

    stored, retried = stored_bytes(shards, block, "kfp"), retry_bytes(shards, block)
    no_retry = "; or leave retries to `tdm-r1 drive`, and compile with --without-retry"
    return [
        Limit(
            name="compiled file, bytes",
            found=file_bytes(block),
            limit=MAX_FILE,
            whose="pipelines/check.py",
            hint=smaller(lambda count: file_bytes(count) <= MAX_FILE),
        ),
        Limit(
            name="workflow object, bytes",
            found=stored,
            limit=MAX_STORED,
            whose="Argo",
            hint=smaller(lambda count: stored_bytes(shards, count, "kfp") <= MAX_STORED),
        ),
        Limit(
            name="the same at KFP's retry, bytes",
            found=retried,
            limit=MAX_RETRYABLE,
            whose="etcd",
            hint=smaller(lambda count: retry_bytes(shards, count) <= MAX_RETRYABLE) + no_retry,
        ),
        Limit(
            name="longest argument, bytes",
            found=argument_bytes(shards),
            limit=MAX_ARGUMENT,
            whose="Linux",
            hint=f"at most rollout.shards={MAX_FAN_IN}",
        ),
    ]


def _argo(shards: int, block: int) -> list[Limit]:
    def fits(count: int) -> bool:
        return stored_bytes(shards, count, "argo") <= MAX_STORED

    found, hint = stored_bytes(shards, block, "argo"), _smaller(fits, block, "--block {0}, -p budget={0}")
    return [Limit(name="workflow object, bytes", found=found, limit=MAX_STORED, whose="Argo", hint=hint)]


def _smaller(fits: Callable[[int], bool], block: int, words: str) -> str:
    """The largest block below `block` that fits, in the words of the command line."""
    count = next((count for count in range(block, 0, -1) if fits(count)), 0)
    return words.format(count) if count else "fewer rollout.shards; not even one iteration fits"


def _of_a_task(task: Task, config: RunConfig, profile: Profile, costs: Costs) -> list[Limit]:
    pool = profile.pool_of(task.stage)
    return [
        Limit(
            name=f"{task.stage}, seconds",
            found=costs.seconds(task, config),
            limit=profile.timeout_of(task.stage),
            whose=profile.name,
            hint=f"a larger {task.stage} in [timeouts] of the profile, or --gpu-speed and --cpu-speed of your machines",
        ),
        Limit(
            name=f"{task.stage}, scratch bytes",
            found=2 * costs.bytes(task, config),
            limit=bytes_of(pool.scratch),
            whose=profile.name,
            hint=f"a larger scratch in [pools.{POOL_OF[task.stage]}] of the profile",
        ),
    ]
