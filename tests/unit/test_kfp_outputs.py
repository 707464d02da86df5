"""Claims about what a stage tells KFP."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tdm_r1.errors import ConfigError
from tdm_r1.kfp_outputs import local_path, parse_executor_input, write_outputs
from tests.support import tdm_r1


def message(folder: Path) -> dict[str, Any]:
    """What KFP's launcher passes: nested paths, none of which exist yet."""
    return {
        "inputs": {"parameterValues": {"root": "runs/a"}},
        "outputs": {
            "parameters": {name: {"outputFile": str(folder / "parameters" / name)} for name in ("done", "stop")},
            "artifacts": {
                name: {"artifacts": [{"name": f"run/{name}", "uri": str(folder / "artifacts" / name)}]}
                for name in ("metrics", "report")
            },
            "outputFile": str(folder / "deep" / "output_metadata.json"),
        },
    }


def written(folder: Path, **change: Any) -> Path:
    values: dict[str, Any] = {
        "parameters": {"done": "d" * 64, "stop": "true"},
        "metrics": {"overall": 0.5},
        "html": "π",
    }
    write_outputs(parse_executor_input(json.dumps(message(folder))), **{**values, **change})
    return folder


def test_parameters_are_bare_text_so_that_kfp_reads_the_type_it_declared(tmp_path: Path) -> None:
    parameters = written(tmp_path) / "parameters"
    assert {path.name: path.read_text() for path in parameters.iterdir()} == {"done": "d" * 64, "stop": "true"}


def test_the_report_lies_where_kfp_wants_it_and_the_metrics_in_its_metadata(tmp_path: Path) -> None:
    written(tmp_path)
    assert (tmp_path / "artifacts/report").read_text() == "π"
    told = json.loads((tmp_path / "deep/output_metadata.json").read_text())
    (metrics,) = told["artifacts"]["metrics"]["artifacts"]
    assert metrics == {
        "name": "run/metrics",
        "uri": str(tmp_path / "artifacts/metrics"),
        "metadata": {"overall": 0.5},
    }


def test_a_stage_without_a_page_writes_none(tmp_path: Path) -> None:
    assert not (written(tmp_path, html=None) / "artifacts/report").exists()


def test_what_kfp_did_not_ask_for_is_not_written(tmp_path: Path) -> None:
    write_outputs({"outputs": {}}, parameters={"done": "x"}, metrics={"overall": 1.0}, html="x")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("s3://bucket/a/b", "/s3/bucket/a/b"),
        ("minio://bucket/a", "/minio/bucket/a"),
        ("gs://bucket/a", "/gcs/bucket/a"),
        ("/tmp/a", "/tmp/a"),
    ],
)
def test_an_artifact_is_written_where_the_launcher_mounts_it(uri: str, path: str) -> None:
    assert local_path(uri) == Path(path)


@pytest.mark.parametrize("text", ["", "{", "[]", '"a"'])
def test_an_executor_input_that_is_no_object_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--executor-input"):
        parse_executor_input(text)


@pytest.mark.parametrize(("iteration", "stop"), [(1, "false"), (2, "true")])
def test_the_last_evaluation_tells_kfp_to_stop(iteration: int, stop: str, finished: Path, tmp_path: Path) -> None:
    arguments = ["stage", "evaluation", "--root", str(finished), "--iteration", "1.0", "--offset", str(iteration - 1)]
    assert tdm_r1(*arguments, "--executor-input", json.dumps(message(tmp_path))) == 0
    manifest = json.loads((finished / f"iter-{iteration:05d}/evaluation/manifest.json").read_text())
    assert (tmp_path / "parameters/done").read_text() == manifest["digest"]
    assert (tmp_path / "parameters/stop").read_text() == stop
    page = (finished / f"iter-{iteration:05d}/evaluation/report.html").read_text()
    assert (tmp_path / "artifacts/report").read_text() == page
    told = json.loads((tmp_path / "deep/output_metadata.json").read_text())
    assert "overall" in told["artifacts"]["metrics"]["artifacts"][0]["metadata"]
