"""Refuse compiled pipelines that the SDK accepts and the open-source backend cannot run.

`python -m pipelines.check FILE [--shards 64] [--iterations 3] [--pinned] [--without-retry]`
"""

import argparse
import re
import sys
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any, Final

from pipelines.check_platform import platform_faults, schema_faults
from pipelines.ir import documents
from tdm_r1.ceilings import MAX_ARGUMENT, MAX_FILE
from tdm_r1.drive.sizes import breaches, size_of

PLACEHOLDER: Final = re.compile(r"\{\{\$.*?\}\}", re.DOTALL)
SUPPORTED: Final = re.compile(
    r"\{\{\$\}\}"
    r"|\{\{\$\.inputs\.parameters\['[^']+'\]\}\}"
    r"|\{\{\$\.outputs\.parameters\['[^']+'\]\.output_file\}\}"
    r"|\{\{\$\.(inputs|outputs)\.artifacts\['[^']+'\]\.(uri|path)\}\}"
)
DIGEST: Final = re.compile(r"@sha256:[0-9a-f]{64}$")

Node = Mapping[str, Any]


class BrokenPipelineError(ValueError):
    """A compiled pipeline holds what the backend cannot run."""


def check(text: str, lists: Mapping[str, int] | None = None, *, pinned: bool = False, retry: bool = True) -> None:
    """Refuse a compiled pipeline with a fault.

    Args:
        text: YAML of one or two documents.
        lists: lengths of list parameters by name, for the sizes.
        pinned: also refuse an image that is not named by its digest.
        retry: refuse a run that is too large for KFP's retry, though it could run.

    Raises:
        BrokenPipelineError: lists every fault and where it is.
    """
    parsed = documents(text)
    found = [*faults(text, parsed), *(image_faults(parsed[0]) if pinned else ())]
    if not found:
        found = [breach.text for breach in breaches(parsed, lists) if retry or not breach.retry_only]
    if found:
        listed = "\n".join(f"  {fault}" for fault in found)
        raise BrokenPipelineError(
            f"the compiled pipeline cannot run:\n{listed}\n\nhint: `--iterations` of pipelines.compile makes a block "
            "smaller; `--without-retry` allows one for `tdm-r1 drive`, which submits again itself; every rule is a "
            "function of pipelines/check*.py or src/tdm_r1/drive/sizes.py"
        )


def faults(text: str, parsed: list[Node]) -> Iterator[str]:
    """Yield one sentence for each fault of a compiled pipeline."""
    size = len(text.encode())
    if size > MAX_FILE:
        yield f"the file has {size:,} bytes, more than {MAX_FILE:,}: use fewer iterations per block"
    yield from schema_faults(parsed)
    yield from graph_faults(parsed[0])
    yield from platform_faults(parsed)


def graph_faults(ir: Node) -> Iterator[str]:
    """Yield one sentence for each fault of a pipeline's first document."""
    components = ir.get("components", {})
    for name, executor in ir.get("deploymentSpec", {}).get("executors", {}).items():
        yield from _executor_faults(name, executor)
    for name, component in [*components.items(), ("root", ir["root"])]:
        yield from _port_faults(name, component)
        if "dag" in component:
            yield from _dag_faults(name, component, components)


def image_faults(ir: Node) -> Iterator[str]:
    """Yield one sentence for each image that a tag names: another build may stand there tomorrow."""
    for name, executor in ir["deploymentSpec"]["executors"].items():
        image = executor.get("container", {}).get("image", "")
        if not DIGEST.search(image):
            yield f"{name}: the image {image} is not named by its digest"


def _executor_faults(name: str, executor: Node) -> Iterator[str]:
    if "container" not in executor:
        yield f"{name}: an executor of kind {', '.join(executor)} is not a container"
        return
    container = executor["container"]
    for part in [*container.get("command", []), *container.get("args", [])]:
        if isinstance(part, str) and part.startswith(('{"Concat"', '{"IfPresent"')):
            yield f"{name}: {part[:40]}… is never resolved"
        if len(str(part).encode()) > MAX_ARGUMENT:
            yield f"{name}: an argument has {len(str(part).encode()):,} bytes, more than Linux's {MAX_ARGUMENT:,}"
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
        yield from _task_faults(where, task, components)
        for upstream in task.get("dependentTasks", []):
            if upstream not in tasks:
                yield f"{where}: waits for {upstream}, which is not a task here"
        yield from _input_faults(where, task, component, components)
    yield from _output_faults(name, component, components)
    if not _has_else(tasks):
        yield f"{name}: an If without an Else"
    try:
        TopologicalSorter({key: task.get("dependentTasks", []) for key, task in tasks.items()}).prepare()
    except CycleError as error:
        yield f"{name}: tasks wait for each other: {' → '.join(error.args[1])}"


