"""The driver's Job of k8s/ does what `tdm-r1 drive` does: its words are taken, its rights and its image suffice."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.compile import COMPILED
from tdm_r1.drive.cluster import check_cluster
from tdm_r1.drive.http import Api
from tests.argo_server import ArgoServer
from tests.contract.k8s.rendered import OVERLAYS, ROOT, Overlay, containers
from tests.drive_support import QUICK, begun, committing, uncommitted
from tests.http_server import Request, serving
from tests.kfp_server import KfpServer
from tests.support import tdm_r1

Right = tuple[str, str, str]
"""API group, resource, verb."""
EVERY = [Overlay(name) for name in OVERLAYS]
BY_NAME = pytest.mark.parametrize("overlay", EVERY, ids=OVERLAYS)
KFP, ARGO = "pipelines.kubeflow.org", "argoproj.io"


def words(overlay: Overlay, name: str, environment: Mapping[str, str]) -> list[str]:
    """The arguments of a container of the Job, with $(NAME) replaced as the kubelet does."""
    (job,) = [one for one in overlay.driver if one["kind"] == "Job"]
    (container,) = [c for c in containers(job["spec"]["template"]) if c["name"] == name]
    assert container["command"] == ["tdm-r1"]
    return [re.sub(r"\$\((\w+)\)", lambda found: environment[found[1]], word) for word in container["args"]]


def environment(overlay: Overlay, root: Path, endpoint: str) -> dict[str, str]:
    """What the Job gives the driver, with a run and a scheduler of this machine."""
    given = overlay.settings() | {"NAMESPACE": overlay.profile.namespace}
    assert {"TDM_R1_ROOT", "KFP_ENDPOINT"} <= set(given)
    return given | {"TDM_R1_ROOT": str(root), "KFP_ENDPOINT": endpoint}


def driven(
    overlay: Overlay, finished: Path, root: Path, monkeypatch: pytest.MonkeyPatch, *more: str, hold: bool = False
) -> tuple[int, list[Request]]:
    """Exit code of the Job's command against a server of the overlay's scheduler, and what it asked for.

    The answer to the first submission is lost, so that the driver has to look for its block.
    """
    asked: list[Request] = []
    namespace = overlay.profile.namespace
    server = scheduler(overlay, committing(finished, hold=threading.Event() if hold else None))

    def handle(request: Request) -> Any:
        return server.handle(replace(request, path=re.sub(rf"/{namespace}(?=/|$)", "/argo", request.path)))

    def lost(request: Request) -> str | None:
        asked.append(request)
        return "lost" if len(submissions(asked)) == 1 and request is submissions(asked)[0] else None

    token = root.parent / "token"
    token.write_text("a token")
    with serving(handle, lambda: lost) as endpoint:
        given = environment(overlay, root, endpoint)
        for name, value in given.items():
            monkeypatch.setenv(name, value)
        line = [re.sub(r"(--token-file=).*", rf"\g<1>{token}", word) for word in words(overlay, "drive", given)]
        code = tdm_r1(*line, *QUICK, *more)
        server.wait()
    return code, asked


def submissions(asked: list[Request]) -> list[Request]:
    return [request for request in asked if request.method == "POST" and re.search(r"/(runs|submit)$", request.path)]


def scheduler(overlay: Overlay, work: Any) -> KfpServer | ArgoServer:
    """A server that has what the guide uploads: the block, or the WorkflowTemplate as it is compiled."""
    if "argo-server" in overlay.settings()["KFP_ENDPOINT"]:
        template = yaml.safe_load((COMPILED / "argo_loop.yaml").read_text())
        return ArgoServer(started(work), {template["metadata"]["name"]: template["spec"]["arguments"]["parameters"]})
    pipeline = next(yaml.safe_load_all((COMPILED / "block.yaml").read_text()))
    namespaces = (overlay.profile.namespace,)
    return KfpServer(
        work, multi_user=True, namespaces=namespaces, pipelines={pipeline["pipelineInfo"]["name"]: pipeline}
    )


def started(work: Any) -> Any:
    """The loop finds the next iteration itself."""
    return lambda parameters, spec, ended: work({"start": 1, **parameters}, spec, ended)


@BY_NAME
def test_the_job_drives_a_run_to_its_end(
    overlay: Overlay, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = begun(finished, tmp_path / "run")
    code, asked = driven(overlay, finished, root, monkeypatch)
    assert code == 0
    assert uncommitted(finished, root) == []
    submitted = [request.body for request in submissions(asked)]
    accounts = {b.get("service_account") or b.get("submitOptions", {}).get("serviceAccount") for b in submitted}
    assert accounts == {overlay.profile.service_account}


@BY_NAME
def test_the_driver_may_do_what_it_does_and_no_more(
    overlay: Overlay, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done, stuck = begun(finished, tmp_path / "a/run"), begun(finished, tmp_path / "b/run")
    code, asked = driven(overlay, finished, done, monkeypatch)
    late, more = driven(overlay, finished, stuck, monkeypatch, "--stall", "0.2", "--retries", "0", hold=True)
    assert (code, late) == (0, 2)
    used = {right for request in asked + more if (right := right_of(request)) is not None}
    assert any(verb in ("terminate", "patch") for _, _, verb in used), "a stuck block was stopped"
    # To start a pipeline by its version, KFP's server reads it as the caller.
    by_version = {(KFP, "pipelines", "get"), (KFP, "pipelines/versions", "get")}
    behind = by_version if (KFP, "runs", "create") in used else set()
    assert granted(overlay, "tdm-r1-drive") == used | behind | rights_of_looking(overlay)


def right_of(request: Request) -> Right | None:
    """What a request to a scheduler needs; None for one that is open to all."""
    if found := re.fullmatch(r"/apis/v2beta1/(\w+)(/[^/:]+)?(/versions)?(:terminate)?", request.path):
        kind, one, versions, terminate = found.groups()
        verb = "terminate" if terminate else "create" if request.method == "POST" else "get" if one else "list"
        resource = "pipelines/versions" if versions else kind
        return None if kind == "healthz" else (KFP, resource, "list" if versions else verb)
    found = re.fullmatch(r"/api/v1/(workflow-templates|workflows)/[^/]+(/[^/]+)?(/terminate)?", request.path)
    assert found, request.path
    kind, one, terminate = found.groups()
    if terminate:
        return ARGO, "workflows", "patch"
    if one == "/submit":
        return ARGO, "workflows", "create"
    return ARGO, kind.replace("-", ""), "get" if one else "list"


def rights_of_looking(overlay: Overlay) -> set[Right]:
    """What `check_cluster` asks Kubernetes for; the list of APIs is open to every account."""
    asked: list[str] = []
    preferred = {"preferredVersion": {"groupVersion": "kueue.x-k8s.io/v1beta2"}}

    def handle(request: Request) -> Any:
        asked.append(request.path)
        return preferred

    with serving(handle) as endpoint:
        api = Api(endpoint=endpoint, what="Kubernetes", hint="")
        assert check_cluster(api, overlay.profile.namespace, ("q",)) == ""
    namespace = overlay.profile.namespace
    known: dict[str, Right | None] = {
        f"/api/v1/namespaces/{namespace}": ("", "namespaces", "get"),
        "/apis/kueue.x-k8s.io": None,
        f"/apis/kueue.x-k8s.io/v1beta2/namespaces/{namespace}/localqueues/q": ("kueue.x-k8s.io", "localqueues", "get"),
    }
    return {right for path in asked if (right := known[path]) is not None}


def granted(overlay: Overlay, account: str) -> set[Right]:
    """Every right of a service account in its namespace."""
    roles = [
        one["roleRef"]["name"]
        for one in overlay.team
        if one["kind"] == "RoleBinding" and account in {subject["name"] for subject in one["subjects"]}
    ]
    return {
        (group, resource, verb)
        for role in roles
        for rule in overlay.one("Role", role)["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


@BY_NAME
def test_nobody_may_read_all_secrets_or_start_pods(overlay: Overlay) -> None:
    for role in [one for one in overlay.team if one["kind"] == "Role"]:
        for rule in role["rules"]:
            assert "*" not in rule["verbs"] + rule["resources"] + rule["apiGroups"]
            assert "create" not in rule["verbs"] or not {"pods", "pods/exec", "jobs"} & set(rule["resources"])
            assert "secrets" not in rule["resources"] or rule["resourceNames"] == ["tdm-r1-s3"]


@BY_NAME
def test_an_attempt_that_is_refused_ends_the_job_and_a_temporary_one_does_not(overlay: Overlay) -> None:
    (job,) = [one for one in overlay.driver if one["kind"] == "Job"]
    codes = [rule["onExitCodes"] for rule in job["spec"]["podFailurePolicy"]["rules"] if rule["action"] == "FailJob"]
    assert codes == [{"operator": "In", "values": [2]}]
    assert job["spec"]["backoffLimit"] > 0
    assert job["spec"]["template"]["spec"]["restartPolicy"] == "Never"


def test_the_image_of_the_driver_holds_what_it_imports(finished: Path, tmp_path: Path) -> None:
    """`init` and `drive --check` in a process that can import only what images/tools/requirements.lock names."""
    overlay, root = Overlay("kind-cpu"), tmp_path / "run"
    with serving(scheduler(overlay, committing(finished)).handle) as endpoint:
        given = environment(overlay, root, endpoint) | {"NAMESPACE": "argo"}
        run_locked(words(overlay, "init", given))
        line = [word for word in words(overlay, "drive", given) if not word.startswith("--token-file")]
        said = run_locked([*line, f"--endpoint={endpoint}", "--check"])
    assert f"takes blocks of {root}" in said.replace("\n", "")


LOCKED = """
import sys
from importlib.machinery import PathFinder
class Installed(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in MISSING else PathFinder.find_spec(name, path, target)
sys.meta_path = [Installed if finder is PathFinder else finder for finder in sys.meta_path]
from tdm_r1.cli import main
main()
"""


def run_locked(arguments: list[str]) -> str:
    """Standard output of `tdm-r1 ARGUMENTS` where no library exists but those of the image `tools`."""
    lock = (ROOT / "images/tools/requirements.lock").read_text()
    locked = {name.lower() for name in re.findall(r"^([\w.-]+)==", lock, re.MULTILINE)} | {"torch", "tdm-r1"}
    assert {"pyarrow", "boto3"} <= locked
    normal: Callable[[str], str] = lambda name: re.sub(r"[-_.]+", "-", name).lower()  # noqa: E731
    missing = {
        module
        for module, owners in metadata.packages_distributions().items()
        if not locked & {normal(owner) for owner in owners}
    }
    assert {"diffusers", "transformers", "kfp"} <= missing
    code = f"MISSING = {missing!r}\n{LOCKED}"
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
