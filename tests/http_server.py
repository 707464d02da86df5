"""A JSON server on the loopback whose faults a test chooses; `kfp_server.py` and `argo_server.py` speak through it."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    query: dict[str, str]
    body: Any
    headers: dict[str, str]


@dataclass(frozen=True)
class Answer:
    body: Any
    status: int = 200
    kind: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)


class Refused(Exception):  # noqa: N818 - an answer, not an error of ours
    """What a handler raises to answer with a status and google.rpc.Status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.answer = Answer({"code": 5 if status == 404 else 3, "message": message, "details": []}, status)


Handle = Callable[[Request], Any]
Fault = Callable[[Request], str | Answer | None]
"""`"lost"` executes the request and cuts the answer off; an `Answer` is sent instead of executing."""


@contextmanager
def serving(handle: Handle, fault: Callable[[], Fault | None] = lambda: None) -> Iterator[str]:
    """Serve until the end of the block; yields the address."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            parts = urlsplit(self.path)
            body = json.loads(data) if data else None
            request = Request(self.command, parts.path, dict(parse_qsl(parts.query)), body, dict(self.headers.items()))
            wrong = (fault() or (lambda _: None))(request)
            if isinstance(wrong, Answer):
                self.reply(wrong)
                return
            try:
                found = handle(request)
            except Refused as refused:
                found = refused.answer
            if wrong == "lost":
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
            else:
                self.reply(found if isinstance(found, Answer) else Answer(found))

        def reply(self, answer: Answer) -> None:
            data = answer.body.encode() if isinstance(answer.body, str) else json.dumps(answer.body).encode()
            self.send_response(answer.status)
            for name, value in {"Content-Type": answer.kind, "Content-Length": len(data), **answer.headers}.items():
                self.send_header(name, str(value))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PUT = do_DELETE = handle_any  # noqa: N815

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

        def handle(self) -> None:
            try:
                super().handle()
            except (ConnectionError, TimeoutError):
                """The driver was killed."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True

    with Server(("127.0.0.1", 0), Handler) as front:
        thread = threading.Thread(target=front.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{front.server_address[1]}"
        finally:
            front.shutdown()
            thread.join()
