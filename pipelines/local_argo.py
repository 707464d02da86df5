"""Run the WorkflowTemplate on this machine: its steps' own argv, without Argo, containers or a cluster.

Only the YAML is read: steps one after the other, `withParam`, `when`, parameters from files, recursion, and a retry on
exit code 75. Whatever else a template holds is refused, never skipped.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pipelines.launchers import PROGRAMS, process
from pipelines.local import TaskFailedError, UnsupportedPipelineError

Node = Mapping[str, Any]
Values = dict[str, str]

_STEP_KEYS: Final = {"name", "template", "arguments", "when", "withParam"}
_STEPS_KEYS: Final = {"name", "steps", "inputs", "parallelism"}
_POD_KEYS: Final = {
    *("name", "container", "inputs", "outputs", "retryStrategy", "metadata", "nodeSelector", "tolerations"),
    *("volumes", "activeDeadlineSeconds", "priorityClassName"),
}
_TAG: Final = re.compile(r"\{\{(.*?)\}\}")
_LESS: Final = re.compile(r"=asInt\(([\w.-]+)\) - (\d+)")
_CONDITION: Final = re.compile(r"'(?P<left>[^']*)' != '(?P<right>[^']*)'|(?P<number>-?\d+) > (?P<least>-?\d+)")
_RETRIED: Final = "asInt(lastRetry.exitCode) == 75"


@dataclass(frozen=True)
class ArgoRun:
    """One execution of a template.

    Args:
        workflow: the WorkflowTemplate.
        parameters: workflow parameters over the template's own.
        scratch: directory for output files.
        programs: replaces argv[0].
        execute: runs an argv and returns its exit code.
    """

    workflow: Node
    parameters: Mapping[str, str]
    scratch: Path
    programs: Mapping[str, Sequence[str]]
    execute: Callable[[Sequence[str]], int]

    def argvs(self) -> Iterator[list[str]]:
        """Execute, and yield the argv of each pod after it exited with 0. Nothing runs until it is asked for."""
        spec = self.workflow["spec"]
        declared = {p["name"]: p.get("value") for p in spec["arguments"]["parameters"]}
        if unknown := sorted(set(self.parameters) - set(declared)):
            raise UnsupportedPipelineError(f"the workflow has no parameter {unknown[0]}")
        values = {f"workflow.parameters.{name}": value for name, value in {**declared, **self.parameters}.items()}
        if missing := sorted(name for name, value in values.items() if value is None):
            raise UnsupportedPipelineError(f"no value for {missing[0]}")
        yield from self.template(spec["entrypoint"], {}, values, spec["entrypoint"])

    def template(self, name: str, inputs: Values, above: Values, path: str) -> Iterator[list[str]]:
        """Run a template; `above` holds the workflow's parameters, and afterwards the outputs of a pod."""
        found = next((t for t in self.workflow["spec"]["templates"] if t["name"] == name), None)
        if found is None:
            raise UnsupportedPipelineError(f"{path}: there is no template {name}")
        declared = {p["name"] for p in found.get("inputs", {}).get("parameters", [])}
        if declared != set(inputs):
            raise UnsupportedPipelineError(f"{path}: given {sorted(inputs)}, but {name} takes {sorted(declared)}")
        scope = {key: value for key, value in above.items() if key.startswith("workflow.")}
        scope |= {f"inputs.parameters.{key}": value for key, value in inputs.items()}
        if "steps" in found:
            _refuse_unknown(path, found, _STEPS_KEYS)
            for step in (step for group in found["steps"] for step in group):
                yield from self.step(step, scope, path)
        else:
            _refuse_unknown(path, found, _POD_KEYS)
            yield self.pod(found, scope, above, path)

    def step(self, step: Node, scope: Values, path: str) -> Iterator[list[str]]:
        """Run a step once, once per item, or not at all; put its outputs into the scope."""
        _refuse_unknown(path, step, _STEP_KEYS)
        if "when" in step and not _holds(_rendered(step["when"], scope)):
            return
        items = json.loads(_rendered(step["withParam"], scope)) if "withParam" in step else [None]
        for number, item in enumerate(items):
            inner = scope if item is None else {**scope, "item": str(item)}
            given = step.get("arguments", {}).get("parameters", [])
            inputs = {p["name"]: _rendered(p["value"], inner) for p in given}
            where = f"{path}/{step['name']}" + ("" if item is None else f".{number}")
            outputs = dict(inner)
            yield from self.template(step["template"], inputs, outputs, where)
            for key in set(outputs) - set(inner):
                scope[f"steps.{step['name']}.{key}"] = outputs[key]

    def pod(self, template: Node, scope: Values, outputs: Values, path: str) -> list[str]:
        """Run one container's argv as a process, again after a 75, and read back its output parameters."""
        container = template["container"]
        argv = [_rendered(word, scope) for word in [*container["command"], *container["args"]]]
        wanted = {p["name"]: p["valueFrom"]["path"] for p in template.get("outputs", {}).get("parameters", [])}
        files = {inside: self.scratch / path / Path(inside).name for inside in wanted.values()}
        for outside in files.values():
            outside.parent.mkdir(parents=True, exist_ok=True)
        here = [str(files.get(word, word)) for word in argv]
        code = self.attempt([*self.programs.get(argv[0], (argv[0],)), *here[1:]], template["retryStrategy"], path)
        if code:
            raise TaskFailedError(f"{path}: `{' '.join(argv[:3])} …` exited with {code}", code)
        for name, inside in wanted.items():
            outputs[f"outputs.parameters.{name}"] = files[inside].read_text(encoding="utf-8")
        return argv

    def attempt(self, command: list[str], retry: Node, path: str) -> int:
        """Exit code of the last attempt."""
        if retry["expression"] != _RETRIED:
            raise UnsupportedPipelineError(f"{path}: do not know the expression {retry['expression']}")
        code = 75
        for _ in range(int(retry["limit"]) + 1):
            code = self.execute(command)
            if code != 75:
                break
        return code


def workflow_argvs(
    workflow: Node,
    parameters: Mapping[str, str],
    *,
    scratch: Path,
    programs: Mapping[str, Sequence[str]] = PROGRAMS,
    execute: Callable[[Sequence[str]], int] = process,
) -> Iterator[list[str]]:
    """Execute a WorkflowTemplate; see `ArgoRun`."""
    yield from ArgoRun(workflow, parameters, scratch, programs, execute).argvs()


def _refuse_unknown(where: str, node: Node, known: set[str]) -> None:
    if unknown := sorted(set(node) - known):
        raise UnsupportedPipelineError(f"{where}: do not know {', '.join(unknown)}")


def _rendered(text: str, scope: Values) -> str:
    """Put values in the place of tags."""

    def value(found: re.Match[str]) -> str:
        less = _LESS.fullmatch(found[1])
        name = less[1] if less else found[1]
        if name not in scope:
            raise UnsupportedPipelineError(f"there is no value for {{{{{found[1]}}}}}")
        return str(int(scope[name]) - int(less[2])) if less else scope[name]

    return _TAG.sub(value, text)


def _holds(condition: str) -> bool:
    """Evaluate a `when` whose tags are filled in."""
    for part in condition.split(" && "):
        found = _CONDITION.fullmatch(part)
        if found is None:
            raise UnsupportedPipelineError(f"do not know the condition {part}")
        if found["number"] is not None:
            if int(found["number"]) <= int(found["least"]):
                return False
        elif found["left"] == found["right"]:
            return False
    return True
