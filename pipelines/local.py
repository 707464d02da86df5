"""Run a compiled pipeline on this machine: its own argv, without KFP, containers or a cluster.

`python -m pipelines.local pipelines/compiled/block.yaml --param root=runs/a --param start=1 --param 'shards=[0,1]'`

Only the YAML is read, so what runs is what a cluster would run: DAGs, nested pipelines, loops over a list parameter,
conditions on parameters, OneOf, and the launcher's placeholders. Tasks run one after the other; resources and node
selectors are not looked at. Whatever else a pipeline holds is refused, never skipped. With `--containers podman` each
task runs in its own image, read-only, without capabilities or a network.
"""

import argparse
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any, Final

from pipelines.ir import documents
from pipelines.launchers import PROGRAMS, Containers, Launcher, Processes

Node = Mapping[str, Any]
Values = dict[str, Any]

_TASK_KEYS: Final = {
    *("cachingOptions", "componentRef", "dependentTasks", "inputs", "iteratorPolicy"),
    *("parameterIterator", "taskInfo", "triggerPolicy"),
}
_COMPONENT_KEYS: Final = {"dag", "executorLabel", "inputDefinitions", "outputDefinitions"}
_CONTAINER_KEYS: Final = {"args", "command", "env", "image", "resources"}
_CONDITION: Final = re.compile(
    r"(?P<no>!\()?inputs\.parameter_values\['(?P<key>[^']+)'\] == (?P<value>true|false)(?(no)\))"
)
_PLACEHOLDER: Final = re.compile(r"\{\{\$(.*?)\}\}", re.DOTALL)
_REFERENCE: Final = re.compile(r"\.(inputs|outputs)\.(parameters|artifacts)\['([^']+)'\](?:\.(output_file|uri|path))?")


class UnsupportedPipelineError(ValueError):
    """The compiled pipeline holds something that this executor does not know."""


class TaskFailedError(RuntimeError):
    """A task's program exited with a code other than 0, or left an output unwritten."""

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


def task_argvs(
    ir: Node,
    parameters: Node,
    *,
    scratch: Path,
    programs: Mapping[str, Sequence[str]] = PROGRAMS,
    launcher: Launcher | None = None,
) -> Iterator[list[str]]:
    """Execute a compiled pipeline task by task, in an order that its edges allow.

    Args:
        ir: first document of the compiled YAML.
        parameters: value of each pipeline parameter.
        scratch: directory for output parameters and artifacts; one folder per task.
        programs: replaces argv[0], `{"tdm-r1": [sys.executable, "-m", "tdm_r1"]}`; other programs run as they are.
        launcher: starts each task, in place of `programs`.

    Yields:
        argv of each task before the replacement, after it exited with 0. Nothing runs until it is asked for.
    """
    yield from _Run(ir, scratch, launcher or Processes(programs)).component("root", ir["root"], parameters, ())


