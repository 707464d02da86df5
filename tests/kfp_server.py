"""A KFP server for tests: the part of the v2beta1 API that a driver uses, over a real socket.

Written from the published OpenAPI description. Bodies are checked against the models that KFP's own client
(`kfp_server_api`) is generated with, in both directions: a field that the API does not have fails the request.
"""

from __future__ import annotations

import json
import re
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol

import kfp_server_api as models

from tests.http_server import Answer, Fault, Refused, Request, serving

BASE = "/apis/v2beta1"
ENDED = {"SUCCEEDED", "FAILED", "CANCELED"}


class Work(Protocol):
    """What a cluster does with a block; returns the message of a failure, None for success."""

    def __call__(
        self, parameters: Mapping[str, Any], spec: Mapping[str, Any], ended: threading.Event
    ) -> str | None: ...


@dataclass
class KfpServer:
    """State of the server; `fault` may be replaced at any time."""

    work: Work
    multi_user: bool = False
    namespaces: tuple[str, ...] = ()
    fault: Fault | None = None
    endpoint: str = ""
    runs: dict[str, dict[str, Any]] = field(default_factory=dict)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    """Of every run that was created, as it was sent."""
    experiments: dict[str, dict[str, Any]] = field(default_factory=dict)
    pipelines: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Specs by pipeline name, each of the namespace that asks."""
    shared: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Those without a namespace, which a list for a namespace leaves out."""
    requests: list[Request] = field(default_factory=list)
    _ends: dict[str, threading.Event] = field(default_factory=dict)
    _threads: list[threading.Thread] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def handle(self, request: Request) -> Any:
        self.requests.append(request)
        routes: list[tuple[str, str, Callable[..., Any]]] = [
            ("GET", "/healthz", self.healthz),
            ("GET", "/experiments", self.list_experiments),
            ("POST", "/experiments", self.create_experiment),
            ("GET", "/pipelines", self.list_pipelines),
            ("GET", r"/pipelines/([^/]+)/versions", self.list_versions),
            ("GET", "/runs", self.list_runs),
            ("POST", "/runs", self.create_run),
            ("GET", r"/runs/([^/:]+)", self.get_run),
            ("POST", r"/runs/([^/:]+):terminate", self.terminate_run),
        ]
        for method, pattern, call in routes:
            match = re.fullmatch(BASE + pattern, request.path)
            if match and method == request.method:
                with self._lock:
                    return call(request, *match.groups())
        raise Refused(404, "Not Found")

    def healthz(self, _: Request) -> Any:
        return conforming({"multi_user": self.multi_user}, "V2beta1GetHealthzResponse")

    def list_experiments(self, request: Request) -> Any:
        self._authorize(request.query.get("namespace", ""))
        found = filtered(self.experiments.values(), request)
        return conforming({"experiments": found} if found else {}, "V2beta1ListExperimentsResponse")

    def create_experiment(self, request: Request) -> Any:
        body = conforming(request.body, "V2beta1Experiment")
        self._authorize(body.get("namespace", ""))
        made = {**body, "experiment_id": str(uuid.uuid4()), "created_at": now()}
        self.experiments[made["experiment_id"]] = made
        return conforming(made, "V2beta1Experiment")

    def list_pipelines(self, request: Request) -> Any:
        namespace = request.query.get("namespace", "")
        if namespace:
            self._authorize(namespace)
        there = self.shared if self.multi_user and not namespace else self.pipelines
        known = [{"pipeline_id": f"id-{name}", "display_name": name, "name": name} for name in there]
        found = filtered(known, request)
        return conforming({"pipelines": found} if found else {}, "V2beta1ListPipelinesResponse")

    def list_versions(self, request: Request, pipeline: str) -> Any:
        known = [
            {"pipeline_id": pipeline, "pipeline_version_id": f"{pipeline}-v1", "display_name": "v1", "pipeline_spec": s}
            for name, s in self._uploaded.items()
            if f"id-{name}" == pipeline
        ]
        found = filtered(known, request)
        return conforming({"pipeline_versions": found} if found else {}, "V2beta1ListPipelineVersionsResponse")

    def list_runs(self, request: Request) -> Any:
        if self.multi_user and not request.query.get("namespace") and not request.query.get("experiment_id"):
            raise Refused(400, "Invalid resource references for listing runs")
        found = filtered(self.runs.values(), request)
        return conforming({"runs": found} if found else {}, "V2beta1ListRunsResponse")

    def create_run(self, request: Request) -> Any:
        body = conforming(request.body, "V2beta1Run")
        if not body.get("display_name"):
            raise Refused(400, "Run's display name is empty")
        if body.get("experiment_id") not in self.experiments:
            raise Refused(404, f"experiment {body.get('experiment_id')} not found")
        spec = body.get("pipeline_spec") or self._referenced(body.get("pipeline_version_reference") or {})
        pipeline = spec.get("pipeline_spec", spec)
        given = body.get("runtime_config", {}).get("parameters", {})
        ports = pipeline["root"]["inputDefinitions"]["parameters"]
        if unknown := set(given) - set(ports):
            raise Refused(400, f"parameters {sorted(unknown)} are not defined in the pipeline")
        run = {**body, "run_id": str(uuid.uuid4()), "created_at": now(), "state": "PENDING"}
        self.bodies.append(body)
        self.runs[run["run_id"]] = run
        self._ends[run["run_id"]] = threading.Event()
        self._threads.append(threading.Thread(target=self._execute, args=(run, spec, given), daemon=True))
        self._threads[-1].start()
        return conforming(run, "V2beta1Run")

    def get_run(self, _: Request, run_id: str) -> Any:
        if run_id not in self.runs:
            raise Refused(404, f"run {run_id} not found")
        return conforming(self.runs[run_id], "V2beta1Run")

    def terminate_run(self, _: Request, run_id: str) -> Any:
        if self.runs[run_id]["state"] in ENDED:
            raise Refused(400, "Failed to terminate a run: it has ended")
        self.runs[run_id]["state"] = "CANCELING"
        self._ends[run_id].set()
        return {}

    def wait(self) -> None:
        for event in self._ends.values():
            event.set()
        for thread in self._threads:
            thread.join(timeout=60)

    def _execute(self, run: dict[str, Any], spec: Mapping[str, Any], parameters: Mapping[str, Any]) -> None:
        ended = self._ends[run["run_id"]]
        run["state"] = "RUNNING"
        wrong = self.work(parameters, spec, ended)
        task: dict[str, Any] = {"display_name": "rollout", "state": "FAILED", "error": {"code": 2, "message": wrong}}
        with self._lock:
            run["finished_at"] = now()
            if wrong is not None:
                run["run_details"] = {"task_details": [task]}
            run["state"] = "CANCELED" if ended.is_set() else "SUCCEEDED" if wrong is None else "FAILED"

    @property
    def _uploaded(self) -> dict[str, dict[str, Any]]:
        return {**self.shared, **self.pipelines}

    def _authorize(self, namespace: str) -> None:
        if not self.multi_user and namespace:
            raise Refused(400, "In single-user mode, the namespace must be empty")
        if self.multi_user and namespace not in self.namespaces:
            raise Refused(403, f"User is not authorized to list experiments in namespace {namespace}")

    def _referenced(self, reference: Mapping[str, str]) -> Mapping[str, Any]:
        for name, spec in self._uploaded.items():
            if reference == {"pipeline_id": f"id-{name}", "pipeline_version_id": f"id-{name}-v1"}:
                return spec
        raise Refused(404, f"pipeline version {reference} not found")


