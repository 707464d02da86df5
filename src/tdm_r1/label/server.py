"""The page's server: HTTP of the standard library, for a few people on a machine that they can reach.

Every address begins with a secret of 192 bits, one for each rater: who votes is known, and nobody else reads or votes.
Names that are not this machine's are refused, whatever address they point to, and so are other sites' requests.
"""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final
from urllib.parse import parse_qs, unquote, urlsplit

from tdm_r1.errors import ConfigError, TdmR1Error
from tdm_r1.label.pictures import Pictures
from tdm_r1.label.session import ASSETS, Session, asset
from tdm_r1.runtime.ballots import Box
from tdm_r1.runtime.feedback_votes import Election

MOST_BODY: Final = 4096
"""Bytes of a vote."""
LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})
"""Names under which any port is fine: a tunnel may end on another one."""
PATIENCE: Final = 30.0
"""Seconds that a connection may be silent."""
HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self' data:; script-src 'self'; style-src 'self';"
    " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class LabelServer(ThreadingHTTPServer):
    """Serves the page to each of some raters."""

    daemon_threads = True

    def __init__(
        self, address: tuple[str, int], sessions: Mapping[str, Session], pictures: Pictures, allowed: Collection[str]
    ) -> None:
        self.sessions = sessions
        self.pictures = pictures
        self.allowed = frozenset(name.lower() for name in allowed)
        super().__init__(address, Handler)

    def addresses(self) -> dict[str, str]:
        """The address of the page by rater."""
        host, port = self.server_address[:2]
        shown = next((name for name in self.allowed if ":" in name), f"{host!s}:{port}")
        return {session.box.rater: f"http://{shown}/{secret}/" for secret, session in self.sessions.items()}

    def knows(self, host: str) -> bool:
        """Whether a browser that says it came to `host` meant this server."""
        name = (urlsplit(f"//{host}").hostname or "").lower()
        return name in LOOPBACK or name in self.allowed or host.lower() in self.allowed


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: LabelServer
    protocol_version = "HTTP/1.1"
    server_version = "tdm-r1"
    sys_version = ""
    timeout = PATIENCE

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: an address holds a secret."""

    def do_GET(self) -> None:
        """A file of the page, what it shows, or a picture."""
        with self._answering():
            session, rest, query = self._session()
            if rest in ASSETS:
                self._send(asset(rest), ASSETS[rest])
            elif rest == "groups.json":
                self._send_json(session.shown())
            elif rest.startswith("images/") and (name := rest.removeprefix("images/")) in self.server.pictures.samples:
                thumbnail = "full" not in query
                picture = self.server.pictures.encoded(name, thumbnail=thumbnail)
                self._send(picture, "image/png", cache="private, max-age=86400, immutable")
            else:
                raise _RefusedError(HTTPStatus.NOT_FOUND, "there is nothing here")

    def do_POST(self) -> None:
        """A vote."""
        with self._answering():
            session, rest, _ = self._session()
            if rest != "votes":
                raise _RefusedError(HTTPStatus.NOT_FOUND, "votes are posted to `votes`")
            if self.headers.get_content_type() != "application/json":
                raise _RefusedError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "a vote is application/json")
            size = self.headers.get("Content-Length", "")
            if not size.isascii() or not size.isdecimal() or int(size) > MOST_BODY:
                raise _RefusedError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a vote has at most {MOST_BODY} bytes")
            self._send_json(session.take(self.rfile.read(int(size))))

    def _session(self) -> tuple[Session, str, Mapping[str, Sequence[str]]]:
        """Who asks for what.

        Raises:
            _RefusedError: for another host, another site, or a wrong secret.
        """
        hosts = self.headers.get_all("Host", [])
        if len(hosts) != 1 or not self.server.knows(hosts[0]):
            raise _RefusedError(HTTPStatus.MISDIRECTED_REQUEST, "this server has another name; see --allow-host")
        if self._foreign(hosts[0]):
            raise _RefusedError(HTTPStatus.FORBIDDEN, "another site asks")
        parts = urlsplit(self.path)
        _, secret, rest = (*parts.path.split("/", 2), "", "")[:3]
        for known, session in self.server.sessions.items():
            if secrets.compare_digest(known.encode(), secret.encode()):
                return session, unquote(rest), parse_qs(parts.query, keep_blank_values=True)
        raise _RefusedError(HTTPStatus.FORBIDDEN, "this address is not known: use all of what `tdm-r1 label` printed")

    def _foreign(self, host: str) -> bool:
        """Whether a page of another site asks; one that a person comes from by a link may be any."""
        origin, site = self.headers.get("Origin"), self.headers.get("Sec-Fetch-Site", "none")
        followed = self.command == "GET" and self.headers.get("Sec-Fetch-Mode") == "navigate"
        elsewhere = origin is not None and origin.lower() != f"http://{host}".lower()
        return elsewhere or (site not in ("same-origin", "none") and not followed)

    @contextmanager
    def _answering(self) -> Iterator[None]:
        """Answer an error as JSON; one of ours is the reader's to act on, any other is a fault of the server."""
        try:
            yield
        except _RefusedError as refused:
            self.close_connection = True
            self._send_json({"error": str(refused)}, refused.status)
        except TdmR1Error as error:
            refusal = HTTPStatus.BAD_REQUEST if isinstance(error, ConfigError) else HTTPStatus.CONFLICT
            self._send_json({"error": error.message, "hint": error.hint}, refusal)
        except (ConnectionError, TimeoutError):
            self.close_connection = True
        except Exception as error:
            self.close_connection = True
            self._send_json({"error": f"not stored: {type(error).__name__}"}, HTTPStatus.INTERNAL_SERVER_ERROR)
            raise

    def _send_json(self, content: Mapping[str, Any], status: HTTPStatus = HTTPStatus.OK) -> None:
        self._send(json.dumps(content).encode(), "application/json", status)

    def _send(self, body: bytes, kind: str, status: HTTPStatus = HTTPStatus.OK, cache: str = "no-store") -> None:
        self.send_response(status)
        for name, value in {**HEADERS, "Content-Type": kind, "Cache-Control": cache}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)


