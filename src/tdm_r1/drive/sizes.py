"""How large a pipeline run becomes: the Argo object that KFP compiles it to, and what its status grows to.

KFP's own compiler is not here, so these are estimates. The object is modelled on the templates that the backend of KFP
2.17 writes; the status on its nodes, three of which repeat the patch of a pod. The limits are of Argo, etcd and Linux:

- Argo stores the specification and the compressed status in one object of at most 1 MiB;
- KFP's retry writes the same object with the status uncompressed, and etcd takes 1.5 MiB;
- Linux takes 128 KiB for one argument, and `{{$}}` is one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from tdm_r1.ceilings import MAX_ARGUMENT, MAX_FAN_IN, MAX_RETRYABLE, MAX_STORED, NODE_STORED, argument_bytes

Node = Mapping[str, Any]

SHARDS: Final = 4
"""Shards that a pipeline is checked for when nobody says how many there will be."""
ITERATIONS: Final = 5
"""Iterations of a loop whose length only the run knows."""

_FIXED: Final = 8_000
"""Templates that every workflow has: drivers, launcher, volumes."""
_CONTAINER_TASK: Final = 900
_DAG_TASK: Final = 1_300
_NODE: Final = 1_300
"""A node of the status without its inputs and outputs."""
_PATCH: Final = 1_600
"""What KFP's driver adds to a pod, beside the component, the container and its settings."""


@dataclass(frozen=True)
class Size:
    """Of one run of a pipeline."""

    spec: int = 0
    """Bytes of the Argo object before it runs."""
    pods: int = 0
    nodes: int = 0
    status: int = 0
    """Bytes of all nodes, uncompressed."""
    fan_in: int = 0
    """Items of the longest list that a task receives from a loop."""

    @property
    def stored(self) -> int:
        return self.spec + self.nodes * NODE_STORED

    @property
    def retryable(self) -> int:
        return self.spec + self.status

    @property
    def argument(self) -> int:
        """Bytes of the longest `{{$}}`."""
        return argument_bytes(self.fan_in)

    def __add__(self, other: Size) -> Size:
        sums = {name: getattr(self, name) + getattr(other, name) for name in ("spec", "pods", "nodes", "status")}
        return Size(**sums, fan_in=max(self.fan_in, other.fan_in))

    def __mul__(self, times: int) -> Size:
        return Size(self.spec * times, self.pods * times, self.nodes * times, self.status * times, self.fan_in)


def size_of(documents: Sequence[Node], lists: Mapping[str, int] | None = None) -> Size:
    """Estimate a run.

    Args:
        documents: the pipeline and, if there is one, the platform document.
        lists: lengths of list parameters and outputs by name; 4 for any other, and 5 for `iterations`.
    """
    lengths = {"iterations": ITERATIONS, **(lists or {})}
    ir, configs = documents[0], _configs(documents)
    root = _Walk(ir, configs, lengths).dag(ir["root"])
    return root + _dag_node() + Size(spec=_spec(ir, configs))


@dataclass(frozen=True)
class Breach:
    """A limit that a run would break."""

    text: str
    """The numbers, and what to change."""
    retry_only: bool = False
    """The run itself fits; only KFP's retry could not write it, which a driver that resubmits does without."""


def breaches(documents: Sequence[Node], lists: Mapping[str, int] | None = None) -> Iterator[Breach]:
    """Yield each limit that a run would break.

    Args:
        documents: as of `size_of`.
        lists: as of `size_of`.
    """
    size = size_of(documents, lists)

    def most(fits: Callable[[Size], bool]) -> str:
        return _advice(most_shards(lambda count: fits(size_of(documents, {**(lists or {}), "shards": count}))))

    if size.stored > MAX_STORED:
        yield Breach(
            f"the Argo object with its compressed status would have about {size.stored:,} bytes in {size.pods:,} pods, "
            f"more than Argo's {MAX_STORED:,}: {most(lambda other: other.stored <= MAX_STORED)}"
        )
    if size.retryable > MAX_RETRYABLE:
        yield Breach(
            f"the object with its status, as KFP's retry writes it, would have about {size.retryable:,} bytes in "
            f"{size.pods:,} pods, more than etcd's {MAX_RETRYABLE:,}: "
            f"{most(lambda other: other.retryable <= MAX_RETRYABLE)}",
            retry_only=True,
        )
    if size.argument > MAX_ARGUMENT:
        yield Breach(
            f"a task would receive {size.fan_in:,} digests, about {size.argument:,} bytes in one argument, "
            f"more than Linux's {MAX_ARGUMENT:,}: use at most {MAX_FAN_IN:,} shards"
        )


