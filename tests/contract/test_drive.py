"""The driver against a server that speaks KFP's v2beta1 API, with the faults of servers, networks and machines."""

from __future__ import annotations

import random
import shutil
import threading
from pathlib import Path
from typing import Any

import kfp_server_api
import pytest

from tests.drive_support import BLOCK, arguments, begun, committing, journal, names, uncommitted
from tests.http_server import Answer, Request, serving
from tests.kfp_server import kfp_server
from tests.support import tdm_r1


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
        with pytest.raises(kfp_server_api.ApiException, match=r"pipeline version .* not found"):
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
    assert uncommitted(finished, root) == []
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
    assert uncommitted(finished, root) == []


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
    assert uncommitted(finished, root) == []


def test_a_failed_block_is_submitted_again_from_the_first_incomplete_iteration(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = begun(finished, tmp_path / "run")
    with kfp_server(committing(finished, fail_after=[3, 10])) as server:
        assert tdm_r1(*arguments(server, root)) == 0
        assert names(server) == ["run-b00001-i00001", "run-b00002-i00001", "run-b00003-i00002"]
    assert journal(root) == ["failed failed; rollout: exit code 75"] * 2 + ["succeeded"]
    assert "run-b00001" in capsys.readouterr().err
    assert uncommitted(finished, root) == []


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


def test_a_rule_judges_what_is_new_and_not_what_earlier_drivers_left_behind(finished: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(finished, tmp_path / "run"))
    (root / "iter-00002/evaluation/manifest.json").unlink()
    with kfp_server(committing(finished)) as server:
        assert tdm_r1(*arguments(server, root, "--max-kl", "0")) == 0
        assert (root / "STOP").read_text().startswith("KL budget: generator/kl is")
        assert "at iteration 1" in (root / "STOP").read_text()
        assert server.bodies == []
    (root / "STOP").unlink()
    shutil.copy(finished / "iter-00002/evaluation/manifest.json", root / "iter-00002/evaluation")
    with kfp_server(committing(finished)) as server:
        assert tdm_r1(*arguments(server, root, "--max-kl", "0")) == 0
        assert "at iteration 2" in (root / "STOP").read_text()


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
        named = {"pipeline_id": "id-tdm-r1-block", "pipeline_version_id": "id-tdm-r1-block-v1"}
        assert server.bodies[0]["pipeline_version_reference"] == named
        assert server.bodies[0]["service_account"] == "runner"
        assert {request.headers["Authorization"] for request in server.requests} == {"Bearer secret-of-the-account"}
        assert next(iter(server.experiments.values()))["namespace"] == "team"
    assert uncommitted(finished, root) == []
