"""Faults of a compiled pipeline against its schemas, and of what it asks of Kubernetes."""

from collections.abc import Iterator, Mapping
from typing import Any

from google.protobuf import json_format
from kfp.kubernetes import kubernetes_executor_config_pb2
from kfp.pipeline_spec import pipeline_spec_pb2

Node = Mapping[str, Any]


def schema_faults(documents: list[Node]) -> Iterator[str]:
    """Yield one sentence for each document that is not of KFP's schema; a misspelt key is a fault."""
    messages = {"pipeline": pipeline_spec_pb2.PipelineSpec(), "platform": pipeline_spec_pb2.PlatformSpec()}
    for (what, message), document in zip(messages.items(), documents, strict=False):
        yield from _parsed(f"the {what} document", document, message)
    for name, executor in documents[0].get("deploymentSpec", {}).get("executors", {}).items():
        kind = pipeline_spec_pb2.PipelineDeploymentConfig.ExecutorSpec()
        yield from _parsed(name, executor, kind)  # the document takes any object there
    for name, config in executor_configs(documents).items():
        yield from _parsed(f"{name}: its Kubernetes settings", config, _config_message())


def _config_message() -> Any:
    return kubernetes_executor_config_pb2.KubernetesExecutorConfig()


def _parsed(what: str, node: Node, message: Any) -> Iterator[str]:
    try:
        json_format.ParseDict(node, message)
    except json_format.ParseError as error:
        yield f"{what} is not of KFP's schema: {' '.join(str(error).split())[:200]}"


def executor_configs(documents: list[Node]) -> Node:
    """What the platform document asks of Kubernetes, by executor."""
    platform = documents[1] if len(documents) > 1 else {}
    found: Node = platform.get("platforms", {}).get("kubernetes", {}).get("deploymentSpec", {}).get("executors", {})
    return found


def platform_faults(documents: list[Node]) -> Iterator[str]:
    """Yield one sentence for each container that could run without an end, without a limit, or as root."""
    executors = documents[0].get("deploymentSpec", {}).get("executors", {})
    configs = executor_configs(documents)
    for name in configs:
        if name not in executors:
            yield f"{name}: Kubernetes settings of a container that does not exist"
    for name, executor in executors.items():
        resources = executor.get("container", {}).get("resources", {})
        for limit in ("resourceCpuLimit", "resourceMemoryLimit"):
            if limit not in resources:
                yield f"{name}: no {limit}"
        config = configs.get(name, {})
        if "activeDeadlineSeconds" not in config:
            yield f"{name}: no timeout"
        security = config.get("securityContext", {})
        if not security.get("runAsNonRoot") or int(security.get("runAsUser", 0)) == 0:
            yield f"{name}: may run as root"
