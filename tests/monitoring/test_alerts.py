"""The alert rules: promtool judges them on made-up series, and every name in them is one that is published."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tdm_r1.telemetry.metrics import METRICS
from tests.monitors import tool

ROOT = Path(__file__).parents[2]
RULES: dict[str, Any] = yaml.safe_load((ROOT / "k8s/components/monitoring/rules.yaml").read_text(encoding="utf-8"))
ALL = [rule for group in RULES["spec"]["groups"] for rule in group["rules"]]
ALERTS = [rule for rule in ALL if "alert" in rule]
OF_THE_CLUSTER = {"kube_job_failed"}
"""Of kube-state-metrics: a driver that is gone publishes nothing."""
CASES = Path(__file__).with_name("alerts.yaml")


def anchors(text: str) -> set[str]:
    """What a browser finds after `#` on a rendered page."""
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^a-z0-9_ -]", "", title.lower()).replace(" ", "-") for title in titles}


def test_every_alert_fires_and_rests_as_promtool_sees_it(tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(RULES["spec"]))
    shutil.copy(CASES, tmp_path)
    for words in (["check", "rules", "rules.yaml"], ["test", "rules", CASES.name]):
        ended = subprocess.run([tool("promtool"), *words], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_an_alert_is_tested_documented_and_has_a_severity(rule: dict[str, Any]) -> None:
    assert re.search(rf"\b{rule['alert']}\b", CASES.read_text(encoding="utf-8"))
    assert rule["labels"]["severity"] in ("critical", "warning")
    page, _, anchor = rule["annotations"]["runbook_url"].partition("#")
    assert anchor in anchors((ROOT / page).read_text(encoding="utf-8"))


@pytest.mark.parametrize("rule", ALL, ids=lambda rule: rule.get("alert") or rule["record"])
def test_a_rule_reads_published_metrics_only(rule: dict[str, Any]) -> None:
    names = set(re.findall(r"\b(?:tdm_r1|kube)_[a-z_]+", rule["expr"]))
    recorded = set(re.findall(r"\btdm_r1:[a-z_:]+", rule["expr"]))
    assert names | recorded, "a rule about nothing of ours"
    assert names <= set(METRICS) | OF_THE_CLUSTER
    assert recorded <= {one["record"] for one in ALL if "record" in one}
    labels = {label for by in re.findall(r"by \(([^)]*)\)", rule["expr"]) for label in by.split(", ")}
    assert labels <= {label for name in names & set(METRICS) for label in METRICS[name].labels}
