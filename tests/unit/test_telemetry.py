"""Claims about the names that are published, and about what is read of a record; no server is needed."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from tdm_r1.artifacts.records import PromptSet
from tdm_r1.errors import ConfigError, NumericalError
from tdm_r1.models.metrics import by_sigma
from tdm_r1.runtime.execute import execute
from tdm_r1.runtime.layout import Task, all_tasks
from tdm_r1.runtime.observe import Observer
from tdm_r1.runtime.record_samples import failure_of, run_label, samples_of, where_of
from tdm_r1.runtime.run import open_run
from tdm_r1.telemetry.board import Board, sample
from tdm_r1.telemetry.document import page
from tdm_r1.telemetry.metrics import LABELS, METRICS
from tdm_r1.telemetry.outlets import Outlets, Pushgateway, harmless, serving, without_credentials
from tdm_r1.telemetry.readings import of_training, reason_of
from tests.drive_support import begun

DOCS = Path(__file__).parents[2] / "docs" / "operations"
WHERE = {"run": "a-0", "stage": "surrogate_update"}


def test_the_page_of_metrics_is_what_the_code_declares() -> None:
    assert (DOCS / "metrics.md").read_text(encoding="utf-8") == page(), "make golden writes it again"


@pytest.mark.parametrize("metric", METRICS.values(), ids=lambda metric: metric.name)
def test_a_name_says_its_unit_as_prometheus_wants_it(metric: Any) -> None:
    assert re.fullmatch(r"tdm_r1_[a-z]+(_[a-z]+)*", metric.name)
    assert metric.name.endswith("_total") == (metric.kind == "counter")
    for unit in ("seconds", "bytes", "ratio"):
        assert (metric.unit.split(" ")[0] == unit) == metric.name.endswith(f"_{unit}")
    assert set(metric.labels) <= set(LABELS)
    assert metric.help.endswith(".")


def test_every_label_that_is_explained_is_used() -> None:
    assert {label for metric in METRICS.values() for label in metric.labels} == set(LABELS)


def test_every_name_that_an_update_logs_is_published(finished: Path) -> None:
    tables = [*finished.rglob("*_update/metrics.parquet"), finished / "base" / "metrics.parquet"]
    names = {name for path in tables for name in pq.read_table(path)["name"].to_pylist()}
    assert len(names) > 15
    for name in names:
        assert of_training(WHERE, [{"name": name, "value": 1.0}]), f"`{name}` is published under no name"


def test_the_mean_and_the_largest_gradient_norm_of_the_steps_are_published() -> None:
    rows = [{"name": "fake/gradient_norm", "value": value} for value in (1.0, 5.0, 3.0)]
    assert {found.name: found.value for found in of_training(WHERE, rows)} == {
        "tdm_r1_gradient_norm": 3.0,
        "tdm_r1_gradient_norm_max": 5.0,
    }


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        ("worker_died: no answer within 30 s", "late"),
        ("worker_died: exit code -9", "worker_died"),
        ("bad image: 4×4 pixels", "bad_image"),
        ("ValueError: the text `top secret` of a prompt", "exception"),
        ("a prompt, a path /home/x, anything", "other"),
    ],
)
def test_the_text_of_an_error_becomes_one_of_five_words(error: str, reason: str) -> None:
    assert reason_of(error) == reason


def test_a_failure_is_named_by_its_class_and_a_value_that_is_not_finite_by_its_term() -> None:
    found = failure_of(WHERE, NumericalError("surrogate/loss", 3, hint="h"))
    assert [(one.name, one.labels[-1]) for one in found] == [
        ("tdm_r1_stage_failed", "NumericalError"),
        ("tdm_r1_stage_not_finite", "surrogate/loss"),
    ]
    assert failure_of(WHERE, ConfigError("s3://bucket/secret"))[0].labels[-1] == "ConfigError"
    assert failure_of(WHERE, ValueError("s3://bucket/secret"))[0].labels[-1] == "Crash"


@pytest.mark.parametrize(
    "root", ["s3://bucket/Team A/Démo run/", "s3://bucket/x/Démo run", "runs/../../etc/passwd", "/"]
)
def test_a_runs_label_is_short_has_no_path_and_differs_for_another_root(root: str) -> None:
    assert re.fullmatch(r"[a-z0-9][a-z0-9-]{0,38}-[0-9a-f]{8}", run_label(root))
    assert run_label(root) != run_label(f"{root}/other")


def test_the_same_root_has_the_same_label_with_and_without_a_slash_at_its_end() -> None:
    assert run_label("s3://bucket/a/") == run_label("s3://bucket/a")
    assert run_label("s3://one/a") != run_label("s3://two/a")


def test_whatever_a_caller_asks_for_no_label_comes_from_it() -> None:
    assert where_of("a", Task("a path/../x", 3, 4)) == {"run": "a", "stage": "unknown"}
    assert where_of("a", Task("reward_scoring", 3, 4, "strict"))["stage"] == "variant_scoring"
    assert where_of("a", Task("rollout", 7, 4)) == {"run": "a", "stage": "rollout", "shard": "0004"}


def test_a_label_that_is_not_declared_is_refused() -> None:
    with pytest.raises(KeyError):
        sample("stage_seconds", 1, **WHERE, prompt="a red circle")


def test_a_shelf_is_replaced_and_a_counter_grows() -> None:
    board = Board()
    for value in (1.0, 2.0):
        board.post("a", [sample("stage_seconds", value, **WHERE)])
        board.count(sample("driver_events_total", 1, run="a-0", event="failed"))
    assert [found.value for found in board.samples()] == [2.0, 2.0]
    board.post("a", [])
    assert [found.name for found in board.samples()] == ["tdm_r1_driver_events_total"]


def test_a_password_of_the_pushgateway_leaves_its_address() -> None:
    address, handler = without_credentials("https://me:p%40ss@host:9091/prefix")
    assert address == "https://host:9091/prefix"
    assert handler.keywords == {"username": "me", "password": "p@ss"}  # type: ignore[attr-defined]


def test_a_fault_inside_is_one_line_and_goes_no_further() -> None:
    said: list[str] = []
    with harmless(said.append):
        raise OSError("the disk\nis away")
    assert said == ["warning: some metrics are missing: OSError: the disk"]


def test_every_long_stage_counts_its_steps_on_the_board(finished: Path, tmp_path: Path) -> None:
    root = begun(finished, tmp_path / "run")
    run = open_run(str(root))
    observer = Observer(str(root), Outlets(), lambda _: None)
    counted: dict[str, set[tuple[float, ...]]] = {}

    def counting(steps: range, label: str) -> Iterable[int]:
        for step in steps:
            yield step
            found = {one.name.removeprefix("tdm_r1_stage_"): one.value for one in observer.board.samples("steps")}
            counted.setdefault(label.partition(":")[0], set()).add((found["steps_done"], found["steps"]))

    for task in [task for task in all_tasks(run.config) if task.iteration <= 1 and task.stage != "evaluation"]:
        with observer.watching(task):
            execute(run, task, progress=observer.steps(task, counting))
    assert counted == {
        "distill_base": {(0, 3), (1, 3), (2, 3)},
        "plane": {(number, 8) for number in range(8)},
        "surrogate": {(0, 2), (1, 2)},
        "generator": {(number, 4) for number in range(4)},
    }
    assert observer.board.samples("steps", "running") == []


@pytest.mark.parametrize("port", ["taken", "99999999", "no-number", ":"])
def test_a_port_that_cannot_be_had_costs_one_line_without_harm(port: str) -> None:
    said: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as other:
        wanted = f"127.0.0.1:{other.getsockname()[1]}" if port == "taken" else port
        with serving(Board(), wanted, said.append):
            pass
    assert len(said) == 1
    assert said[0].startswith("warning: no metrics on port")


def test_the_port_is_free_again_when_the_stage_is_over() -> None:
    said: list[str] = []
    with serving(Board(), "127.0.0.1:0", said.append):
        port = int(said[0].removesuffix("/metrics").rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), 10):
            pass
    with serving(Board(), f"127.0.0.1:{port}", said.append):
        assert said[1] == said[0]


def test_a_gateway_that_is_away_is_mentioned_once_and_left_alone_for_a_while() -> None:
    said: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as there:
        address = f"127.0.0.1:{there.getsockname()[1]}"
    gateway = Pushgateway(address, said.append, pause=0.3)
    shown = [sample("run_stopped", 0, run="a-0")]
    assert [gateway.replace("job", {"run": "a-0"}, shown) for _ in range(3)] == [False] * 3
    assert len(said) == 1
    time.sleep(0.3)
    assert not gateway.add("job", {"run": "a-0"}, shown)
    assert len(said) == 2


def test_a_loss_is_published_for_each_range_of_noise_levels() -> None:
    errors, levels = torch.tensor([1.0, 2.0, 4.0, 8.0]), torch.tensor([0.1, 0.5, 0.7, 1.0], dtype=torch.float64)
    binned = by_sigma("error", errors, levels)
    assert binned == {"error/0-0.25": [1.0], "error/0.5-0.75": [2.0, 4.0], "error/0.75-1": [8.0]}
    rows = [{"name": f"fake/{name}", "value": fmean(values)} for name, values in binned.items()]
    found = {sample.labels: sample.value for sample in of_training(WHERE, rows)}
    place = ("a-0", "surrogate_update", "fake", "error")
    assert found == {(*place, "0-0.25"): 1.0, (*place, "0.5-0.75"): 3.0, (*place, "0.75-1"): 8.0}


def test_images_and_tokens_by_seconds_are_those_that_the_configuration_trains_on(finished: Path) -> None:
    run = open_run(str(finished))
    config, section = run.config, run.config.generator
    _, height, width = run.backbone.latent_shape
    words = run.load(Task("encode_prompts"), PromptSet)[0].embeddings["sequence"].shape[1]
    for task, images in (
        (
            Task("generator_update", 2),
            section.minibatch * section.steps_per_trajectory * section.updates * (1 + section.fake_updates),
        ),
        (Task("surrogate_update", 1), config.surrogate.minibatch_groups * config.rollout.group_size),
    ):
        manifest = run.manifest(task)
        found = {s.name: s.value for s in samples_of(run.store, config, "a-0", task, manifest)}
        rows = pq.read_table(finished / task.location / "metrics.parquet").to_pylist()
        steps = {row["step"] for row in rows if row["name"].endswith("gradient_norm")}
        assert steps
        assert found["tdm_r1_stage_images"] == images
        patches = 1 if (height, width) == (1, 1) else height * width // 4
        expected = images * (patches + words) / manifest.provenance.seconds
        assert found["tdm_r1_stage_tokens_per_second"] == pytest.approx(expected)
