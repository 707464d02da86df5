"""Kubeflow Pipelines by its v2beta1 REST API, so that the driver needs no KFP SDK and none of its pins.

Source: backend/api/v2beta1/swagger/kfp_api_single_file.swagger.json of kubeflow/pipelines 2.17.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from tdm_r1.console import printable
from tdm_r1.drive.http import Api, NotThereError
from tdm_r1.drive.package import Package, taken_parameters
from tdm_r1.drive.scheduler import Block, Status
from tdm_r1.drive.sizes import Breach
from tdm_r1.errors import ConfigError

BASE: Final = "/apis/v2beta1"
ENDED: Final = frozenset({"SUCCEEDED", "SKIPPED", "FAILED", "CANCELED"})
SHOWN_FAILURES: Final = 3
HINT: Final = (
    "--endpoint is the API, not the page: `kubectl -n kubeflow port-forward svc/ml-pipeline 8888:8888`, then "
    "http://127.0.0.1:8888; from inside the cluster http://ml-pipeline.kubeflow:8888"
)


@dataclass(kw_only=True)
class Kfp:
    """One KFP server, one pipeline, one experiment."""

    api: Api
    package: Package | None = None
    """Submitted whole with each run; None for a pipeline that lies on the server."""
    pipeline_name: str = ""
    version_name: str = ""
    """Version of `pipeline_name`; empty for the newest."""
    namespace: str = ""
    experiment: str = "tdm-r1"
    service_account: str = ""
    _experiment_id: str = field(default="", init=False)
    _reference: dict[str, str] = field(default_factory=dict, init=False)
    _compiled: Package = field(default_factory=lambda: Package({}), init=False)
    """What each run executes: `package`, or what lies on the server."""

    def check(self) -> None:
        multi_user = self._healthy()
        if multi_user and not self.namespace:
            raise ConfigError(
                f"{self.api.endpoint} serves several users, and no namespace was given",
                hint="--namespace is your profile, as the page shows it at the top",
            )
        self._require_namespace()
        self._compiled = self.package or self._find_pipeline()

    @property
    def processes(self) -> Mapping[str, int]:
        return self._compiled.processes

    @property
    def queues(self) -> tuple[str, ...]:
        return self._compiled.queues

    def breaches(self, shards: int) -> Iterable[Breach]:
        return self._compiled.breaches(shards)

    def find(self, name: str) -> str | None:
        query = {"page_size": "1", "filter": named(name), "experiment_id": self._experiment()}
        found = self.api.get(f"{BASE}/runs", query).get("runs") or []
        return str(found[0]["run_id"]) if found else None

    def submit(self, block: Block) -> str:
        body: dict[str, Any] = {
            "display_name": block.name,
            "experiment_id": self._experiment(),
            "runtime_config": {"parameters": dict(block.parameters(self._compiled.takes))},
        }
        if self.package is not None:
            body["pipeline_spec"] = self.package.body
        else:
            body["pipeline_version_reference"] = self._reference
        if self.service_account:
            body["service_account"] = self.service_account
        return str(self.api.post(f"{BASE}/runs", body)["run_id"])

    def status(self, run_id: str) -> Status:
        try:
            run = self.api.get(f"{BASE}/runs/{run_id}")
        except NotThereError:
            return Status("failed", "the run was deleted")
        state = run.get("state", "")
        if state not in ENDED:
            return Status("running")
        return Status("succeeded") if state == "SUCCEEDED" else Status("failed", failure(run))

    def terminate(self, run_id: str) -> None:
        try:
            if self.api.get(f"{BASE}/runs/{run_id}").get("state", "") not in ENDED:
                self.api.post(f"{BASE}/runs/{run_id}:terminate")
        except NotThereError:
            pass

    def _healthy(self) -> bool:
        """Whether the server has several users; refuses what is no KFP server."""
        try:
            health = self.api.get(f"{BASE}/healthz")
        except NotThereError as error:
            raise ConfigError(f"{self.api.endpoint} has no KFP API of version v2beta1", hint=HINT) from error
        if not isinstance(health, dict):
            raise ConfigError(f"{self.api.endpoint} is no KFP server", hint=HINT)
        return bool(health.get("multi_user"))

    def _require_namespace(self) -> None:
        query = {"page_size": "1", **({"namespace": self.namespace} if self.namespace else {})}
        try:
            self.api.get(f"{BASE}/experiments", query)
        except ConfigError as error:
            raise ConfigError(
                f"namespace `{self.namespace}` cannot be used: {error.message}",
                hint="--namespace is a profile that your token may use; a server for one user wants none",
            ) from error

    def _experiment(self) -> str:
        """The experiment's identifier; made when it is not there."""
        if not self._experiment_id:
            where = {"namespace": self.namespace} if self.namespace else {}
            query = {"filter": named(self.experiment), "page_size": "1", **where}
            found = self.api.get(f"{BASE}/experiments", query).get("experiments") or []
            made = (
                found[0] if found else self.api.post(f"{BASE}/experiments", {"display_name": self.experiment, **where})
            )
            self._experiment_id = str(made["experiment_id"])
        return self._experiment_id

    def _pipelines(self, query: Mapping[str, str]) -> list[Any]:
        """Pipelines of the namespace; when it has none, those that every namespace shares."""
        own = {"namespace": self.namespace} if self.namespace else {}
        found = self.api.get(f"{BASE}/pipelines", {**query, **own}).get("pipelines") or []
        if found or not own:
            return list(found)
        try:
            return list(self.api.get(f"{BASE}/pipelines", query).get("pipelines") or [])
        except ConfigError:
            return []  # a server that shares none

    def _find_pipeline(self) -> Package:
        """Resolve the names once, so that every block of this driver is the same pipeline."""
        found = self._pipelines({"filter": named(self.pipeline_name), "page_size": "1"})
        if not found:
            others = self._pipelines({"page_size": "20"})
            names = ", ".join(sorted(printable(str(p.get("display_name"))) for p in others)) or "none"
            upload = "kfp pipeline create -p NAME FILE"
            if self.namespace:  # that command knows no namespace
                upload = f"kfp.Client(…).upload_pipeline(FILE, NAME, namespace='{self.namespace}')"
            raise ConfigError(
                f"there is no pipeline `{self.pipeline_name}` on {self.api.endpoint}",
                hint=f"it has {names}; upload one with `{upload}`",
            )
        pipeline = str(found[0]["pipeline_id"])
        query = {"sort_by": "created_at desc", "page_size": "1"}
        if self.version_name:
            query["filter"] = named(self.version_name)
        versions = self.api.get(f"{BASE}/pipelines/{pipeline}/versions", query).get("pipeline_versions") or []
        if not versions:
            raise ConfigError(
                f"pipeline `{self.pipeline_name}` has no version {self.version_name or 'at all'}",
                hint="leave --pipeline-version out for the newest",
            )
        spec = versions[0].get("pipeline_spec") or {}
        compiled = spec.get("pipeline_spec", spec)
        self._reference = {"pipeline_id": pipeline, "pipeline_version_id": str(versions[0]["pipeline_version_id"])}
        taken = taken_parameters(compiled, f"pipeline `{self.pipeline_name}`")
        return Package(compiled, spec.get("platform_spec"), taken)


def named(name: str) -> str:
    """A filter on the name, as the API wants it."""
    return json.dumps({"predicates": [{"operation": "EQUALS", "key": "display_name", "stringValue": name}]})


def failure(run: Mapping[str, Any]) -> str:
    """Which tasks failed, and what the server says about them and the run."""
    tasks = (run.get("run_details") or {}).get("task_details") or []
    failed = [task for task in tasks if task.get("state") == "FAILED"]
    parts = [f"{t.get('display_name')}: {message(t)}".rstrip(": ") for t in failed[:SHOWN_FAILURES]]
    parts += [f"{len(failed) - SHOWN_FAILURES} more tasks failed"] if len(failed) > SHOWN_FAILURES else []
    text = "; ".join([str(run.get("state", "")).lower(), *filter(None, [message(run)]), *parts])
    return printable(" ".join(text.split()))[:1000]


def message(node: Mapping[str, Any]) -> str:
    """The message of a google.rpc.Status, empty without one."""
    return str((node.get("error") or {}).get("message", ""))[:300]
