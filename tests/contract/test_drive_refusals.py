"""What the driver refuses before it submits or writes anything, and what it says then."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.drive_support import BLOCK, arguments, begun, committing
from tests.http_server import Answer, Request, serving
from tests.kfp_server import kfp_server
from tests.support import tdm_r1, tree


def test_check_submits_nothing_and_takes_no_lease(finished: Path, tmp_path: Path) -> None:
    root = begun(finished, tmp_path / "run")
    with kfp_server(committing(finished)) as server:
        assert tdm_r1(*arguments(server, root, "--check")) == 0
        assert (server.bodies, sorted(tree(root))) == ([], ["run.json"])


EIGHT = str(Path(BLOCK).parent / "8xH100" / "block.yaml")
STORED = {
    "root": {"inputDefinitions": {"parameters": {"root": {"parameterType": "STRING"}}}},
    "deploymentSpec": {
        "executors": {"a": {"container": {"args": ["launch", "--nproc-per-node", "8", "stage", "distill_base"]}}}
    },
}
"""What is enough of a pipeline on the server to be refused."""


class Case:
    """Bad input: what is changed, and what is said of it."""

    def __init__(self, complaint: str, *more: str, server: dict[str, Any] | None = None, pipeline: bool = True) -> None:
        self.complaint, self.more, self.server, self.pipeline = complaint, more, server or {}, pipeline


CASES = {
    "two users and no namespace": Case("and no namespace was given", server={"multi_user": True}),
    "a namespace that is not there": Case(
        "namespace `nope` cannot be used", "--namespace", "nope", server={"multi_user": True, "namespaces": ("team",)}
    ),
    "a namespace where there is none": Case("namespace `nope` cannot be used", "--namespace", "nope"),
    "an unknown pipeline": Case("there is no pipeline `gone`", "--pipeline-name", "gone", pipeline=False),
    "an unknown pipeline in a namespace": Case(
        "it has theirs; upload one with `kfp.Client(…).upload_pipeline(FILE, NAME, namespace='team')`",
        *("--pipeline-name", "gone", "--namespace", "team"),
        server={"multi_user": True, "namespaces": ("team",), "shared": {"theirs": {}}},
        pipeline=False,
    ),
    "no pipeline at all": Case("expected one of --pipeline,", pipeline=False),
    "a file that is not there": Case("`gone.yaml` cannot be read", "--pipeline", "gone.yaml", pipeline=False),
    "a file that is no pipeline": Case("is no compiled pipeline", "--pipeline", "Makefile.yaml", pipeline=False),
    "a pipeline that is no block": Case("its parameter `root` is missing", "--pipeline", "other.yaml", pipeline=False),
    "a login page": Case(
        "it looks like a page to log in", server={"fault": lambda _: Answer("<html/>", kind="text/html")}
    ),
    "a redirect": Case(
        "redirects to http://dex/auth, not a KFP server",
        server={"fault": lambda _: Answer("", 302, headers={"Location": "http://dex/auth?state=secret"})},
    ),
    "what is not JSON": Case("is not JSON", server={"fault": lambda _: Answer("hello", kind="text/plain")}),
    "no access": Case("refused access with 401", server={"fault": lambda _: Answer({"message": "no token"}, 401)}),
    "another server": Case("has no KFP API", server={"fault": lambda _: Answer({"message": "not here"}, 404)}),
    "more processes than parts": Case(
        "`distill_base` is to run in 8 processes, expected a divisor of 4", "--pipeline", EIGHT, pipeline=False
    ),
    "more processes than parts, in a pipeline on the server": Case(
        "`distill_base` is to run in 8 processes, expected a divisor of 4",
        *("--pipeline-name", "stored"),
        server={"pipelines": {"stored": STORED}},
        pipeline=False,
    ),
    "a budget without prices": Case("--budget needs prices", "--budget", "10"),
}


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_refused_before_anything_is_submitted_or_written(
    name: str, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    case, root = CASES[name], begun(finished, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "Makefile.yaml").write_text("a: 1\n")
    (tmp_path / "other.yaml").write_text("root: {inputDefinitions: {parameters: {}}}\n")
    with kfp_server(committing(finished), **case.server) as server:
        words = arguments(server, root, *case.more)
        if not case.pipeline:
            at = words.index("--pipeline")
            words[at : at + 2] = []
        assert tdm_r1(*words) == 2
        assert server.bodies == []
    error = capsys.readouterr().err
    assert case.complaint in error
    assert "\n\nhint: " in error
    assert "state=secret" not in error
    assert sorted(tree(root)) == ["run.json"]


KUEUE = "/apis/kueue.x-k8s.io"


@pytest.mark.parametrize(
    ("there", "complaint"),
    [
        ((), "there is no namespace `team`"),
        (("/api/v1/namespaces/team",), "the cluster has no Kueue"),
        (("/api/v1/namespaces/team", KUEUE), "namespace `team` has no Kueue LocalQueue `gpu`"),
        (("/api/v1/namespaces/team", KUEUE, "/v1beta1/namespaces/team/localqueues/gpu"), "has no Kueue LocalQueue"),
        (("/api/v1/namespaces/team", KUEUE, "/v1beta2/namespaces/team/localqueues/gpu"), ""),
    ],
)
def test_a_namespace_or_queue_that_the_cluster_does_not_have_is_refused(
    there: tuple[str, ...], complaint: str, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, block = begun(finished, tmp_path / "run"), tmp_path / "block.yaml"
    more = "\nplatforms: {kubernetes: {a: [{podMetadata: {labels: {kueue.x-k8s.io/queue-name: gpu}}}]}}\n"
    block.write_text(Path(BLOCK).read_text().partition("\n---")[0] + "\n---" + more)

    def cluster(request: Request) -> Any:
        group = {"preferredVersion": {"groupVersion": "kueue.x-k8s.io/v1beta2"}}
        return group if request.path.endswith(there) and there else Answer({"message": "not found"}, 404)

    with (
        kfp_server(committing(finished), multi_user=True, namespaces=("team",)) as server,
        serving(cluster) as kubernetes,
    ):
        words = ["drive", "--root", str(root), "--endpoint", server.endpoint, "--pipeline", str(block), "--check"]
        code = tdm_r1(*words, "--namespace", "team", "--kubernetes", kubernetes)
    assert code == (2 if complaint else 0)
    assert complaint in capsys.readouterr().err


def test_a_queue_is_looked_for_too_when_the_pipeline_lies_on_the_server(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = begun(finished, tmp_path / "run")
    compiled, _ = yaml.safe_load_all(Path(BLOCK).read_text())
    labels = {"podMetadata": {"labels": {"kueue.x-k8s.io/queue-name": "gpu"}}}
    stored = {"pipeline_spec": compiled, "platform_spec": {"platforms": {"kubernetes": {"a": [labels]}}}}

    def cluster(request: Request) -> Any:
        there = request.path.endswith(("/namespaces/team", KUEUE))
        return {"preferredVersion": {"groupVersion": "kueue.x-k8s.io/v1beta2"}} if there else Answer({}, 404)

    settings: dict[str, Any] = {"multi_user": True, "namespaces": ("team",), "pipelines": {"stored": stored}}
    with kfp_server(committing(finished), **settings) as server, serving(cluster) as kubernetes:
        words = ["--pipeline-name", "stored", "--namespace", "team", "--kubernetes", kubernetes]
        assert tdm_r1("drive", "--root", str(root), "--endpoint", server.endpoint, *words) == 2
        assert server.bodies == []
    assert "namespace `team` has no Kueue LocalQueue `gpu`" in capsys.readouterr().err
    assert sorted(tree(root)) == ["run.json"]


def test_a_pipeline_that_all_namespaces_share_is_found_and_the_namespaces_own_goes_first(
    finished: Path, tmp_path: Path
) -> None:
    root, compiled = begun(finished, tmp_path / "run"), next(yaml.safe_load_all(Path(BLOCK).read_text()))
    known: dict[str, Any] = {"multi_user": True, "namespaces": ("team",), "shared": {"block": compiled, "loop": STORED}}
    words = ["--namespace", "team", "--pipeline-name"]
    with kfp_server(committing(finished), pipelines={"loop": compiled}, **known) as server:
        for name in ("block", "loop"):
            where = ["--root", str(root), "--endpoint", server.endpoint]
            assert tdm_r1("drive", *where, *words, name, "--check") == 0, name
        asked = [request.query.get("namespace") for request in server.requests if request.path.endswith("/pipelines")]
    assert asked == ["team", None, "team"]


def sharded(root: Path, shards: int) -> Path:
    """A run with so many shards, of which nothing is committed."""
    knobs = {"rollout.groups": shards, "rollout.shards": shards}
    words = [word for name, value in knobs.items() for word in ("--set", f"{name}={value}")]
    assert tdm_r1("init", "--root", str(root), "--preset", "shapes_smoke", *words) == 0
    return root


@pytest.mark.parametrize("stored", [False, True])
def test_a_pipeline_too_large_for_the_shards_of_the_run_is_refused_with_what_fits(
    stored: bool, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = sharded(tmp_path / "run", 2000)
    pipeline, platform = yaml.safe_load_all(Path(BLOCK).read_text())
    there = {"block": {"pipeline_spec": pipeline, "platform_spec": platform}}
    with kfp_server(committing(finished), pipelines=there) as server:
        words = ["--pipeline-name", "block"] if stored else ["--pipeline", BLOCK]
        assert tdm_r1("drive", "--root", str(root), "--endpoint", server.endpoint, *words) == 2
        assert server.bodies == []
    error = " ".join(capsys.readouterr().err.split())
    assert "too large for a run with rollout.shards=2000: the Argo object" in error
    assert "more than Argo's 1,048,576: use at most 81 shards, or fewer iterations per run" in error
    assert "2,000 digests, about 148,000 bytes in one argument, more than Linux's 131,072: use at most 1,764" in error
    assert "hint: compile it with fewer --iterations" in error
    assert sorted(tree(root)) == ["run.json"]


def test_a_block_that_only_kfps_retry_could_not_write_is_driven_and_that_is_said(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = sharded(tmp_path / "run", 16)
    with kfp_server(committing(finished)) as server:
        assert tdm_r1(*arguments(server, root, "--check")) == 0
    error = " ".join(capsys.readouterr().err.split())
    assert "KFP's page cannot retry a block, the driver can" in error
    assert "more than etcd's 1,572,864: use at most 4 shards" in error


@pytest.mark.parametrize("endpoint", ["ml-pipeline:8888", "ftp://host", "http://me:hunter2@host", "http://"])
def test_an_endpoint_that_is_no_address_is_refused_and_not_repeated(
    endpoint: str, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = begun(finished, tmp_path / "run")
    assert tdm_r1("drive", "--root", str(root), "--endpoint", endpoint, "--pipeline", BLOCK) == 2
    error = capsys.readouterr().err
    assert "--endpoint is no address of a server" in error
    assert "hunter2" not in error


def test_a_root_that_is_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--endpoint", "http://127.0.0.1:9", "--pipeline", BLOCK]
    assert tdm_r1("drive", "--root", str(tmp_path / "none"), *words) == 2
    assert "holds no run.json" in capsys.readouterr().err


def test_a_driver_needs_neither_kfp_nor_the_tensor_library() -> None:
    import subprocess
    import sys

    heavy = ("kfp", "torch", "kubernetes", "diffusers")
    program = f"import sys, tdm_r1.drive.command; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", program], text=True).strip() == "[]"
