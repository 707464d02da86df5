"""Whole commands on object storage: the same digests as in a local directory, and what is refused how."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from tdm_r1.artifacts.repository import MANIFEST_NAME, require_manifest
from tdm_r1.artifacts.store import open_store
from tests.faults.preloaded import Starter
from tests.forked import all_but_the_last
from tests.s3 import KEY, SECRET, Server, free_ports
from tests.s3_proxy import proxy
from tests.support import plane_run, tdm_r1

pytestmark = pytest.mark.slow

Capture = pytest.CaptureFixture[str]


def digests(root: str) -> dict[str, str]:
    """The content digest of every record of a run."""
    store = open_store(root)
    locations = [key.rpartition("/")[0] for key in store.list("") if key.endswith(f"/{MANIFEST_NAME}")]
    return {location: require_manifest(store, location).digest for location in locations}


def on_s3(root: str, **overrides: int) -> list[str]:
    """Arguments that start the tiny run at an s3:// root; `Path` would eat a slash of it."""
    arguments = plane_run(Path("here"), **overrides)
    return [root if word == "here" else word for word in arguments]


@pytest.fixture(scope="module")
def expected(finished: Path) -> dict[str, str]:
    found = digests(str(finished))
    assert len(found) == 17
    return found


@pytest.mark.parametrize("isolate", [False, True], ids=["in process", "isolated"])
def test_a_run_on_s3_has_the_digests_of_the_local_run(
    isolate: bool,
    expected: dict[str, str],
    s3_server: Server,
    s3_root: str,
    starter: Starter,
    finished: Path,
    capsys: Capture,
) -> None:
    if isolate:
        assert tdm_r1("init", *on_s3(s3_root)[1:]) == 0
        all_but_the_last(s3_root, starter, **s3_server.environment)
        assert tdm_r1("run", "--root", s3_root, "--isolate") == 0
    else:
        assert tdm_r1(*on_s3(s3_root)) == 0
    assert digests(s3_root) == expected
    store = open_store(s3_root)
    for page in ("result.json", "report.html", "run.json"):
        assert store.read_bytes(page) == (finished / page).read_bytes()
    shown = capsys.readouterr()
    assert f"{s3_root}/result.json" in shown.out
    assert f"{s3_root}/report.html" in shown.out


def test_every_command_reads_a_run_on_s3(s3_root: str, finished: Path, tmp_path: Path, capsys: Capture) -> None:
    copy(finished, s3_root)
    assert tdm_r1("inspect", "--root", s3_root) == 0
    assert "17 of 17 records committed" in capsys.readouterr().out
    assert tdm_r1("report", "--root", s3_root, "--out", str(tmp_path / "page.html")) == 0
    assert (tmp_path / "page.html").read_bytes() == (finished / "report.html").read_bytes()
    assert tdm_r1("report", "--root", s3_root) == 0
    assert tdm_r1("sample", "--root", s3_root, "--prompt", "class 0", "--out", str(tmp_path / "there.png")) == 0
    rows = []
    for name, root in (("there", s3_root), ("here", str(finished))):
        out = tmp_path / f"{name}.json"
        assert tdm_r1("evaluate", "--root", root, "--prompts", "6", "--out", str(out)) == 0
        rows.append(json.loads(out.read_text())["rows"])
    assert rows[0] == rows[1]
    capsys.readouterr()
    assert tdm_r1("export", "--root", s3_root, "--out", str(tmp_path / "export")) == 2
    assert "is no diffusers pipeline" in capsys.readouterr().err  # read, and refused as a local run of the plane is


def copy(source: Path, root: str) -> None:
    """Upload a local run."""
    store = open_store(root)
    for path in sorted(path for path in source.rglob("*") if path.is_file()):
        assert store.put_file_if_absent(path, path.relative_to(source).as_posix())


def test_a_run_on_s3_is_resumed_where_it_was_left(
    expected: dict[str, str], s3_root: str, finished: Path, tmp_path: Path
) -> None:
    half = Path(shutil.copytree(finished, tmp_path / "half"))
    shutil.rmtree(half / "iter-00002")
    (half / "result.json").unlink()
    (half / "report.html").unlink()
    copy(half, s3_root)
    open_store(s3_root).write_bytes_if_absent("iter-00002/generator_update/state.safetensors", b"torn")
    assert tdm_r1("run", "--root", s3_root) == 0
    assert digests(s3_root) == expected


def test_a_stop_object_ends_the_run_between_iterations(s3_root: str, capsys: Capture) -> None:
    open_store(s3_root).write_bytes_if_absent("STOP", b"")
    assert tdm_r1(*on_s3(s3_root)) == 0
    assert set(digests(s3_root)) == {"prompts", "base", "iter-00000/evaluation"}


