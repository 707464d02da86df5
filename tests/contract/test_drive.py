"""The driver against a server that speaks KFP's v2beta1 API, with the faults of servers, networks and machines."""

from __future__ import annotations

import json
import random
import shutil
import signal
import threading
from pathlib import Path
from typing import Any

import kfp_server_api
import pytest

from tests.drive_support import BLOCK, SHORT, arguments, begun, committing, names, started, until
from tests.http_server import Answer, Request, serving
from tests.kfp_server import kfp_server
from tests.support import content, differing, tdm_r1, tree

WITHOUT = ("iter-00000/", "drive/", "result.json", "report.html")


def missing(finished: Path, root: Path) -> list[str]:
    """Names that differ from the finished run, but for what a block does not make."""
    return [name for name in differing(content(finished), content(root)) if not name.startswith(WITHOUT)]


def journal(root: Path) -> list[str]:
    """How every submission ended."""
    ends = sorted(root.glob("drive/submissions/*/end.json"))
    return [json.loads(path.read_text())["ended"] for path in ends]


def test_kfps_own_client_understands_the_server_of_these_tests(finished: Path, tmp_path: Path) -> None:
    with kfp_server(committing(finished)) as server:
        client = kfp_server_api.ApiClient(kfp_server_api.Configuration(host=server.endpoint))
        assert kfp_server_api.HealthzServiceApi(client).healthz_service_get_healthz().multi_user is False
        experiments = kfp_server_api.ExperimentServiceApi(client)
        experiment = experiments.experiment_service_create_experiment(
            experiment=kfp_server_api.V2beta1Experiment(display_name="a")
        )
        runs = kfp_server_api.RunServiceApi(client)
        body = kfp_server_api.V2beta1Run(display_name="b", experiment_id=experiment.experiment_id)
        with pytest.raises(kfp_server_api.ApiException, match="pipeline version not found"):
            runs.run_service_create_run(run=body)
        assert runs.run_service_list_runs().runs is None


def test_a_run_is_driven_to_its_end_block_after_block(finished: Path, tmp_path: Path) -> None:
    root = begun(finished, tmp_path / "run")
    with kfp_server(committing(finished, per_block=1)) as server:
        assert tdm_r1(*arguments(server, root)) == 0
        assert names(server) == ["run-b00001-i00001", "run-b00002-i00002"]
        body = server.bodies[1]
    assert body["runtime_config"] == {"parameters": {"root": str(root), "start": 2, "shards": [0, 1]}}
    assert set(body["pipeline_spec"]) == {"pipeline_spec", "platform_spec"}
    assert missing(finished, root) == []
    assert journal(root) == ["succeeded", "succeeded"]
    assert tdm_r1("audit", "--root", str(root)) == 0, "an audit knows the driver's folder"


def test_a_complete_run_submits_nothing(finished: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(finished, tmp_path / "run"))
    with kfp_server(committing(finished)) as server:
        assert tdm_r1(*arguments(server, root)) == 0
        assert server.bodies == []


def test_a_server_that_fails_every_second_request_ends_in_one_run(finished: Path, tmp_path: Path) -> None:
    root, chance = begun(finished, tmp_path / "run"), random.Random(0)
    with kfp_server(committing(finished)) as server:
        server.fault = lambda _: Answer({"message": "overloaded"}, 503) if chance.random() < 0.5 else None
        assert tdm_r1(*arguments(server, root)) == 0
        assert len(server.bodies) == 1
    assert missing(finished, root) == []


