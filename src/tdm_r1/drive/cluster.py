"""What only Kubernetes knows: whether the namespace and the Kueue queues of a pipeline exist."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from tdm_r1.drive.http import Api, NotThereError, SchedulerDownError
from tdm_r1.errors import ConfigError

ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")
KUEUE: Final = "/apis/kueue.x-k8s.io"


def kubernetes_api(endpoint: str | None) -> Api | None:
    """The cluster's API: at `endpoint` (such as `kubectl proxy`), else of the cluster that we run in, else None."""
    host = os.environ.get("KUBERNETES_SERVICE_HOST")
    hint = "run `kubectl proxy` and give --kubernetes http://127.0.0.1:8001, or leave it out"
    if endpoint:
        return Api(endpoint=endpoint, what="the Kubernetes API", hint=hint)
    if host and (ACCOUNT / "token").exists():
        port = os.environ.get("KUBERNETES_SERVICE_PORT_HTTPS", "443")
        shown = f"[{host}]" if ":" in host else host
        return Api(
            endpoint=f"https://{shown}:{port}",
            what="the Kubernetes API",
            hint=hint,
            token_file=ACCOUNT / "token",
            ca_file=ACCOUNT / "ca.crt",
        )
    return None


def check_cluster(api: Api | None, namespace: str, queues: Sequence[str]) -> str:
    """Refuse a namespace or a queue that does not exist; return why they were not looked for, empty when they were.

    Raises:
        ConfigError: when the cluster says that one of them is not there.
    """
    if api is None or not namespace:
        return "no Kubernetes API or no --namespace was given" if queues else ""
    try:
        _require(
            api,
            f"/api/v1/namespaces/{namespace}",
            f"there is no namespace `{namespace}`",
            hint="`kubectl get namespaces`",
        )
        kueue = _kueue(api) if queues else ""
        for queue in queues:
            _require(
                api,
                f"{kueue}/namespaces/{namespace}/localqueues/{queue}",
                f"namespace `{namespace}` has no Kueue LocalQueue `{queue}`, so its pods would wait for ever",
                hint=f"`kubectl -n {namespace} get localqueues`; create it, or compile the pipeline for another queue",
            )
    except NotThereError as error:
        raise ConfigError(error.message, hint=error.hint) from error
    except (ConfigError, SchedulerDownError) as error:
        return error.message  # a driver need not be allowed to read queues
    return ""


def _kueue(api: Api) -> str:
    """Path of the version that the cluster's Kueue prefers: v1beta1 before 0.16, v1beta2 since; 0.20 has no v1beta1."""
    hint = "install Kueue, or compile the pipeline with a profile whose pools have no queue"
    group = _require(api, KUEUE, "the cluster has no Kueue, whose queues the pipeline names", hint=hint)
    return f"/apis/{group['preferredVersion']['groupVersion']}"


def _require(api: Api, path: str, missing: str, *, hint: str) -> Any:
    try:
        return api.get(path)
    except NotThereError as error:
        raise NotThereError(missing, hint=hint) from error
