"""Claims about secrets: of a login that fails, or works, no key reaches an output, a file, a record or an object."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
import urllib.parse
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.e2e.test_s3_run import everything, objects
from tests.faults.preloaded import Starter
from tests.s3 import KEY, SECRET, Server
from tests.support import plane_run

WRONG = "wrong/Secret+0123456789abcdefghijklmnopqr"
TOKEN = "FwoGZXIvYXdzEJr+sessionTokenOfNobody=="
PASSWORD = "hunter2+secret/of:nobody"
HIDDEN = (SECRET, WRONG, TOKEN, PASSWORD)


def spellings(secret: str) -> set[bytes]:
    """A secret as it is, and as URLs, JSON and headers write it."""
    plain = {secret, urllib.parse.quote(secret), urllib.parse.quote(secret, safe=""), urllib.parse.quote_plus(secret)}
    escaped = {secret.replace("/", "\\/"), base64.b64encode(secret.encode()).decode().rstrip("=")}
    return {text.encode() for text in plain | escaped}


def leaks(data: bytes) -> list[str]:
    return [secret for secret in HIDDEN if any(text in data for text in spellings(secret))]


def own(home: Path) -> dict[str, str]:
    """A home and a scratch folder, and what makes the command line as talkative as it can be."""
    (home / "tmp").mkdir(parents=True, exist_ok=True)
    found = {"HOME": str(home), "TMPDIR": str(home / "tmp"), "AWS_MAX_ATTEMPTS": "1", "PYTHONFAULTHANDLER": "1"}
    return found | {"BOTO_CONFIG": os.devnull, "PYTHONDEVMODE": "0", "OMP_NUM_THREADS": "1"}


def command(home: Path, environment: Mapping[str, str], *arguments: str) -> tuple[int, bytes]:
    """Exit code and output of the real command line in a home of its own."""
    program, full = [sys.executable, "-m", "tdm_r1", *arguments], {**os.environ, **environment, **own(home)}
    done = subprocess.run(program, env=full, cwd=home, capture_output=True, check=False, timeout=300)
    return done.returncode, done.stdout + done.stderr


def forked(starter: Starter, home: Path, environment: Mapping[str, str], *arguments: str) -> tuple[int, bytes]:
    """The same by a process that has PyTorch loaded when it begins."""
    program = starter.start(*arguments, folder=str(home), **{**environment, **own(home)})
    return program.wait(), program.output.read_bytes()


def files_of(*folders: Path) -> bytes:
    found = [path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()]
    return b"".join(str(path).encode() + path.read_bytes() for path in found)


def reading(root: str, home: Path) -> list[list[str]]:
    """Every kind of command that opens a root."""
    return [
        ["init", "--root", root, "--preset", "plane"],
        ["stage", "rollout", "--root", root, "--iteration", "1"],
        ["audit", "--root", root, "--json"],
        ["query", "--root", root, "SELECT 1"],
        ["lineage", "--root", root, "--openlineage", str(home / "events.ndjson")],
        ["report", "--root", root, "--out", str(home / "report.html")],
    ]


FAILING: Mapping[str, Mapping[str, str]] = {
    "wrong secret": {"AWS_SECRET_ACCESS_KEY": WRONG},
    "wrong session token": {"AWS_SECRET_ACCESS_KEY": WRONG, "AWS_SESSION_TOKEN": TOKEN},
    "password in the endpoint": {"AWS_ENDPOINT_URL": f"http://somebody:{PASSWORD}@127.0.0.1:1"},
    "password in the endpoint of s3": {
        "AWS_ENDPOINT_URL_S3": f"http://somebody:{urllib.parse.quote(PASSWORD, safe='')}@127.0.0.1:1"
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAILING)
def test_a_login_that_fails_shows_and_stores_no_secret(
    fault: str, starter: Starter, s3_server: Server, s3_root: str, tmp_path: Path
) -> None:
    before, commands = objects(s3_server), reading(s3_root, tmp_path)
    for arguments in commands[:3] if fault == "wrong secret" else commands[:1]:
        if arguments == commands[0]:
            code, shown = command(tmp_path, FAILING[fault], *arguments)
        else:
            code, shown = forked(starter, tmp_path, {**s3_server.environment, **FAILING[fault]}, *arguments)
        assert code == 2, shown
        assert b"hint: " in shown
        assert b"Traceback" not in shown
        assert leaks(shown) == [], arguments
    assert leaks(files_of(tmp_path)) == []
    assert leaks(everything(s3_server, before)) == []


@pytest.mark.slow
def test_a_password_in_the_root_is_not_repeated(tmp_path: Path) -> None:
    for root in (f"s3://somebody:{PASSWORD}@runs/a", f"http://somebody:{PASSWORD}@host/runs"):
        code, shown = command(tmp_path, {}, "audit", "--root", root)
        assert code == 2, shown
        assert leaks(shown) == []


@pytest.mark.slow
def test_a_run_that_works_stores_and_shows_no_secret(
    starter: Starter, s3_server: Server, s3_root: str, tmp_path: Path
) -> None:
    """Manifests, tables, metrics, reports, OpenLineage events and pictures of a whole run."""
    before = objects(s3_server)
    start = [s3_root if word == "ROOT" else word for word in plane_run(Path("ROOT"), iterations=1)]
    picture = ["sample", "--root", s3_root, "--prompt", "class 1", "--out", str(tmp_path / "a.png")]
    shown = [command(tmp_path, {}, *start)]
    for words in (*reading(s3_root, tmp_path)[3:], picture, ["lineage", str(tmp_path / "a.png")]):
        shown.append(forked(starter, tmp_path, s3_server.environment, *words))
    for code, text in shown:
        assert code == 0, text
        assert leaks(text) == []
        assert KEY.encode() not in text
    stored = everything(s3_server, before) + files_of(tmp_path)
    assert all(word in stored for word in (b"manifest.json", b"events.ndjson", b"report.html", b"a.png"))
    assert leaks(stored) == []
    assert KEY.encode() not in stored


def test_a_secret_in_any_spelling_would_be_found() -> None:
    for secret in HIDDEN:
        for text in spellings(secret):
            assert leaks(b"before" + text + b"after") == [secret]
