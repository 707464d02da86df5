"""Debian's Prometheus, Pushgateway and Alertmanager on free ports of the loopback, each in a folder of its own."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families


def tool(name: str) -> str:
    """Path of a program; a test that needs one which is not there fails."""
    found = shutil.which(name)
    if found is None:
        pytest.fail(f"{name} is missing: run `make monitoring-tools`, or apt-get install {name}", pytrace=False)
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return str(answer.read().decode())


def until(condition: Callable[[], Any], seconds: float = 120) -> Any:
    """What a condition gives as soon as it gives anything; a server that does not answer yet gives nothing."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if found := condition():
                return found
        except (OSError, urllib.error.URLError):
            pass
        time.sleep(0.1)
    raise AssertionError(f"it did not happen within {seconds:g} s")


@contextmanager
def program(*command: str, ready: str, log: Path) -> Iterator[None]:
    """Run a server until the end of the block, once it answers at `ready`."""
    with log.open("wb") as out, subprocess.Popen(command, stdout=out, stderr=out, cwd=log.parent) as process:
        try:
            until(lambda: process.poll() is not None or get(ready) or "ready")
            assert process.poll() is None, log.read_text()
            yield
        finally:
            process.kill()


@contextmanager
def pushgateway(folder: Path) -> Iterator[str]:
    """A Pushgateway; yields its address."""
    address = f"127.0.0.1:{free_port()}"
    command = (tool("prometheus-pushgateway"), f"--web.listen-address={address}")
    with program(*command, ready=f"http://{address}/-/ready", log=folder / "pushgateway.log"):
        yield f"http://{address}"


@contextmanager
def alertmanager(folder: Path, webhook: str) -> Iterator[str]:
    """An Alertmanager that tells a webhook at once; yields its address."""
    address = f"127.0.0.1:{free_port()}"
    route = {"receiver": "test", "group_by": ["..."], "group_wait": "0s", "group_interval": "1s"}
    receiver = {"name": "test", "webhook_configs": [{"url": webhook, "send_resolved": True}]}
    (folder / "alertmanager.yml").write_text(json.dumps({"route": route, "receivers": [receiver]}))
    command = [tool("prometheus-alertmanager"), "--config.file=alertmanager.yml", "--storage.path=alerts"]
    command += [f"--web.listen-address={address}", "--cluster.listen-address="]
    with program(*command, ready=f"http://{address}/-/ready", log=folder / "alertmanager.log"):
        yield f"http://{address}"


@contextmanager
def prometheus(folder: Path, targets: list[str], rules: Any, manager: str) -> Iterator[str]:
    """A Prometheus that scrapes and judges twice a second; yields its address."""
    address = f"127.0.0.1:{free_port()}"
    config = {
        "global": {"scrape_interval": "500ms", "scrape_timeout": "500ms", "evaluation_interval": "500ms"},
        "rule_files": ["rules.json"],
        "scrape_configs": [{"job_name": "t", "honor_labels": True, "static_configs": [{"targets": targets}]}],
        "alerting": {"alertmanagers": [{"static_configs": [{"targets": [urllib.parse.urlsplit(manager).netloc]}]}]},
    }
    (folder / "rules.json").write_text(json.dumps(rules))
    (folder / "prometheus.yml").write_text(json.dumps(config))
    command = [tool("prometheus"), "--config.file=prometheus.yml", "--storage.tsdb.path=data"]
    command += [f"--web.listen-address={address}", "--rules.alert.resend-delay=1s"]
    with program(*command, ready=f"http://{address}/-/ready", log=folder / "prometheus.log"):
        yield f"http://{address}"


def asked(prometheus_: str, query: str) -> list[dict[str, Any]]:
    """Result of an instant query."""
    answer = json.loads(get(f"{prometheus_}/api/v1/query?{urllib.parse.urlencode({'query': query})}"))
    assert answer["status"] == "success", answer
    return list(answer["data"]["result"])


def published(text: str) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    """Values of our metrics by name and labels, read by Prometheus' own parser."""
    found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    for family in text_string_to_metric_families(text):
        for one in family.samples:
            if one.name.startswith("tdm_r1_"):
                labels = {k: v for k, v in one.labels.items() if v and k not in ("job", "instance")}
                found.setdefault(one.name, {})[tuple(sorted(labels.items()))] = one.value
    return found


def groups(gateway: str) -> list[dict[str, str]]:
    """Labels of every group that a Pushgateway holds, which lists them in any order."""
    found = [group["labels"] for group in json.loads(get(f"{gateway}/api/v1/metrics"))["data"]]
    return sorted(found, key=lambda labels: sorted(labels.items()))


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, **more}
