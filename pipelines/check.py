"""Refuse compiled pipelines that the SDK accepts and the open-source backend cannot run."""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

import yaml

MAX_BYTES: Final = 400_000
"""Size of the YAML. Beyond it the workflow object nears Argo's 1 MiB, and KFP's retry stops working."""

PLACEHOLDER: Final = re.compile(r"\{\{\$.*?\}\}", re.DOTALL)
SUPPORTED: Final = re.compile(
    r"\{\{\$\}\}"
    r"|\{\{\$\.inputs\.parameters\['[^']+'\]\}\}"
    r"|\{\{\$\.outputs\.parameters\['[^']+'\]\.output_file\}\}"
    r"|\{\{\$\.(inputs|outputs)\.artifacts\['[^']+'\]\.(uri|path)\}\}"
)

Node = Mapping[str, Any]


class BrokenPipelineError(ValueError):
    """A compiled pipeline holds what the backend cannot run."""


def check(text: str) -> None:
    """Refuse a compiled pipeline with a fault.

    Raises:
        BrokenPipelineError: lists every fault and where it is.
    """
    found = list(faults(text))
    if found:
        listed = "\n".join(f"  {fault}" for fault in found)
        raise BrokenPipelineError(
            f"the compiled pipeline cannot run:\n{listed}\n\nhint: every rule is a function of pipelines/check.py"
        )


def faults(text: str) -> Iterator[str]:
    """Yield one sentence for each fault of a compiled pipeline, given as YAML of one or two documents."""
    size = len(text.encode())
    if size > MAX_BYTES:
        yield f"the file has {size} bytes, more than {MAX_BYTES}: use fewer iterations per block"
    yield from graph_faults(next(yaml.safe_load_all(text)))


def graph_faults(ir: Node) -> Iterator[str]:
    """Yield one sentence for each fault of a pipeline's first document."""
    components = ir.get("components", {})
    for name, executor in ir.get("deploymentSpec", {}).get("executors", {}).items():
        yield from _executor_faults(name, executor)
    for name, component in [*components.items(), ("root", ir["root"])]:
        yield from _port_faults(name, component)
        if "dag" in component:
            yield from _dag_faults(name, component, components)


def _executor_faults(name: str, executor: Node) -> Iterator[str]:
    if "container" not in executor:
        yield f"{name}: an executor of kind {', '.join(executor)} is not a container"
        return
    container = executor["container"]
    for part in [*container.get("command", []), *container.get("args", [])]:
        if isinstance(part, str) and part.startswith(('{"Concat"', '{"IfPresent"')):
            yield f"{name}: {part[:40]}… is never resolved"
        for placeholder in PLACEHOLDER.findall(str(part)):
            if not SUPPORTED.fullmatch(placeholder):
                yield f"{name}: the placeholder {placeholder} is never resolved"


def _port_faults(name: str, component: Node) -> Iterator[str]:
    for side in ("inputDefinitions", "outputDefinitions"):
        for kind in ("parameters", "artifacts"):
            ports = component.get(side, {}).get(kind, {})
            if "Output" in ports:
                yield f"{name}: no port may be called Output"
            yield from (
                f"{name}.{port}: a list of artifacts" for port, spec in ports.items() if spec.get("isArtifactList")
            )


def _dag_faults(name: str, component: Node, components: Node) -> Iterator[str]:
    tasks = component["dag"].get("tasks", {})
    for task_name, task in tasks.items():
        where = f"{name}/{task_name}"
        if "artifactIterator" in task:
            yield f"{where}: a loop over artifacts"
        if task.get("cachingOptions", {}).get("enableCache") and not _is_dag(task, components):
            yield f"{where}: caching is on"
        for upstream in task.get("dependentTasks", []):
            if upstream not in tasks:
                yield f"{where}: waits for {upstream}, which is not a task here"
        yield from _input_faults(where, task, component, components)
    for output, spec in component["dag"].get("outputs", {}).get("parameters", {}).items():
        for selector in _selectors(spec):
            producer, key = selector["producerSubtask"], selector["outputParameterKey"]
            yield from _producer_faults(f"{name}.{output}", producer, key, tasks, components)
    if not _has_else(tasks):
        yield f"{name}: an If without an Else"


def _input_faults(where: str, task: Node, parent: Node, components: Node) -> Iterator[str]:
    reference = task["componentRef"]["name"]
    if reference not in components:
        yield f"{where}: the component {reference} does not exist"
        return
    bound = task.get("inputs", {}).get("parameters", {})
    supplied = {*bound, task.get("parameterIterator", {}).get("itemInput")}
    for port, spec in _ports(components[reference], "inputDefinitions").items():
        if port not in supplied and not spec.get("isOptional") and "defaultValue" not in spec:
            yield f"{where}: the input {port} is not given"
    for port, source in bound.items():
        outer = source.get("componentInputParameter")
        if outer is not None and outer not in _ports(parent, "inputDefinitions"):
            yield f"{where}.{port}: the input {outer} does not exist one level up"
        made = source.get("taskOutputParameter")
        if made is not None:
            siblings = parent["dag"]["tasks"]
            producer, key = made["producerTask"], made["outputParameterKey"]
            yield from _producer_faults(f"{where}.{port}", producer, key, siblings, components)


def _producer_faults(where: str, producer: str, key: str, tasks: Node, components: Node) -> Iterator[str]:
    if producer not in tasks:
        yield f"{where}: its producer {producer} is not a task here"
    elif key not in _ports(components.get(tasks[producer]["componentRef"]["name"], {}), "outputDefinitions"):
        yield f"{where}: its producer {producer} has no output {key}"


def _is_dag(task: Node, components: Node) -> bool:
    return "dag" in components.get(task["componentRef"]["name"], {})


def _ports(component: Node, side: str) -> Node:
    ports: Node = component.get(side, {}).get("parameters", {})
    return ports


def _selectors(spec: Node) -> list[Node]:
    if "valueFromOneof" in spec:
        return list(spec["valueFromOneof"]["parameterSelectors"])
    return [spec["valueFromParameter"]]


def _has_else(tasks: Node) -> bool:
    """True when nothing here is conditional, or one branch is taken exactly if all others are not."""
    conditions = [task["triggerPolicy"]["condition"] for task in tasks.values() if "triggerPolicy" in task]
    return not conditions or any(all(part.startswith("!(") for part in c.split(" && ")) for c in conditions)
