"""The driver against a server that speaks the API of Argo Workflows."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from pipelines.compile import COMPILED
from tests.argo_server import ArgoServer, argo_server
from tests.drive_support import QUICK, begun, committing, uncommitted
from tests.http_server import Answer, Request
from tests.support import tdm_r1

BLOCK = {"block": [{"name": "root"}, {"name": "start"}, {"name": "shards"}, {"name": "more", "value": "1"}]}
LOOP = {"loop": [{"name": "root"}, {"name": "shards", "value": "[0]"}, {"name": "budget", "value": "90"}]}


def arguments(server: ArgoServer, root: Path, template: str, namespace: str = "argo") -> list[str]:
    words = ["drive", "--root", str(root), "--endpoint", server.endpoint, "--argo-template", template]
    return [*words, *(["--namespace", namespace] if namespace else []), *QUICK]


def test_a_template_is_submitted_block_after_block_until_the_run_is_complete(finished: Path, tmp_path: Path) -> None:
    root = begun(finished, tmp_path / "run")
    with argo_server(committing(finished, per_block=1), BLOCK) as server:
        assert tdm_r1(*arguments(server, root, "block")) == 0
        assert server.submitted == [{"root": str(root), "start": f"{n}", "shards": "[0,1]"} for n in (1, 2)]
    assert uncommitted(finished, root) == []


def test_a_template_that_finds_the_next_iterations_itself_is_given_no_start(finished: Path, tmp_path: Path) -> None:
    root = begun(finished, tmp_path / "run")
    with argo_server(committing(finished), LOOP) as server:
        assert tdm_r1(*arguments(server, root, "loop")) == 0
        assert server.submitted == [{"root": str(root), "shards": "[0,1]"}]
    assert uncommitted(finished, root) == []


def test_a_workflow_that_is_already_there_is_waited_for(finished: Path, tmp_path: Path) -> None:
    root, away = begun(finished, tmp_path / "run"), [True]

    def fault(request: Request) -> str | Answer | None:
        if request.path.endswith("/submit") and away:
            return "lost"
        return (
            Answer({"message": "gone"}, 404)
            if request.method == "GET" and "-b00001-" in request.path and away and (away.pop())
            else None
        )

    with argo_server(committing(finished), BLOCK, fault=fault) as server:
        assert tdm_r1(*arguments(server, root, "block")) == 0
        assert len(server.submitted) == 1
    assert away == [], "the second submission was really refused as a duplicate"
    assert uncommitted(finished, root) == []


def test_a_failed_workflow_is_submitted_again_and_its_pod_is_named(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = begun(finished, tmp_path / "run")
    with argo_server(committing(finished, fail_after=[4]), BLOCK) as server:
        assert tdm_r1(*arguments(server, root, "block")) == 0
        assert len(server.submitted) == 2
    assert "failed; child failed; rollout(0): exit code 75" in capsys.readouterr().err


def test_a_template_that_splits_a_group_is_refused_with_the_numbers(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = begun(finished, tmp_path / "run")
    template = yaml.safe_load((COMPILED / "8xH100/argo_loop.yaml").read_text())
    pods = template["spec"]["templates"]
    template["spec"]["templates"] = [pod for pod in pods if pod["name"] != "distill-base"]

    def eight(request: Request) -> Answer | None:
        return Answer(template) if request.path.endswith("/loop") else None

    with argo_server(committing(finished), LOOP, fault=eight) as server:
        assert tdm_r1(*arguments(server, root, "loop")) == 2
        assert server.submitted == []
    error = capsys.readouterr().err
    parts = "4 groups by surrogate.microbatch_groups=2 are 2 parts"
    assert f"`surrogate_update` is to run in 8 processes, expected at most 2: {parts}" in error
    assert "\n\nhint: start fewer processes" in error


@pytest.mark.parametrize(
    ("template", "namespace", "complaint"),
    [
        ("gone", "argo", "there is no WorkflowTemplate `gone` in namespace `argo`"),
        ("block", "nowhere", "there is no WorkflowTemplate `block` in namespace `nowhere`"),
        ("block", "", "no namespace was given"),
        ("other", "argo", "WorkflowTemplate `other` has no parameter root"),
        ("needy", "argo", "WorkflowTemplate `needy` needs image too"),
    ],
)
def test_a_template_that_cannot_be_driven_is_refused(
    template: str, namespace: str, complaint: str, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = begun(finished, tmp_path / "run")
    templates = {**BLOCK, "other": [{"name": "message"}], "needy": [{"name": "root"}, {"name": "image"}]}
    with argo_server(committing(finished), templates) as server:
        assert tdm_r1(*arguments(server, root, template, namespace)) == 2
        assert server.submitted == []
    error = capsys.readouterr().err
    assert complaint in error
    assert "\n\nhint: " in error
