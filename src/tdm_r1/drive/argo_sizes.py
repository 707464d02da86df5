"""How large a workflow of an Argo template becomes, and for how many iterations it stays below what Argo stores.

An estimate from the template alone: every step, group of steps, pod and retry is a node of the status. A template that
calls itself is the loop; each call is an iteration.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from tdm_r1.ceilings import MAX_STORED, NODE_STORED

SHARDS: Final = "{{workflow.parameters.shards}}"
"""The list over which a template fans out once per shard."""


@dataclass(frozen=True)
class WorkflowSize:
    """Of a workflow with a given number of shards."""

    spec: int
    """Bytes of the template, which Argo keeps beside the status of each workflow."""
    nodes: int
    """With one iteration."""
    more: int
    """Nodes of each further iteration; 0 for a template that never calls itself."""

    def stored(self, iterations: int) -> int:
        """Bytes of the object."""
        return self.spec + NODE_STORED * (self.nodes + self.more * (iterations - 1))

    @property
    def iterations(self) -> int | None:
        """As many as fit into one workflow; None when their number changes nothing."""
        if not self.more:
            return None
        return max(0, 1 + (MAX_STORED - self.stored(1)) // (NODE_STORED * self.more))


def workflow_size(template: Mapping[str, Any], shards: int) -> WorkflowSize:
    """Estimate the workflows of a WorkflowTemplate.

    Raises:
        KeyError: for a template that names another which it does not have.
    """
    walk = _Walk({each["name"]: each for each in template["spec"]["templates"]}, shards)
    nodes = walk.nodes(template["spec"]["entrypoint"], ())
    more = max((walk.nodes(name, ()) for name in walk.loops), default=0)
    return WorkflowSize(spec=len(json.dumps(template["spec"])), nodes=nodes, more=more)


@dataclass(frozen=True)
class _Walk:
    templates: Mapping[str, Mapping[str, Any]]
    shards: int
    loops: set[str] = field(default_factory=set)

    def nodes(self, name: str, above: Sequence[str]) -> int:
        """Of one call of a template, without the calls of those above it."""
        if name in above:
            self.loops.add(name)
            return 0
        template = self.templates[name]
        if "steps" not in template:
            return 1 + ("retryStrategy" in template)
        groups = template["steps"]
        return 1 + sum(1 + sum(self.step(step, (*above, name)) for step in group) for group in groups)

    def step(self, step: Mapping[str, Any], above: Sequence[str]) -> int:
        times = self.shards if step.get("withParam") == SHARDS else 1
        return times * self.nodes(step["template"], above)
