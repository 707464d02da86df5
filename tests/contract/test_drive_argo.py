"""The driver against a server that speaks the API of Argo Workflows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.compile import COMPILED
from tests.argo_server import ArgoServer, argo_server
from tests.drive_support import QUICK, begun, committing, uncommitted
from tests.http_server import Answer, Request, serving
from tests.support import tdm_r1, tree

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


@contextmanager
def the_loop(finished: Path, profile: str = "", **settings: Any) -> Iterator[ArgoServer]:
    """A server that has the compiled loop itself; pods whose storage is another one do the work."""
    template = yaml.safe_load((COMPILED / profile / "argo_loop.yaml").read_text())

    def real(request: Request) -> Answer | None:
        return Answer(template) if request.path.endswith("/loop") else None

    with argo_server(committing(finished, writes=False), LOOP, fault=real, **settings) as server:
        yield server


def sharded(root: Path, shards: int) -> Path:
    """A run with so many shards, of which nothing is committed."""
    knobs = [f"rollout.{name}={shards}" for name in ("groups", "shards")]
    words = [word for knob in knobs for word in ("--set", knob)]
    assert tdm_r1("init", "--root", str(root), "--preset", "shapes_smoke", *words) == 0
    return root


def test_a_workflow_runs_as_many_iterations_as_argo_can_store(finished: Path, tmp_path: Path) -> None:
    """64 shards of 7 nodes, 11 around them and 6 of the loop are 465 nodes of an iteration, and 10 come once.

    With 14,649 bytes of template, 12 iterations of 180 bytes a node are less than 2^20 bytes, and 13 are not.
    """
    root = sharded(tmp_path / "run", 64)
    with the_loop(finished) as server:
        assert tdm_r1(*arguments(server, root, "loop")) == 2
    assert [given["budget"] for given in server.submitted] == ["12"]


def test_a_template_that_cannot_store_one_iteration_is_refused_with_what_fits(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = sharded(tmp_path / "run", 1000)
    with the_loop(finished) as server:
        assert tdm_r1(*arguments(server, root, "loop")) == 2
        assert server.submitted == []
    error = " ".join(capsys.readouterr().err.split())
    assert "1,279,509 bytes in 7,027 nodes, more than Argo's 1,048,576: use at most 816 shards" in error
    assert sorted(tree(root)) == ["run.json"]


def test_the_queue_that_a_template_names_is_looked_for(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = begun(finished, tmp_path / "run")

    def cluster(request: Request) -> Any:
        there = request.path.endswith(("/namespaces/argo", "/apis/kueue.x-k8s.io", "/localqueues/tdm-r1-cpu"))
        return {"preferredVersion": {"groupVersion": "kueue.x-k8s.io/v1beta2"}} if there else Answer({}, 404)

    with the_loop(finished) as server, serving(cluster) as kubernetes:
        assert tdm_r1(*arguments(server, root, "loop"), "--kubernetes", kubernetes) == 2
        assert server.submitted == []
    assert "namespace `argo` has no Kueue LocalQueue `tdm-r1-gpu`" in capsys.readouterr().err
