"""A proxy on the loopback in front of a real S3 server, for the ways in which servers and networks misbehave."""

from __future__ import annotations

import http.client
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final, Literal
from urllib.parse import urlsplit

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from tests.s3 import KEY, SECRET, Server


@dataclass(frozen=True)
class Request:
    """What the proxy's rules see."""

    method: str
    path: str
    conditional: bool


Rule = Callable[[Request], bool]
Fault = Literal["500", "503", "slow", "cut request", "lost answer", "cut answer"]
"""How a server or the network may fail: the last two after the request was executed."""
SLOW_SECONDS: Final = 0.3


def never(request: Request) -> bool:
    return False


def no_fault(request: Request) -> Fault | None:
    return None


Happening = Callable[[Request], Fault | bool | None]


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What happens to which request."""

    unconditional: Rule
    lost: Rule
    failed: Rule
    fault: Happening


class Front(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, server: Server, rules: Rules) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.behind, self.rules = server, rules

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that hang up or die."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Front

    def forward(self) -> None:
        rules, request = self.server.rules, Request(self.command, self.path, "If-None-Match" in self.headers)
        size, happens = int(self.headers.get("Content-Length") or 0), rules.fault(request)
        if happens == "cut request":
            self.rfile.read(size // 2)
            self.hang_up()
            return
        body = self.rfile.read(size)
        if happens in ("500", "503") or rules.failed(request):
            code = "InternalError" if happens == "500" else "SlowDown"
            self.reply(500 if happens == "500" else 503, {}, f"<Error><Code>{code}</Code></Error>".encode())
            return
        if happens == "slow":
            time.sleep(SLOW_SECONDS)
        answer = execute(self.server.behind, self, body, rules.unconditional(request))
        if happens == "lost answer" or rules.lost(request):
            self.hang_up()
        else:
            self.reply(*answer, cut=happens == "cut answer")

    def hang_up(self) -> None:
        self.close_connection = True
        with suppress(OSError):  # the client may be dead
            self.connection.shutdown(socket.SHUT_RDWR)

    def reply(self, status: int, headers: dict[str, str], body: bytes, *, cut: bool = False) -> None:
        self.send_response(status)
        for name, value in headers.items():
            if name.lower() not in ("content-length", "transfer-encoding", "connection", "date", "server"):
                self.send_header(name, value)
        size = headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(body))
        self.send_header("Content-Length", size)
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if cut else body)
        if cut:
            self.hang_up()

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = forward  # noqa: N815

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@contextmanager
def proxy(
    server: Server,
    *,
    unconditional: Rule = never,
    lost: Rule = never,
    failed: Rule = never,
    fault: Happening = no_fault,
) -> Iterator[Server]:
    """Forward requests, signed again because some change on the way.

    Args:
        unconditional: which lose their `If-None-Match`.
        lost: which are executed, and their answer is cut off.
        failed: which are answered with 503 and not forwarded.
        fault: what happens to each beside.
    """
    with Front(server, Rules(unconditional=unconditional, lost=lost, failed=failed, fault=fault)) as front:
        thread = threading.Thread(target=front.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield replace(server, endpoint=f"http://127.0.0.1:{front.server_address[1]}")
        finally:
            front.shutdown()
            thread.join()


def execute(
    server: Server, handler: BaseHTTPRequestHandler, body: bytes, unconditional: bool
) -> tuple[int, dict[str, str], bytes]:
    """Send one request to the real server."""
    own = {"host", "authorization", "x-amz-date", "x-amz-content-sha256", "connection", "expect", "content-length"}
    headers = {k: v for k, v in handler.headers.items() if k.lower() not in own}
    if unconditional:
        headers = {k: v for k, v in headers.items() if k.lower() != "if-none-match"}
    signed = AWSRequest(handler.command, server.endpoint + handler.path, headers, body)
    S3SigV4Auth(Credentials(KEY, SECRET), "s3", "us-east-1").add_auth(signed)
    connection = http.client.HTTPConnection(urlsplit(server.endpoint).netloc, timeout=60)
    try:
        connection.request(handler.command, handler.path, body, dict(signed.headers.items()))
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()
    finally:
        connection.close()