def most_shards(fits: Callable[[int], bool]) -> int:
    """The largest number of shards that fits, 0 when not even one does; what fits is all numbers up to it."""
    low, high = 0, 1
    while high < 1 << 20 and fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _advice(shards: int) -> str:
    fewer = "fewer iterations per run"
    return f"use at most {shards:,} shards, or {fewer}" if shards else f"use {fewer}; not even one shard fits"


@dataclass(frozen=True)
class _Walk:
    """What a run's status holds when every branch that can be long is taken."""

    ir: Node
    configs: Node
    lengths: Mapping[str, int]

    def dag(self, component: Node) -> Size:
        tasks = component["dag"]["tasks"].values()
        conditional = [task for task in tasks if "triggerPolicy" in task]
        taken = max((self.task(task) for task in conditional), key=lambda size: size.status, default=Size())
        total = taken + _dag_node() * max(0, len(conditional) - 1)
        for task in tasks:
            if "triggerPolicy" not in task:
                total += self.task(task)
        return total

    def task(self, task: Node) -> Size:
        name = task["componentRef"]["name"]
        component = self.ir["components"][name]
        if "dag" not in component:
            return self.container(component)
        body = self.dag(component) + _dag_node(len(json.dumps(task)))
        if "parameterIterator" not in task:
            return body
        count = self.length(task["parameterIterator"]["items"])
        fan_in = count if component.get("outputDefinitions") else 0
        return body * count + _dag_node() + Size(fan_in=fan_in)

    def length(self, items: Node) -> int:
        if "raw" in items:
            return len(json.loads(items["raw"]))
        named = items["inputParameter"]
        return next((count for name, count in self.lengths.items() if named.endswith(name)), SHARDS)

    def container(self, component: Node) -> Size:
        """A driver's pod, a DAG, a retry and the pod itself; three of them repeat the patch."""
        label = component["executorLabel"]
        executor = self.ir["deploymentSpec"]["executors"].get(label, {})
        parts = (component, executor, self.configs.get(label, {}))
        patch = _PATCH + sum(len(json.dumps(json.dumps(part))) for part in parts)
        return Size(pods=2, nodes=4, status=4 * _NODE + 3 * patch)


def _dag_node(more: int = 0) -> Size:
    """A driver's pod and the DAG that it opens."""
    return Size(pods=1, nodes=3, status=3 * _NODE + more)


def _configs(documents: Sequence[Node]) -> Node:
    platform = documents[1] if len(documents) > 1 else {}
    found: Node = platform.get("platforms", {}).get("kubernetes", {}).get("deploymentSpec", {}).get("executors", {})
    return found


def _spec(ir: Node, configs: Node) -> int:
    """Components and containers are parameters, each different one once; tasks stand in templates, one per DAG."""
    executors = ir["deploymentSpec"]["executors"]
    components = [*ir["components"].values(), ir["root"]]
    parameters = [*components, *executors.values(), *configs.values()]
    different = {json.dumps(part, sort_keys=True) for part in parameters}
    tasks = [task for component in components for task in component.get("dag", {}).get("tasks", {}).values()]
    overhead = sum(
        _DAG_TASK if "dag" in ir["components"].get(task["componentRef"]["name"], {}) else _CONTAINER_TASK
        for task in tasks
    )
    written = sum(len(json.dumps(text)) + 110 for text in different)
    return _FIXED + written + overhead + sum(len(json.dumps(json.dumps(task))) for task in tasks)