def in_own_process(environment: Mapping[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tdm_r1", *arguments]
    return subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, check=False, timeout=300
    )


Object = tuple[str, str, str, str]
"""Bucket, key, ETag, and time of its last change."""


def objects(server: Server) -> set[Object]:
    """All objects of the server as they are now."""
    client = server.client()
    return {
        (bucket["Name"], item["Key"], item["ETag"], item["LastModified"].isoformat())
        for bucket in client.list_buckets()["Buckets"]
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket["Name"])
        for item in page.get("Contents", [])
    }


def everything(server: Server, but: set[Object]) -> bytes:
    """Keys, metadata and content of all objects of the server, but for those that were there before as they are."""
    client, found = server.client(), b""
    for bucket, key, *_ in sorted(objects(server) - but):
        answer = client.get_object(Bucket=bucket, Key=key)
        found += f"{key} {answer['Metadata']}".encode() + answer["Body"].read()
    return found


def test_a_wrong_secret_is_refused_and_no_secret_is_shown(s3_server: Server, s3_root: str) -> None:
    wrong = "wrong/Secret+0123456789abcdefghijklmnopqr"
    attempts = [({"AWS_SECRET_ACCESS_KEY": wrong}, on_s3(s3_root))]
    attempts += [({"AWS_ACCESS_KEY_ID": "AKIANOBODYKNOWS00001"}, ["inspect", "--root", s3_root])]
    for change, arguments in attempts:
        done = in_own_process(change, *arguments)
        shown = done.stdout + done.stderr
        assert done.returncode == 2, shown
        assert "was denied" in shown
        assert "\n\nhint: check AWS_ACCESS_KEY_ID" in shown
        assert "Traceback" not in shown
        for secret in (KEY, SECRET, *change.values()):
            assert secret not in shown
    assert open_store(s3_root).list("") == []


def test_no_secret_is_stored_with_a_run(s3_server: Server, s3_root: str) -> None:
    before = objects(s3_server)
    done = in_own_process({}, *on_s3(s3_root, iterations=1))
    assert done.returncode == 0, done.stderr
    stored = everything(s3_server, before)
    assert b"manifest.json" in stored
    for secret in (KEY, SECRET):
        assert secret.encode() not in stored
        assert secret not in done.stdout + done.stderr


def test_a_password_in_the_root_or_the_endpoint_is_refused_and_not_repeated(s3_root: str) -> None:
    for change, root in (
        ({}, "s3://somebody:hunter2secret@runs/a"),
        ({"AWS_ENDPOINT_URL": "http://somebody:hunter2secret@127.0.0.1:1"}, s3_root),
    ):
        done = in_own_process(change, "inspect", "--root", root)
        assert done.returncode == 2
        assert "hint: " in done.stderr
        assert "hunter2secret" not in done.stdout + done.stderr


def test_without_credentials_a_root_on_s3_is_refused(s3_root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    done = in_own_process({}, "inspect", "--root", s3_root)
    assert done.returncode == 2
    assert "no credentials" in done.stderr


def test_a_bucket_that_is_not_there_is_refused(s3_root: str, capsys: Capture) -> None:
    for arguments in (on_s3("s3://nowhere/a"), ["inspect", "--root", "s3://nowhere/a"]):
        assert tdm_r1(*arguments) == 2
        assert "bucket" in capsys.readouterr().err


def test_an_endpoint_that_does_not_answer_is_temporary_and_given_up_in_time(s3_root: str) -> None:
    started = time.monotonic()
    nobody = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{free_ports(1)[0]}"}
    done = in_own_process(nobody, "stage", "encode_prompts", "--root", s3_root)
    assert done.returncode == 75, done.stderr
    assert "cannot be reached" in done.stderr
    assert "hint: run the same command again" in done.stderr
    assert time.monotonic() - started < 90  # six attempts with pauses of at most 31 s, and the start of Python


def test_a_server_that_only_fails_is_temporary(s3_server: Server, s3_root: str) -> None:
    with proxy(s3_server, failed=lambda _: True) as front:
        limited = {"AWS_ENDPOINT_URL": front.endpoint, "AWS_MAX_ATTEMPTS": "2"}
        done = in_own_process(limited, "stage", "encode_prompts", "--root", s3_root)
    assert done.returncode == 75, done.stderr
    assert "was answered with 503" in done.stderr


def test_a_bucket_that_ignores_conditions_is_refused_before_any_work(
    s3_server: Server, s3_root: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    with proxy(s3_server, unconditional=lambda _: True) as front:
        monkeypatch.setenv("AWS_ENDPOINT_URL", front.endpoint)
        assert tdm_r1(*on_s3(s3_root)) == 2
        error = capsys.readouterr().err
        assert "ignores `If-None-Match: *`" in error
        assert "\n\nhint: use a server with conditional writes" in error
        assert open_store(s3_root).list("") == []
