"""Machines: which node a task asks for, and how much of it."""

import os
from dataclasses import dataclass
from typing import Any, Final

from kfp import dsl, kubernetes

from pipelines.provenance import record_image

POOL_LABEL: Final = "tdm-r1/pool"
ACCELERATOR: Final = "nvidia.com/gpu"


@dataclass(frozen=True, kw_only=True)
class Pool:
    """One class of machine."""

    cpu: str
    """Cores, request and limit alike, so that a stage always has the threads it was told to use."""
    memory: str
    """Request and limit alike: a stage over its memory is killed, not its neighbour."""
    accelerators: int = 0
    """Whole devices of the kind `nvidia.com/gpu`; the pod then tolerates the taint of the same name."""
    node: str | None = None
    """Value of the node label `tdm-r1/pool`; None runs anywhere."""


@dataclass(frozen=True, kw_only=True)
class Profile:
    """The two pools of one kind of cluster."""

    gpu: Pool
    cpu: Pool


PROFILES: Final = {
    "single_gpu": Profile(
        gpu=Pool(cpu="8", memory="64Gi", accelerators=1, node="gpu"),
        cpu=Pool(cpu="4", memory="16Gi", node="cpu"),
    ),
    "smoke": Profile(gpu=Pool(cpu="1", memory="4Gi"), cpu=Pool(cpu="1", memory="2Gi")),
}
"""`single_gpu`: one device per task on labelled nodes. `smoke`: the embedded world on any node, without a device."""


def chosen_profile() -> Profile:
    """Return the profile that TDM_R1_PROFILE names, `single_gpu` without it.

    Raises:
        SystemExit: no profile has that name.
    """
    name = os.environ.get("TDM_R1_PROFILE", "single_gpu")
    if name not in PROFILES:
        raise SystemExit(f"error: TDM_R1_PROFILE is `{name}`\n\nhint: use one of {', '.join(PROFILES)}")
    return PROFILES[name]


_PROFILE: Final = chosen_profile()


def on_gpu(task: dsl.PipelineTask) -> dsl.PipelineTask:
    """Place a task on the GPU pool."""
    return _place(task, _PROFILE.gpu)


def on_cpu(task: dsl.PipelineTask) -> dsl.PipelineTask:
    """Place a task on the CPU pool."""
    return _place(task, _PROFILE.cpu)


def _place(task: Any, pool: Pool) -> dsl.PipelineTask:
    """Ask for the pool's machine. KFP's cache stays off: it cannot see that the content behind a string changed."""
    task.set_caching_options(False)
    record_image(task)
    task.set_cpu_request(pool.cpu).set_cpu_limit(pool.cpu)
    task.set_memory_request(pool.memory).set_memory_limit(pool.memory)
    if pool.accelerators:
        task.set_accelerator_type(ACCELERATOR).set_accelerator_limit(pool.accelerators)
        kubernetes.add_toleration(task, key=ACCELERATOR, operator="Exists", effect="NoSchedule")
    if pool.node:
        kubernetes.add_node_selector(task, label_key=POOL_LABEL, label_value=pool.node)
    return task
