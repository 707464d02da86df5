"""A model hub on the loopback that speaks as much of the hub's protocol as fetching a snapshot takes."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

FILE = re.compile(r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<commit>[^/]+)/(?P<path>.+)")
INFO = re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)(/revision|/tree)/(?P<commit>[^/?]+)")


@dataclass
class Hub:
    """One repository at one commit, and what was asked of it."""

    folder: Path
    repo: str
    commit: str
    gated: str = "acme/gated"
    """Another repository, whose licence must be accepted."""
    endpoint: str = ""
    fetched: list[str] = field(default_factory=list)

    def files(self) -> list[Path]:
        return sorted(path for path in self.folder.rglob("*") if path.is_file())


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """Serve until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, *, body: bool) -> None:
            if match := INFO.match(self.path):
                self._info(match, body=body)
            elif match := FILE.match(self.path):
                self._file(match, body=body)
            else:
                self._send(404, b"", body=body)

        def _known(self, match: re.Match[str]) -> bool:
            if match["repo"] not in (hub.repo, hub.gated) or match["commit"] != hub.commit:
                missing = "RevisionNotFound" if match["repo"] == hub.repo else "RepoNotFound"
                self._send(404, b"", body=True, **{"X-Error-Code": missing})
                return False
            return True

        def _info(self, match: re.Match[str], *, body: bool) -> None:
            if not self._known(match):
                return
            names = [path.relative_to(hub.folder).as_posix() for path in hub.files()]
            tree = [
                {"type": "file", "path": n, "size": (hub.folder / n).stat().st_size, "oid": "0" * 40} for n in names
            ]
            info = {"id": hub.repo, "sha": hub.commit, "siblings": [{"rfilename": name} for name in names]}
            answer = tree if "/tree/" in self.path else info
            self._send(200, json.dumps(answer).encode(), body=body, **{"Content-Type": "application/json"})

        def _file(self, match: re.Match[str], *, body: bool) -> None:
            if not self._known(match):
                return
            if match["repo"] == hub.gated:
                self._send(403, b"", body=body, **{"X-Error-Code": "GatedRepo"})
                return
            content = (hub.folder / match["path"]).read_bytes()
            if body:
                hub.fetched.append(match["path"])
            etag = hashlib.sha1(content, usedforsecurity=False).hexdigest()
            self._send(200, content, body=body, **{"X-Repo-Commit": hub.commit, "ETag": f'"{etag}"'})

        def _send(self, status: int, content: bytes, *, body: bool, **headers: str) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if body:
                self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