class _RefusedError(Exception):
    def __init__(self, status: HTTPStatus, reason: str) -> None:
        super().__init__(reason)
        self.status = status


@contextmanager
def opened(
    election: Election, raters: Sequence[str], *, host: str = "127.0.0.1", port: int = 0, allowed: Collection[str] = ()
) -> Iterator[LabelServer]:
    """A server that is ready, and answers in threads of its own until the block ends.

    Raises:
        ConfigError: for a name that is no rater's, or an address that cannot be listened on.
        ArtifactError: when the votes are committed already.
    """
    election.require_open()
    election.run.store.require_writable()
    boxes = [Box(election.run.store, election.folder, rater) for rater in dict.fromkeys(raters)]
    pictures = Pictures(election.run.store, [task.location for task in election.rollouts])
    sessions = {secrets.token_urlsafe(24): Session(election, pictures, box) for box in boxes}
    try:
        server = LabelServer((host, port), sessions, pictures, allowed)
    except OSError as error:
        raise ConfigError(f"cannot listen on {host} port {port}: {error}", hint="choose another --port") from error
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        pictures.close()


def serve(
    election: Election,
    raters: Sequence[str],
    *,
    host: str,
    port: int,
    allowed: Collection[str],
    say: Callable[[str], None],
) -> None:
    """Serve until interrupted."""
    with opened(election, raters, host=host, port=port, allowed=allowed) as server:
        samples = len(server.pictures.samples)
        say(f"iteration {election.iteration}: {samples} images; votes go to {election.run.root}/{election.folder}")
        for rater, address in server.addresses().items():
            say(f"{rater}: {address}")
        say(f"Ctrl-C ends this, and loses nothing; then `tdm-r1 stage feedback {election.arguments}` commits the votes")
        with suppress(KeyboardInterrupt):
            threading.Event().wait()
