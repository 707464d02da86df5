"""An Argo server for tests: the part of its WorkflowService that a driver uses, over a real socket.

Written from api/openapi-spec/swagger.json of Argo Workflows; field names of a submission are checked against Hera's
models, which are generated from it, where Hera is installed.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.http_server import Fault, Refused, Request, serving
from tests.kfp_server import Work

SUBMISSION = {"namespace", "resourceKind", "resourceName", "submitOptions"}
OPTIONS = {
    *("name", "generateName", "entryPoint", "parameters", "serviceAccount", "dryRun", "serverDryRun"),
    *("labels", "annotations", "ownerReference", "podPriorityClassName", "priority"),
}


@dataclass
class ArgoServer:
    """State of the server: templates by name in the namespace `argo`, and workflows."""

    work: Work
    templates: dict[str, list[dict[str, Any]]]
    """Parameters by template."""
    fault: Fault | None = None
    endpoint: str = ""
    workflows: dict[str, dict[str, Any]] = field(default_factory=dict)
    submitted: list[dict[str, Any]] = field(default_factory=list)
    _ends: dict[str, threading.Event] = field(default_factory=dict)
    _threads: list[threading.Thread] = field(default_factory=list)

    def handle(self, request: Request) -> Any:
        path = request.path.removeprefix("/api/v1/")
        if match := re.fullmatch(r"workflow-templates/([^/]+)(?:/([^/]+))?", path):
            return self.template(match[1], match[2])
        if request.method == "POST" and path == "workflows/argo/submit":
            return self.submit(request.body)
        if match := re.fullmatch(r"workflows/argo/([^/]+)(/terminate)?", path):
            if match[1] not in self.workflows:
                raise Refused(404, f'workflows.argoproj.io "{match[1]}" not found')
            if match[2] and request.method == "PUT":
                self._ends[match[1]].set()
            return self.workflows[match[1]]
        raise Refused(404, "Not Found")

    def template(self, namespace: str, name: str | None) -> Any:
        known = {
            n: {"metadata": {"name": n}, "spec": {"arguments": {"parameters": p}}} for n, p in self.templates.items()
        }
        if name is None:
            return {"metadata": {}, "items": list(known.values()) if namespace == "argo" else None}
        if namespace != "argo" or name not in known:
            raise Refused(404, f'workflowtemplates.argoproj.io "{name}" not found')
        return known[name]

    def submit(self, body: Mapping[str, Any]) -> Any:
        options = body["submitOptions"]
        if set(body) - SUBMISSION or set(options) - OPTIONS or body["resourceKind"] != "WorkflowTemplate":
            raise Refused(400, "unknown field")
        if options["name"] in self.workflows:
            raise Refused(409, f'workflows.argoproj.io "{options["name"]}" already exists')
        given = dict(pair.split("=", 1) for pair in options["parameters"])
        if unknown := set(given) - {p["name"] for p in self.templates[body["resourceName"]]}:
            raise Refused(400, f"unknown parameters {unknown}")
        workflow = {"metadata": {"name": options["name"]}, "status": {"phase": "Running", "nodes": {}}}
        self.workflows[options["name"]] = workflow
        self.submitted.append(given)
        self._ends[options["name"]] = threading.Event()
        self._threads.append(threading.Thread(target=self._execute, args=(workflow, given), daemon=True))
        self._threads[-1].start()
        return workflow

    def wait(self) -> None:
        for event in self._ends.values():
            event.set()
        for thread in self._threads:
            thread.join(timeout=60)

    def _execute(self, workflow: dict[str, Any], given: Mapping[str, str]) -> None:
        parameters = {**given, "start": json.loads(given.get("start", "1"))}
        wrong = self.work(parameters, {}, self._ends[workflow["metadata"]["name"]])
        if wrong is None:
            workflow["status"] = {"phase": "Succeeded"}
            return
        node = {"type": "Pod", "phase": "Failed", "displayName": "rollout(0)", "message": wrong}
        workflow["status"] = {"phase": "Failed", "message": "child failed", "nodes": {"a": node}}


@contextmanager
def argo_server(work: Work, templates: dict[str, list[dict[str, Any]]], **settings: Any) -> Iterator[ArgoServer]:
    """Run a server until the end of the block; then stop what it executes."""
    server = ArgoServer(work, templates, **settings)
    with serving(server.handle, lambda: server.fault) as endpoint:
        server.endpoint = endpoint
        try:
            yield server
        finally:
            server.wait()