@dataclass(frozen=True)
class _Run:
    """One execution. A `None` among a DAG's results is a task that was not triggered."""

    ir: Node
    scratch: Path
    launcher: Launcher
    results: dict[tuple[str, ...], Values | None] = field(default_factory=dict)
    """Output parameters of every task by its path from the root."""

    def component(self, name: str, component: Node, given: Node, path: tuple[str, ...]) -> Iterator[list[str]]:
        """Run a component, `root` included, and store its outputs under `path`."""
        _refuse_unknown(name, component, _COMPONENT_KEYS)
        inputs = _complete(name, component.get("inputDefinitions", {}), given)
        if "dag" in component:
            yield from self.dag(name, component["dag"], inputs, path)
        else:
            yield self.container(component, inputs, path)

    def dag(self, name: str, dag: Node, inputs: Values, path: tuple[str, ...]) -> Iterator[list[str]]:
        """Run the tasks of a DAG, then gather its outputs."""
        _refuse_unknown(f"{name}.outputs", dag.get("outputs", {}), {"parameters"})
        for task in TopologicalSorter(_edges(dag["tasks"])).static_order():
            yield from self.task(dag["tasks"][task], inputs, (*path, task))
        outputs = dag.get("outputs", {}).get("parameters", {})
        self.results[path] = {key: self.selected(spec, path) for key, spec in outputs.items()}

    def task(self, task: Node, outer: Values, path: tuple[str, ...]) -> Iterator[list[str]]:
        """Run a task once, once per item, or not at all."""
        where = "/".join(path)
        _refuse_unknown(where, task, _TASK_KEYS)
        _refuse_unknown(f"{where}.inputs", task.get("inputs", {}), {"parameters"})
        upstream = [self.results[(*path[:-1], name)] for name in task.get("dependentTasks", [])]
        if any(result is None for result in upstream):
            self.results[path] = None
            return
        sources = task.get("inputs", {}).get("parameters", {})
        inputs = {key: self.resolve(source, outer, path) for key, source in sources.items()}
        if not _triggered(task.get("triggerPolicy", {}), inputs):
            self.results[path] = None
            return
        name = task["componentRef"]["name"]
        if "parameterIterator" in task:
            yield from self.loop(name, task["parameterIterator"], inputs, path)
        else:
            yield from self.component(name, self.ir["components"][name], inputs, path)

    def loop(self, name: str, iterator: Node, inputs: Values, path: tuple[str, ...]) -> Iterator[list[str]]:
        """Run the body for each item; each of its outputs becomes a list, in the order of the items."""
        items, component = iterator["items"], self.ir["components"][name]
        values = json.loads(items["raw"]) if "raw" in items else inputs[items["inputParameter"]]
        bodies = [(*path[:-1], f"{path[-1]}.{number}") for number in range(len(values))]
        for value, body in zip(values, bodies, strict=True):
            yield from self.component(name, component, {**inputs, iterator["itemInput"]: value}, body)
        outputs = component.get("outputDefinitions", {}).get("parameters", {})
        self.results[path] = {key: [(self.results[body] or {})[key] for body in bodies] for key in outputs}

    def resolve(self, source: Node, outer: Values, path: tuple[str, ...]) -> Any:
        """Return the value of one task input."""
        match dict(source):
            case {"runtimeValue": {"constant": value}, **rest} if not rest:
                return value
            case {"componentInputParameter": key, **rest} if not rest:
                return outer[key]
            case {"taskOutputParameter": {"producerTask": producer, "outputParameterKey": key}, **rest} if not rest:
                return (self.results[(*path[:-1], producer)] or {})[key]
        raise UnsupportedPipelineError(f"{'/'.join(path)}: do not know how to read the input {dict(source)}")

    def selected(self, spec: Node, path: tuple[str, ...]) -> Any:
        """Return one output of a DAG; of a OneOf, that of the branch that ran."""
        match dict(spec):
            case {"valueFromParameter": selector, **rest} if not rest:
                selectors = [selector]
            case {"valueFromOneof": {"parameterSelectors": selectors}, **rest} if not rest:
                pass
            case _:
                raise UnsupportedPipelineError(f"{'/'.join(path)}: do not know how to read the output {dict(spec)}")
        for selector in selectors:
            result = self.results[(*path, selector["producerSubtask"])]
            if result is not None:
                return result[selector["outputParameterKey"]]
        raise TaskFailedError(f"{'/'.join(path)}: no branch ran that could give {selectors}")

    def container(self, component: Node, inputs: Values, path: tuple[str, ...]) -> list[str]:
        """Run one container's argv as a process and read back its output parameters."""
        where, label = "/".join(path), component["executorLabel"]
        executor = self.ir["deploymentSpec"]["executors"][label]
        _refuse_unknown(label, executor, {"container"})
        _refuse_unknown(label, executor["container"], _CONTAINER_KEYS)
        definitions = component.get("outputDefinitions", {})
        message = _executor_input(definitions, inputs, self.scratch.joinpath(*path).resolve())
        parts = [*executor["container"].get("command", []), *executor["container"].get("args", [])]
        argv = [_PLACEHOLDER.sub(lambda found: _rendered(found[1], message), part) for part in parts]
        code = self.launcher(executor["container"], argv)
        if code:
            raise TaskFailedError(f"{where}: `{' '.join(argv[:3])} …` exited with {code}", code)
        self.results[path] = _read_outputs(where, definitions, message)
        return argv


def _refuse_unknown(where: str, node: Node, known: set[str]) -> None:
    unknown = sorted(set(node) - known)
    if unknown:
        raise UnsupportedPipelineError(f"{where}: do not know {', '.join(unknown)}")


def _edges(tasks: Node) -> dict[str, list[str]]:
    """Return the tasks that each task waits for."""
    edges = {name: list(task.get("dependentTasks", [])) for name, task in tasks.items()}
    for name, task in tasks.items():
        sources = task.get("inputs", {}).get("parameters", {}).values()
        edges[name] += [s["taskOutputParameter"]["producerTask"] for s in sources if "taskOutputParameter" in s]
    return edges


def _complete(name: str, definitions: Node, given: Node) -> Values:
    """Add the defaults to the given inputs, and make whole numbers of integers: YAML and JSON may say `3.0`."""
    _refuse_unknown(f"{name}.inputDefinitions", definitions, {"parameters"})
    ports = definitions.get("parameters", {})
    _refuse_unknown(f"{name}, which has no such inputs", given, set(ports))
    values = {**{key: spec["defaultValue"] for key, spec in ports.items() if "defaultValue" in spec}, **given}
    missing = sorted(set(ports) - set(values))
    if missing:
        raise UnsupportedPipelineError(f"{name}: no value for {', '.join(missing)}")
    return {key: _whole(v) if ports[key]["parameterType"] == "NUMBER_INTEGER" else v for key, v in values.items()}