def _task_faults(where: str, task: Node, components: Node) -> Iterator[str]:
    """What one task may not have, whatever it is connected to."""
    if "artifactIterator" in task:
        yield f"{where}: a loop over artifacts"
    if "parameterIterator" in task and not task.get("iteratorPolicy", {}).get("parallelismLimit"):
        yield f"{where}: a loop without a limit of how many run at once"
    if "retryPolicy" in task:
        yield f"{where}: a retry policy, which backends read differently; the command retries, and the driver resubmits"
    if task.get("cachingOptions", {}).get("enableCache") and not _is_dag(task, components):
        yield f"{where}: caching is on"
    name = task["componentRef"]["name"]
    if "exit-handler" in name and _loops(name, components):
        yield f"{where}: a loop inside an exit handler"


def _loops(name: str, components: Node) -> bool:
    """Whether a component has a loop at any depth."""
    tasks = components.get(name, {}).get("dag", {}).get("tasks", {}).values()
    return any("parameterIterator" in task or _loops(task["componentRef"]["name"], components) for task in tasks)


def _output_faults(name: str, component: Node, components: Node) -> Iterator[str]:
    tasks, outputs = component["dag"].get("tasks", {}), component["dag"].get("outputs", {})
    for output, spec in outputs.get("parameters", {}).items():
        for selector in _selectors(spec):
            producer, key = selector["producerSubtask"], selector["outputParameterKey"]
            yield from _producer_faults(f"{name}.{output}", producer, key, tasks, components)
    for output, spec in outputs.get("artifacts", {}).items():
        if len(spec.get("artifactSelectors", [])) > 1:
            yield f"{name}.{output}: a OneOf of artifacts, which backends before 2.17 cannot read"


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
    policies = [task["triggerPolicy"] for task in tasks.values() if "triggerPolicy" in task]
    conditions = [policy["condition"] for policy in policies if "condition" in policy]
    return not conditions or any(all(part.startswith("!(") for part in c.split(" && ")) for c in conditions)


def positive(text: str) -> int:
    """A number of shards or iterations from the command line.

    Raises:
        argparse.ArgumentTypeError: for anything but a whole number above 0.
    """
    if not text.isascii() or not text.isdecimal() or int(text) < 1:
        found = f"expected a whole number above 0, found {text!r}"
        raise argparse.ArgumentTypeError(f"{found}\n\nhint: `rollout.shards` and `iterations` of run.json say how many")
    return int(text)


def main() -> int:
    """Check one file for the lists that it will be run with, and print its sizes; 2 means refused."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("pipeline", type=Path, help="compiled YAML")
    parser.add_argument("--shards", type=positive, help="shards that `run.json` has")
    parser.add_argument("--iterations", type=positive, help="iterations of a loop over them")
    parser.add_argument("--pinned", action="store_true", help="refuse an image without a digest")
    parser.add_argument("--without-retry", action="store_true", help="allow a run that KFP's retry cannot bear")
    given = parser.parse_args()
    lists = {name: getattr(given, name) for name in ("shards", "iterations") if getattr(given, name) is not None}
    try:
        text = given.pipeline.read_text(encoding="utf-8")
        check(text, lists, pinned=given.pinned, retry=not given.without_retry)
    except (OSError, BrokenPipelineError) as error:
        print(f"error: {given.pipeline}: {error}", file=sys.stderr)
        return 2
    size = size_of(documents(text), lists)
    print(f"{given.pipeline}: {len(text.encode()):,} bytes; a run has about {size.pods:,} pods, {size.nodes:,} nodes,")
    print(f"{size.stored:,} bytes stored, {size.retryable:,} for a retry, {size.argument:,} in one argument")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