@contextmanager
def kfp_server(work: Work, **settings: Any) -> Iterator[KfpServer]:
    """Run a server until the end of the block; then stop what it executes."""
    server = KfpServer(work, **settings)
    with serving(server.handle, lambda: server.fault) as endpoint:
        server.endpoint = endpoint
        try:
            yield server
        finally:
            server.wait()


def conforming(body: dict[str, Any], name: str) -> dict[str, Any]:
    """Return the body, or refuse it where the API has no such field."""
    model = getattr(models, name)
    kinds = {model.attribute_map[field]: kind for field, kind in model.openapi_types.items()}
    for key, value in body.items():
        if key not in kinds:
            raise Refused(400, f'unknown field "{key}" in {name}')
        inner = re.fullmatch(r"(?:list\[)?(\w+)\]?", kinds[key])
        nested = getattr(models, inner[1], None) if inner else None
        if nested is not None and getattr(nested, "openapi_types", None):
            assert inner is not None
            for part in value if isinstance(value, list) else [value]:
                conforming(part, inner[1])
        elif nested is not None and value not in nested.allowable_values:
            raise Refused(400, f"{value} is no {inner[1] if inner else ''}")
    return body


def filtered(values: Any, request: Request) -> list[dict[str, Any]]:
    """Apply the filter and the page size of a request."""
    predicates = json.loads(request.query.get("filter", "{}")).get("predicates", [])
    for predicate in predicates:
        conforming(
            {re.sub("[A-Z]", lambda c: "_" + c[0].lower(), key): predicate[key] for key in predicate},
            "V2beta1Predicate",
        )
        if predicate["operation"] != "EQUALS" or predicate["key"] != "display_name":
            raise Refused(400, f"cannot filter by {predicate}")
    wanted = {predicate["stringValue"] for predicate in predicates}
    found = [value for value in values if not wanted or value["display_name"] in wanted]
    if experiment := request.query.get("experiment_id"):
        found = [value for value in found if value.get("experiment_id") == experiment]
    return found[: int(request.query.get("page_size", "10"))]


def now() -> str:
    return datetime.now(UTC).isoformat()


__all__ = ["Answer", "KfpServer", "Request", "kfp_server"]
