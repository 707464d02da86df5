"""Argo Workflows by the REST API of its server: a WorkflowTemplate is submitted once per block.

Source: api/openapi-spec/swagger.json of argoproj/argo-workflows 3.6 (WorkflowService).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from tdm_r1.ceilings import MAX_STORED
from tdm_r1.console import printable
from tdm_r1.drive.argo_sizes import WorkflowSize, workflow_size
from tdm_r1.drive.http import Api, NotThereError, TakenError
from tdm_r1.drive.package import PARAMETERS, processes_in, queues_in
from tdm_r1.drive.scheduler import Block, Status
from tdm_r1.drive.sizes import Breach, most_shards
from tdm_r1.errors import ConfigError

BASE: Final = "/api/v1"
ENDED: Final = frozenset({"Succeeded", "Failed", "Error"})
SHOWN_FAILURES: Final = 3
HINT: Final = (
    "--endpoint is the Argo server: `kubectl -n argo port-forward svc/argo-server 2746:2746`, then "
    "https://127.0.0.1:2746 with --token-file and --ca-file"
)


@dataclass(kw_only=True)
class Argo:
    """One Argo server and one WorkflowTemplate."""

    api: Api
    template: str
    namespace: str
    service_account: str = ""
    _takes: frozenset[str] = field(default=frozenset(PARAMETERS), init=False)
    _template: Mapping[str, Any] = field(default_factory=dict, init=False)
    """As the server has it."""

    def check(self) -> None:
        if not self.namespace:
            raise ConfigError("no namespace was given", hint="--namespace is where the WorkflowTemplate lies")
        where = f"{BASE}/workflow-templates/{self.namespace}"
        listed = self.api.get(where, {"listOptions.limit": "50"})
        if not isinstance(listed, dict) or "metadata" not in listed:
            raise ConfigError(f"{self.api.endpoint} is no Argo server", hint=HINT)
        try:
            template = self.api.get(f"{where}/{self.template}")
        except NotThereError as error:
            names = [str(item["metadata"]["name"]) for item in listed.get("items") or []]
            raise ConfigError(
                f"there is no WorkflowTemplate `{self.template}` in namespace `{self.namespace}`",
                hint=f"it has {printable(', '.join(sorted(names))) or 'none'}; a missing namespace looks the same",
            ) from error
        self._takes, self._template = self._parameters_of(template), template

    @property
    def processes(self) -> Mapping[str, int]:
        return processes_in(self._template)

    @property
    def queues(self) -> tuple[str, ...]:
        return tuple(sorted(set(queues_in(self._template))))

    def breaches(self, shards: int) -> Iterator[Breach]:
        """A workflow whose first iteration is already too large; later ones are left to the next workflow."""
        size = self._size(shards)
        if size is not None and size.stored(1) > MAX_STORED:
            fits = most_shards(lambda count: workflow_size(self._template, count).stored(1) <= MAX_STORED)
            yield Breach(
                f"a workflow with one iteration would have about {size.stored(1):,} bytes in {size.nodes:,} nodes, "
                f"more than Argo's {MAX_STORED:,}: use at most {fits:,} shards"
            )

    def find(self, name: str) -> str | None:
        try:
            self.api.get(f"{BASE}/workflows/{self.namespace}/{name}", {"fields": "metadata.name"})
        except NotThereError:
            return None
        return name

    def submit(self, block: Block) -> str:
        """A workflow's name is unique, so that a second submission of a block is refused by the server."""
        options: dict[str, Any] = {
            "name": block.name,
            "parameters": [f"{key}={as_text(value)}" for key, value in self._parameters(block).items()],
        }
        if self.service_account:
            options["serviceAccount"] = self.service_account
        body = {"resourceKind": "WorkflowTemplate", "resourceName": self.template, "submitOptions": options}
        try:
            made = self.api.post(f"{BASE}/workflows/{self.namespace}/submit", body)
        except TakenError:
            return block.name
        return str(made["metadata"]["name"])

    def status(self, run_id: str) -> Status:
        try:
            workflow = self.api.get(f"{BASE}/workflows/{self.namespace}/{run_id}")
        except NotThereError:
            return Status("failed", "the workflow was deleted")
        status = workflow.get("status") or {}
        phase = status.get("phase", "")
        if phase not in ENDED:
            return Status("running")
        return Status("succeeded") if phase == "Succeeded" else Status("failed", failure(status))

    def terminate(self, run_id: str) -> None:
        try:
            workflow = self.api.get(f"{BASE}/workflows/{self.namespace}/{run_id}")
            if (workflow.get("status") or {}).get("phase", "") not in ENDED:
                self.api.post(f"{BASE}/workflows/{self.namespace}/{run_id}/terminate", {}, method="PUT")
        except NotThereError:
            pass

    def _parameters(self, block: Block) -> Mapping[str, Any]:
        """Those of the block, and a `budget` of iterations where the template's own would outgrow Argo's object."""
        given = block.parameters(self._takes)
        own, size = self._defaults().get("budget"), self._size(len(block.shards))
        if size is None or size.iterations is None or own is None or not str(own).isdecimal():
            return given
        return given if int(own) <= size.iterations else {**given, "budget": size.iterations}

    def _size(self, shards: int) -> WorkflowSize | None:
        """None for a template of another shape, which Argo itself will judge."""
        try:
            return workflow_size(self._template, shards)
        except (KeyError, TypeError):
            return None

    def _defaults(self) -> Mapping[str, Any]:
        """Values of the template's parameters that have one."""
        given = (self._template.get("spec", {}).get("arguments") or {}).get("parameters") or []
        return {str(each.get("name")): each["value"] for each in given if "value" in each}

    def _parameters_of(self, template: Mapping[str, Any]) -> frozenset[str]:
        given = (template.get("spec", {}).get("arguments") or {}).get("parameters") or []
        known = {str(parameter.get("name")): "value" in parameter for parameter in given}
        needed = {name for name, has_value in known.items() if not has_value and name not in PARAMETERS}
        if "root" not in known or needed:
            raise ConfigError(
                f"WorkflowTemplate `{self.template}` "
                + (f"needs {', '.join(sorted(needed))} too" if "root" in known else "has no parameter root"),
                hint="submit a template with the parameters root, start and shards, and defaults for any others",
            )
        return frozenset(known) & frozenset(PARAMETERS)


def as_text(value: Any) -> str:
    """A parameter of Argo is a string; anything else is written as JSON."""
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def failure(status: Mapping[str, Any]) -> str:
    """Which pods failed, and what the controller says."""
    nodes = (status.get("nodes") or {}).values()
    failed = [n for n in nodes if n.get("type") == "Pod" and n.get("phase") in ("Failed", "Error")]
    parts = [f"{node.get('displayName')}: {node.get('message', '')}".rstrip(": ") for node in failed[:SHOWN_FAILURES]]
    parts += [f"{len(failed) - SHOWN_FAILURES} more pods failed"] if len(failed) > SHOWN_FAILURES else []
    text = "; ".join([str(status.get("phase", "")).lower(), *filter(None, [str(status.get("message", ""))]), *parts])
    return printable(" ".join(text.split()))[:1000]
