"""The Argo WorkflowTemplate: its references hold, its pods keep Pod Security `restricted`, and its loop ends."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hera.workflows import models as m

from pipelines.compile import COMPILED
from pipelines.local import TaskFailedError, UnsupportedPipelineError
from pipelines.local_argo import workflow_argvs
from tests.bench import Bench, iteration_steps

ONCE = ["encode_prompts", "distill_base", "evaluation 0"]


def template() -> dict[str, Any]:
    parsed: dict[str, Any] = yaml.safe_load((COMPILED / "argo_loop.yaml").read_text(encoding="utf-8"))
    return parsed


def pods() -> list[dict[str, Any]]:
    return [found for found in template()["spec"]["templates"] if "container" in found]


def execute(folder: Path, workflow: dict[str, Any] | None = None, **told: Any) -> Bench:
    bench = Bench(folder)
    parameters = {"root": "runs/a", "shards": "[0, 1]", **told.pop("parameters", {})}
    programs = bench.programs(**told)
    list(workflow_argvs(workflow or template(), parameters, scratch=folder / "scratch", programs=programs))
    return bench


def test_argo_knows_every_key_of_the_files() -> None:
    """Hera's models drop what Argo does not know: then less comes back."""
    for name, model in {"argo_loop": m.WorkflowTemplate, "argo_cron": m.CronWorkflow}.items():
        text = yaml.safe_load((COMPILED / f"{name}.yaml").read_text(encoding="utf-8"))
        back = yaml.safe_load(model.model_validate(text).model_dump_json(exclude_none=True, by_alias=True))
        assert back == text, name


def test_the_loop_calls_itself_until_nothing_is_next(tmp_path: Path) -> None:
    bench = execute(tmp_path, ahead=[7, 8])
    expected = [*ONCE, "next", *iteration_steps("7"), "next", *iteration_steps("8"), "next"]
    assert [re.sub(" as .*", "", name) for name in bench.steps()] == expected


def test_the_budget_bounds_the_recursion(tmp_path: Path) -> None:
    bench = execute(tmp_path, ahead=[7, 8, 9], parameters={"budget": "1"})
    assert bench.steps() == [*ONCE, "next", *iteration_steps("7"), "next"]
    spec = template()["spec"]
    budget = next(p for p in spec["arguments"]["parameters"] if p["name"] == "budget")
    assert int(budget["value"]) < 97  # Argo ends a recursion of 100 templates


def test_only_a_temporary_failure_is_tried_again(tmp_path: Path) -> None:
    with pytest.raises(TaskFailedError, match="exited with 75"):
        execute(tmp_path, crash_at="rollout", ahead=[1])
    assert Bench(tmp_path).steps().count("rollout 1 shard 0") == 9
    for pod in pods():
        assert pod["retryStrategy"]["expression"] == "asInt(lastRetry.exitCode) == 75"


def test_two_workflows_of_one_root_exclude_each_other_and_leave_no_pods_and_no_artifacts() -> None:
    spec = template()["spec"]
    assert spec["synchronization"] == {"mutexes": [{"name": "{{workflow.parameters.root}}"}]}
    assert spec["podGC"] == {"strategy": "OnPodSuccess"}
    assert "artifact" not in (COMPILED / "argo_loop.yaml").read_text()


def test_every_pod_keeps_pod_security_restricted_with_a_read_only_root() -> None:
    context = template()["spec"]["securityContext"]
    assert context["runAsNonRoot"]
    assert context["runAsUser"] > 0
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    for pod in pods():
        security = pod["container"]["securityContext"]
        assert security["allowPrivilegeEscalation"] is False
        assert security["capabilities"] == {"drop": ["ALL"]}
        assert security["readOnlyRootFilesystem"]
        mounted = {mount["name"] for mount in pod["container"]["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}
        assert pod["activeDeadlineSeconds"] > 0


def _named(workflow: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(t for t in workflow["spec"]["templates"] if t["name"] == name)
    return found


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda w: _named(w, "shard")["steps"][0][0].update(template="roll"), "there is no template roll"),
        (lambda w: _named(w, "shard")["steps"][0][0].pop("arguments"), "given [], but rollout takes"),
        (lambda w: _named(w, "loop")["steps"][1][0].update(when="{{x}} == 1"), "there is no value for {{x}}"),
        (lambda w: _named(w, "loop")["steps"][1][0].update(when="1 < 2"), "do not know the condition 1 < 2"),
        (lambda w: _named(w, "rollout").update(daemon=True), "do not know daemon"),
        (lambda w: _named(w, "encode-prompts")["retryStrategy"].update(expression="true"), "the expression true"),
    ],
)
def test_the_executor_refuses_what_it_does_not_know(
    change: Callable[[dict[str, Any]], Any], complaint: str, tmp_path: Path
) -> None:
    workflow = copy.deepcopy(template())
    change(workflow)
    with pytest.raises(UnsupportedPipelineError, match=re.escape(complaint)):
        execute(tmp_path, workflow, ahead=[1])


def test_the_cron_workflow_starts_the_template_and_never_two_at_once() -> None:
    cron = yaml.safe_load((COMPILED / "argo_cron.yaml").read_text(encoding="utf-8"))["spec"]
    assert cron["workflowSpec"]["workflowTemplateRef"]["name"] == template()["metadata"]["name"]
    assert (cron["concurrencyPolicy"], cron["suspend"]) == ("Forbid", True)
