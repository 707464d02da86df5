"""Machines: apply the profile to a task."""

import os
import sys
from collections.abc import Sequence
from typing import Any, Final

from kfp import dsl, kubernetes

from pipelines.provenance import record_image
from tdm_r1.errors import ConfigError
from tdm_r1.profiles import DEFAULT_PROFILE, Pool, PoolName, Profile, open_profile

QUEUE_LABEL: Final = "kueue.x-k8s.io/queue-name"
PRIORITY_LABEL: Final = "kueue.x-k8s.io/priority-class"


def chosen_profile() -> Profile:
    """Return the profile that TDM_R1_PROFILE names.

    Raises:
        SystemExit: with 2, after saying that no profile has that name, or that its file is refused.
    """
    try:
        return open_profile(os.environ.get("TDM_R1_PROFILE", DEFAULT_PROFILE))
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error


PROFILE: Final = chosen_profile()
"""Read once, when the pipelines are compiled: KFP takes timeouts, labels and volumes as literals only."""


def launched(pool: Pool, words: Sequence[str]) -> list[str]:
    """Words of `tdm-r1` that start a stage in as many processes as its pool has."""
    several = ["launch", "--nproc-per-node", str(pool.processes)] if pool.processes > 1 else []
    return [*several, *words]


def placed(task: dsl.PipelineTask, pool: PoolName | None = None) -> dsl.PipelineTask:
    """Place a task on its stage's pool, or on another.

    KFP's cache stays off: it cannot see that the content behind a string changed.
    """
    stage = task.component_spec.name.replace("-", "_")
    machine = PROFILE.pool_of(stage) if pool is None else PROFILE.pool(pool)
    task.set_caching_options(False)
    record_image(task)
    task.container_spec.args = launched(machine, task.container_spec.args)
    _resources(task, machine)
    _scheduling(task, machine)
    _pod(task)
    kubernetes.set_timeout(task, PROFILE.timeout_of(stage) if pool is None else machine.timeout_seconds)
    return task


def _resources(task: Any, pool: Pool) -> None:
    task.set_cpu_request(pool.cpu).set_cpu_limit(pool.cpu)
    task.set_memory_request(pool.memory).set_memory_limit(pool.memory)
    if pool.accelerators:
        task.set_accelerator_type(pool.accelerator).set_accelerator_limit(pool.accelerators)
    kubernetes.empty_dir_mount(task, "scratch", "/tmp", size_limit=pool.scratch)
    if pool.shared_memory:
        kubernetes.empty_dir_mount(task, "shared-memory", "/dev/shm", medium="Memory", size_limit=pool.shared_memory)


def _scheduling(task: Any, pool: Pool) -> None:
    """Where the pod may go, and behind whom it waits. KFP 2.17 sets no PriorityClass, so Kueue's label does."""
    for key, value in pool.node_labels.items():
        kubernetes.add_node_selector(task, label_key=key, label_value=value)
    for taint in pool.tolerations:
        kubernetes.add_toleration(task, key=taint.key, operator=taint.operator, value=taint.value, effect=taint.effect)
    labels = {QUEUE_LABEL: pool.queue, PRIORITY_LABEL: pool.priority}
    for label, name in labels.items():
        if pool.queue and name:
            kubernetes.add_pod_label(task, label, name)


def plain_environment() -> dict[str, str | None]:
    """Variables of every container that are no secret; one without a value is not set."""
    storage = PROFILE.storage
    return {
        "AWS_ENDPOINT_URL": storage.endpoint,
        "AWS_REGION": storage.region,
        "TDM_R1_PUSHGATEWAY": PROFILE.pushgateway,
    }


def _pod(task: Any) -> None:
    """Who the process is, and how it reaches the run directory. KFP drops every capability itself."""
    security, storage = PROFILE.security, PROFILE.storage
    kubernetes.set_security_context(task, run_as_user=security.user, run_as_group=security.group, run_as_non_root=True)
    if storage.secret:
        keys = {
            storage.secret.access_key: "AWS_ACCESS_KEY_ID",
            storage.secret.secret_key: "AWS_SECRET_ACCESS_KEY",
        }
        kubernetes.use_secret_as_env(task, storage.secret.name, keys)
    for name, value in plain_environment().items():
        if value:
            task.set_env_variable(name, value)
