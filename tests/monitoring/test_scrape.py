"""What Debian's Prometheus sees of a loop and of a driver while they run, and an alert that comes and goes."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml

from tdm_r1.runtime.record_samples import run_label
from tdm_r1.telemetry.metrics import METRICS
from tests.drive_support import begun, committing, started
from tests.http_server import Request, serving
from tests.kfp_server import kfp_server
from tests.monitors import (
    alertmanager,
    asked,
    environment,
    free_port,
    get,
    prometheus,
    published,
    pushgateway,
    tool,
    until,
)
from tests.support import content, differing, plane_run, tdm_r1

RULES = Path(__file__).parents[2] / "k8s/components/monitoring/rules.yaml"


def hasty_rules() -> dict[str, Any]:
    """The alert rules, without the time that each waits before it fires."""
    spec: dict[str, Any] = yaml.safe_load(RULES.read_text(encoding="utf-8"))["spec"]
    for group in spec["groups"]:
        group.pop("interval")
        for rule in group["rules"]:
            rule.pop("for", None)
    return spec


def test_an_alert_reaches_its_receiver_when_a_stage_fails_and_is_resolved_when_it_succeeds(
    finished: Path, tmp_path: Path
) -> None:
    root = Path(shutil.copytree(finished, tmp_path / "run"))
    shutil.rmtree(root / "iter-00002")
    told: list[dict[str, Any]] = []

    def receive(request: Request) -> dict[str, Any]:
        told.extend(request.body["alerts"])
        return {}

    def states(name: str) -> list[str]:
        return [alert["status"] for alert in told if alert["labels"]["alertname"] == name]

    scoring = ["stage", "reward_scoring", "--root", str(root), "--iteration", "2", "--shard", "0"]
    with ExitStack() as stack:
        gateway = stack.enter_context(pushgateway(tmp_path))
        manager = stack.enter_context(alertmanager(tmp_path, stack.enter_context(serving(receive))))
        server = stack.enter_context(prometheus(tmp_path, [gateway.removeprefix("http://")], hasty_rules(), manager))
        assert tdm_r1(*scoring, "--pushgateway", gateway) == 2
        until(lambda: states("TdmR1StageFailing") == ["firing"])
        (alert,) = [alert for alert in told if alert["labels"]["alertname"] == "TdmR1StageFailing"]
        expected = {"run": run_label(str(root)), "stage": "reward_scoring", "reason": "MissingParentError"}
        assert expected.items() <= alert["labels"].items()
        assert tdm_r1("stage", "rollout", *scoring[2:], "--pushgateway", gateway) == 0
        assert tdm_r1(*scoring, "--pushgateway", gateway) == 0
        until(lambda: states("TdmR1StageFailing")[-1] == "resolved")
        until(lambda: asked(server, "tdm_r1_reward_mean"))


def test_prometheus_sees_a_loop_while_it_runs_and_the_loop_makes_the_same_bytes(finished: Path, tmp_path: Path) -> None:
    root, port = tmp_path / "run", free_port()
    command = [sys.executable, "-m", "tdm_r1", *plane_run(root, iterations=500, evaluation__every=0)]
    told = environment(TDM_R1_METRICS_PORT=f"127.0.0.1:{port}")
    with ExitStack() as stack:
        manager = stack.enter_context(alertmanager(tmp_path, "http://127.0.0.1:9"))
        server = stack.enter_context(prometheus(tmp_path, [f"127.0.0.1:{port}"], hasty_rules(), manager))
        loop = stack.enter_context(subprocess.Popen(command, env=told, stdout=subprocess.DEVNULL))
        until(lambda: asked(server, "tdm_r1_stage_iteration{stage='generator_update'} >= 2"))
        text = get(f"http://127.0.0.1:{port}/metrics")
        (root / "STOP").touch()
        assert loop.wait(120) == 0
        names = {found["metric"]["__name__"] for found in asked(server, "last_over_time({run!=''}[10m])")}
        assert asked(server, "last_over_time(process_resident_memory_bytes[10m])") != []
    ours = published(text)
    passing = ("running", "started_timestamp_seconds", "steps", "steps_done")  # absent between two stages
    once = {f"tdm_r1_stage_{name}" for name in passing}
    assert set(ours) - once - names == set()
    shards = len(ours["tdm_r1_reward_mean"])
    assert shards == 2
    assert sum(len(values) for values in ours.values()) < 250, "few series, whatever the iteration"
    lines = subprocess.run(
        [tool("promtool"), "check", "metrics"], input=text, capture_output=True, text=True, check=False
    )
    assert [line for line in (lines.stdout + lines.stderr).splitlines() if line.startswith("tdm_r1_")] == []
    first = [name for name in content(finished) if name.startswith(("base/", "prompts/", "iter-00001/rollout/"))]
    assert [
        name for name in differing(content(finished), content(root)) if name in first and "manifest" not in name
    ] == []


def test_a_driver_shows_the_run_that_others_work_on(finished: Path, tmp_path: Path) -> None:
    root, port, hold = begun(finished, tmp_path / "run"), free_port(), threading.Event()
    run, where = run_label(str(root)), f"127.0.0.1:{port}"
    with pushgateway(tmp_path) as gateway, kfp_server(committing(finished, hold=hold)) as server:
        driver = started(server, root, "--metrics-port", where, "--pushgateway", gateway)

        def now() -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
            return published(get(f"http://{where}/metrics"))

        submitted = (("event", "submitted"), ("run", run))
        until(lambda: now().get("tdm_r1_driver_events_total", {}).get(submitted) == 1)
        seen = now()
        assert seen["tdm_r1_run_iterations_complete"][("run", run),] == 0
        assert "tdm_r1_reward_mean" not in seen
        hold.set()
        _, error = driver.communicate(timeout=120)
        assert driver.returncode == 0, error
        pushed = published(get(f"{gateway}/metrics"))
    assert pushed["tdm_r1_run_iterations_complete"][("run", run),] == 2
    assert pushed["tdm_r1_driver_events_total"][("event", "succeeded"), ("run", run)] == 1
    assert set(pushed) <= set(METRICS)


def test_the_command_metrics_counts_what_lies_in_the_storage(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = Path(shutil.copytree(finished, tmp_path / "run"))
    shutil.rmtree(root / "iter-00002" / "reward_scoring" / "shard-0001")
    assert tdm_r1("metrics", "--root", str(root)) == 0
    found, run = published(capsys.readouterr().out), run_label(str(root))
    assert found["tdm_r1_scoring_backlog_shards"][("run", run),] == 1
    assert found["tdm_r1_run_iterations_complete"][("run", run),] == 1
    stored = found["tdm_r1_run_stored_bytes"]
    assert sum(stored.values()) == sum(path.stat().st_size for path in root.rglob("*") if path.is_file())
    assert stored[("run", run), ("stage", "rollout")] == sum(
        path.stat().st_size for path in root.glob("iter-*/rollout/*/*")
    )


def test_forgetting_a_run_leaves_the_groups_of_others(finished: Path, tmp_path: Path) -> None:
    roots = [Path(shutil.copytree(finished, tmp_path / name)) for name in ("mine", "theirs")]
    with pushgateway(tmp_path) as gateway:
        for root in roots:
            for stage in ("rollout", "reward_scoring"):
                words = ["--root", str(root), "--iteration", "1", "--shard", "1", "--pushgateway", gateway]
                assert tdm_r1("stage", stage, *words) == 0
        assert tdm_r1("metrics", "--root", str(roots[0]), "--pushgateway", gateway, "--forget") == 0
        left = {dict(labels)["run"] for labels in published(get(f"{gateway}/metrics"))["tdm_r1_stage_seconds"]}
    assert left == {run_label(str(roots[1]))}