def test_a_submission_whose_answer_is_lost_is_found_and_not_repeated(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, lost = begun(finished, tmp_path / "run"), ["lost"]

    def fault(request: Request) -> str | None:
        return lost.pop() if lost and request.method == "POST" and request.path.endswith("/runs") else None

    with kfp_server(committing(finished), fault=fault) as server:
        assert tdm_r1(*arguments(server, root)) == 0
        assert len(server.bodies) == 1
    assert not lost
    assert "cannot be reached: ProtocolError; trying again" in capsys.readouterr().err
    assert missing(finished, root) == []


def test_a_failed_block_is_submitted_again_from_the_first_incomplete_iteration(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = begun(finished, tmp_path / "run")
    with kfp_server(committing(finished, fail_after=[3, 10])) as server:
        assert tdm_r1(*arguments(server, root)) == 0
        assert names(server) == ["run-b00001-i00001", "run-b00002-i00001", "run-b00003-i00002"]
    assert journal(root) == ["failed failed; rollout: exit code 75"] * 2 + ["succeeded"]
    assert "run-b00001" in capsys.readouterr().err
    assert missing(finished, root) == []


def test_blocks_that_fail_without_progress_end_the_driver_with_the_servers_message(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = begun(finished, tmp_path / "run")
    with kfp_server(committing(finished, fail_after=[1] * 9)) as server:
        assert tdm_r1(*arguments(server, root, "--retries", "2")) == 2
        assert len(server.bodies) == 3
    error = capsys.readouterr().err
    assert "error: 3 blocks failed in a row after iteration 0; the last: failed; rollout: exit code 75" in error
    assert "\n\nhint: read the log" in error


def test_pods_that_write_elsewhere_are_noticed_after_one_block(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = begun(finished, tmp_path / "run")
    with kfp_server(committing(finished, fail_after=[], writes=False)) as server:
        assert tdm_r1(*arguments(server, root)) == 2
        assert len(server.bodies) == 1
    assert "succeeded, but nothing new is committed under" in capsys.readouterr().err


def test_a_block_without_a_new_record_is_terminated_and_submitted_again(finished: Path, tmp_path: Path) -> None:
    root, stuck = begun(finished, tmp_path / "run"), [True]
    commit = committing(finished)

    def work(parameters: Any, spec: Any, ended: threading.Event) -> str | None:
        if stuck and stuck.pop():
            assert ended.wait(60)
            return None
        return commit(parameters, spec, ended)

    with kfp_server(work) as server:
        assert tdm_r1(*arguments(server, root, "--stall", "0.3")) == 0
        assert [run["state"] for run in server.runs.values()] == ["CANCELED", "SUCCEEDED"]
    assert journal(root)[0].startswith("failed terminated: no new record for 0.3 s")


def test_a_server_that_stays_away_ends_the_driver_temporarily_and_the_next_one_goes_on(
    finished: Path, tmp_path: Path
) -> None:
    root = begun(finished, tmp_path / "run")
    with kfp_server(committing(finished)) as server:

        def away(request: Request) -> Answer | None:
            return Answer("<html>", 502, "text/html") if "/runs" in request.path else None

        server.fault = away
        assert tdm_r1(*arguments(server, root, "--outage", "0.2")) == 75
        assert server.bodies == []
        server.fault = None
        assert tdm_r1(*arguments(server, root)) == 0
        assert names(server) == ["run-b00002-i00001"], "number 1 never arrived, and is not used again"
    assert journal(root) == ["lost: it never reached the scheduler", "succeeded"]


def test_a_killed_driver_is_replaced_and_its_block_adopted(finished: Path, tmp_path: Path) -> None:
    root, hold = begun(finished, tmp_path / "run"), threading.Event()
    with kfp_server(committing(finished, hold=hold)) as server:
        first = started(server, root, *SHORT)
        until(lambda: list(root.glob("drive/submissions/00001/run.json")))
        first.kill()
        first.communicate()
        second = started(server, root, *SHORT)
        until((root / "drive/lease/00000002/claim.json").exists)
        hold.set()
        _, said = second.communicate(timeout=60)
        assert (second.returncode, len(server.bodies)) == (0, 1), said
    assert "adopted from driver 1" in said
    assert missing(finished, root) == []


def test_a_driver_that_is_killed_before_it_knows_of_its_run_leaves_it_to_the_next_one(
    finished: Path, tmp_path: Path
) -> None:
    root, hold, answered = begun(finished, tmp_path / "run"), threading.Event(), threading.Event()
    with kfp_server(committing(finished, hold=hold)) as server:

        def slow(request: Request) -> str | None:
            if request.method == "POST" and request.path.endswith("/runs") and not answered.is_set():
                server.handle(request)
                answered.wait(30)
                raise ConnectionError
            return None

        server.fault = slow
        first = started(server, root, *SHORT)
        until(lambda: len(server.bodies) > 0)
        first.kill()
        first.communicate()
        answered.set()
        server.fault = None
        hold.set()
        assert not (root / "drive/submissions/00001/run.json").exists()
        assert tdm_r1(*arguments(server, root, *SHORT)) == 0
        assert len(server.bodies) == 1
    assert journal(root) == ["succeeded"]


def test_of_two_drivers_one_submits_and_the_other_asks_to_be_retried(finished: Path, tmp_path: Path) -> None:
    root, hold = begun(finished, tmp_path / "run"), threading.Event()
    with kfp_server(committing(finished, hold=hold)) as server:
        drivers = [started(server, root, *SHORT) for _ in range(2)]
        until(lambda: any(driver.poll() is not None for driver in drivers))
        hold.set()
        said = [driver.communicate(timeout=60)[1] for driver in drivers]
        assert sorted(driver.returncode for driver in drivers) == [0, 75], said
        assert len(server.bodies) == 1
    assert any("has a driver: number 1, process" in text for text in said)


def test_a_driver_that_was_frozen_while_another_took_over_submits_nothing_more(finished: Path, tmp_path: Path) -> None:
    root, hold = begun(finished, tmp_path / "run"), threading.Event()
    with kfp_server(committing(finished, per_block=1, hold=hold)) as server:
        first = started(server, root, *SHORT)
        until(lambda: list(root.glob("drive/submissions/00001/run.json")))
        first.send_signal(signal.SIGSTOP)
        second = started(server, root, *SHORT)
        until((root / "drive/lease/00000002/claim.json").exists)
        first.send_signal(signal.SIGCONT)
        said = first.communicate(timeout=60)[1]
        hold.set()
        assert second.wait(timeout=60) == 0, second.communicate()
        second.communicate()
        assert (first.returncode, names(server)) == (75, ["run-b00001-i00001", "run-b00002-i00002"])
    assert "driver 1" in said
    assert missing(finished, root) == []


def test_a_driver_that_is_told_to_end_lets_go_at_once_and_its_block_goes_on(finished: Path, tmp_path: Path) -> None:
    root, hold = begun(finished, tmp_path / "run"), threading.Event()
    with kfp_server(committing(finished, hold=hold)) as server:
        first = started(server, root, "--lease-seconds", "600")
        until(lambda: list(root.glob("drive/submissions/00001/run.json")))
        first.send_signal(signal.SIGTERM)
        said = first.communicate(timeout=60)[1]
        assert first.returncode == 75
        assert "the block goes on" in said
        hold.set()
        assert tdm_r1(*arguments(server, root)) == 0
        assert len(server.bodies) == 1


def test_a_stop_file_ends_the_driver_after_the_iteration_at_hand(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = begun(finished, tmp_path / "run")
    (root / "STOP").write_text("enough for today\n")
    with kfp_server(committing(finished)) as server:
        assert tdm_r1(*arguments(server, root)) == 0
        assert server.bodies == []
    assert "stopped after iteration 0: enough for today" in capsys.readouterr().out


def test_a_rule_stops_the_block_that_runs_and_says_why(finished: Path, tmp_path: Path) -> None:
    root, events = begun(finished, tmp_path / "run"), list[dict[str, Any]]()
    refusals = [Answer({}, 503)]

    def hook(request: Request) -> Any:
        if refusals:
            return refusals.pop()
        events.append(request.body)
        return {}

    with kfp_server(committing(finished, per_block=1)) as server, serving(hook) as url:
        assert tdm_r1(*arguments(server, root, "--target", "0.0", "--webhook", f"{url}/secret")) == 0
        assert names(server) == ["run-b00001-i00001"]
    assert (root / "STOP").read_text().startswith("target reached: the score is ")
    kinds = [event["event"] for event in events]
    assert kinds == ["submitted", "rule", "progress", "succeeded", "finished"]
    assert events[-1]["text"].startswith("stopped after iteration 1: target reached")
    assert {event["root"] for event in events} == {str(root)}


def test_a_webhook_that_is_away_stops_nothing_and_is_not_printed(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = begun(finished, tmp_path / "run")
    with kfp_server(committing(finished)) as server:
        assert tdm_r1(*arguments(server, root, "--webhook", "http://127.0.0.1:9/token-of-a-channel")) == 0
    said = capsys.readouterr().err
    assert "the webhook was not told of `finished`" in said
    assert "token-of-a-channel" not in said


def test_until_starts_no_block_beyond_it(finished: Path, tmp_path: Path) -> None:
    root = begun(finished, tmp_path / "run")
    with kfp_server(committing(finished, per_block=1)) as server:
        assert tdm_r1(*arguments(server, root, "--until", "1")) == 0
        assert len(server.bodies) == 1
        assert tdm_r1(*arguments(server, root)) == 0
        assert len(server.bodies) == 2


def test_a_pipeline_on_the_server_is_driven_by_name_in_a_namespace(finished: Path, tmp_path: Path) -> None:
    import yaml

    root, token = begun(finished, tmp_path / "run"), tmp_path / "token"
    token.write_text("secret-of-the-account\n")
    spec = dict(zip(("pipeline_spec", "platform_spec"), yaml.safe_load_all(Path(BLOCK).read_text()), strict=True))
    with kfp_server(committing(finished), multi_user=True, namespaces=("team",)) as server:
        server.pipelines["tdm-r1-block"] = spec
        command = ["drive", "--root", str(root), "--endpoint", server.endpoint, "--pipeline-name", "tdm-r1-block"]
        more = ["--namespace", "team", "--token-file", str(token), "--service-account", "runner", "--poll", "0.05"]
        assert tdm_r1(*command, *more) == 0
        assert server.bodies[0]["pipeline_version_reference"]["pipeline_version_id"] == "id-tdm-r1-block-v1"
        assert server.bodies[0]["service_account"] == "runner"
        assert {request.headers["Authorization"] for request in server.requests} == {"Bearer secret-of-the-account"}
        assert next(iter(server.experiments.values()))["namespace"] == "team"
    assert missing(finished, root) == []


def test_check_submits_nothing_and_takes_no_lease(finished: Path, tmp_path: Path) -> None:
    root = begun(finished, tmp_path / "run")
    with kfp_server(committing(finished)) as server:
        assert tdm_r1(*arguments(server, root, "--check")) == 0
        assert (server.bodies, sorted(tree(root))) == ([], ["run.json"])


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


@pytest.mark.parametrize(
    ("there", "complaint"),
    [
        ((), "there is no namespace `team`"),
        (("/api/v1/namespaces/team",), "namespace `team` has no Kueue LocalQueue `gpu`"),
        (("/api/v1/namespaces/team", "/localqueues/gpu"), ""),
    ],
)
def test_a_namespace_or_queue_that_the_cluster_does_not_have_is_refused(
    there: tuple[str, ...], complaint: str, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, block = begun(finished, tmp_path / "run"), tmp_path / "block.yaml"
    more = "\nplatforms: {kubernetes: {a: [{podMetadata: {labels: {kueue.x-k8s.io/queue-name: gpu}}}]}}\n"
    block.write_text(Path(BLOCK).read_text().partition("\n---")[0] + "\n---" + more)

    def cluster(request: Request) -> Any:
        return {} if request.path.endswith(there) and there else Answer({"message": "not found"}, 404)

    with (
        kfp_server(committing(finished), multi_user=True, namespaces=("team",)) as server,
        serving(cluster) as kubernetes,
    ):
        words = ["drive", "--root", str(root), "--endpoint", server.endpoint, "--pipeline", str(block), "--check"]
        code = tdm_r1(*words, "--namespace", "team", "--kubernetes", kubernetes)
    assert code == (2 if complaint else 0)
    assert complaint in capsys.readouterr().err


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