def _whole(value: Any) -> int:
    if isinstance(value, bool) or int(value) != value:
        raise UnsupportedPipelineError(f"{value!r} is not a whole number")
    return int(value)


def _triggered(policy: Node, inputs: Values) -> bool:
    """Evaluate the conditions that If, Elif and Else on a parameter compile to."""
    _refuse_unknown("triggerPolicy", policy, {"condition"})
    for part in policy["condition"].split(" && ") if policy else ():
        found = _CONDITION.fullmatch(part)
        if found is None or not isinstance(inputs[found["key"]], bool):
            raise UnsupportedPipelineError(f"do not know the condition {part} on {inputs}")
        if (inputs[found["key"]] is (found["value"] == "true")) is bool(found["no"]):
            return False
    return True


def _executor_input(definitions: Node, inputs: Values, folder: Path) -> Node:
    """Return what KFP puts in place of `{{$}}`, with every output below `folder`; create the folders as KFP does."""
    (folder / "outputs").mkdir(parents=True, exist_ok=True)
    parameters = {key: {"outputFile": str(folder / "outputs" / key)} for key in definitions.get("parameters", {})}
    artifacts = {
        key: {"artifacts": [{"name": key, "type": spec["artifactType"], "uri": str(folder / key), "metadata": {}}]}
        for key, spec in definitions.get("artifacts", {}).items()
    }
    outputs = {"parameters": parameters, "artifacts": artifacts, "outputFile": str(folder / "output_metadata.json")}
    return {"inputs": {"parameterValues": inputs}, "outputs": outputs}


def _rendered(expression: str, message: Node) -> str:
    """Return the text for one placeholder; `expression` is what stands after `{{$`."""
    if not expression:
        return json.dumps(message)
    found = _REFERENCE.fullmatch(expression)
    match found.groups() if found else None:
        case ("inputs", "parameters", str(key), None):
            value = message["inputs"]["parameterValues"][key]
            return value if isinstance(value, str) else json.dumps(value)
        case ("outputs", "parameters", str(key), "output_file"):
            return str(message["outputs"]["parameters"][key]["outputFile"])
        case ("outputs", "artifacts", str(key), "uri" | "path"):
            return str(message["outputs"]["artifacts"][key]["artifacts"][0]["uri"])
    raise UnsupportedPipelineError(f"do not know the placeholder {{{{${expression}}}}}")


def _read_outputs(where: str, definitions: Node, message: Node) -> Values:
    """Read the files of the output parameters, each as the type that its component declares."""
    values = {}
    for key, spec in definitions.get("parameters", {}).items():
        path = Path(message["outputs"]["parameters"][key]["outputFile"])
        if not path.is_file():
            raise TaskFailedError(f"{where}: exited with 0 and wrote no output {key} at {path}")
        text = path.read_text(encoding="utf-8")
        values[key] = text if spec["parameterType"] == "STRING" else json.loads(text)
    return values


def _parameter(ir: Node, text: str) -> tuple[str, Any]:
    """Read `name=value`; the value is JSON unless the pipeline says that the parameter is a string."""
    key, _, value = text.partition("=")
    spec = ir["root"].get("inputDefinitions", {}).get("parameters", {}).get(key, {})
    return key, value if spec.get("parameterType") == "STRING" else json.loads(value)


def _containers(arguments: argparse.Namespace, parameters: Node, scratch: Path) -> Containers:
    """Containers that see the scratch and a local root, and run as whoever calls."""
    folders = [scratch] if "://" in parameters["root"] else [scratch, Path(parameters["root"])]
    user = f"{os.getuid() or 65532}:{os.getgid()}"
    return Containers(engine=(arguments.containers,), folders=folders, network=arguments.network, user=user)


def main() -> int:
    """Run a compiled pipeline and print each task; the exit code is that of the first task that failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("pipeline", type=Path, help="compiled YAML")
    parser.add_argument("--param", action="append", default=[], metavar="NAME=VALUE", help="string, or JSON")
    parser.add_argument("--scratch", type=Path, help="directory for outputs; a temporary one if not given")
    parser.add_argument("--containers", metavar="ENGINE", help="podman or docker: run each task in its image")
    parser.add_argument("--network", default="none", help="of the containers; host when the root is in S3")
    arguments = parser.parse_args()
    ir = documents(arguments.pipeline.read_text(encoding="utf-8"))[0]
    with tempfile.TemporaryDirectory() as temporary:
        try:
            parameters = dict(_parameter(ir, text) for text in arguments.param)
            scratch = arguments.scratch or Path(temporary)
            launcher = _containers(arguments, parameters, scratch) if arguments.containers else None
            for argv in task_argvs(ir, parameters, scratch=scratch, launcher=launcher):
                print(" ".join(part for part in argv if "\n" not in part and not part.startswith("{")), flush=True)
        except (TaskFailedError, UnsupportedPipelineError) as error:
            print(f"error: {error}", file=sys.stderr)
            return getattr(error, "code", 1)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
