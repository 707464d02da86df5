"""JSON over HTTP to a server that may be slow, down, behind a login page, or not what it was taken for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode, urlsplit

import urllib3
from urllib3.util import Retry

from tdm_r1.console import printable
from tdm_r1.errors import ConfigError, TemporaryError

PASSING: Final = frozenset({408, 429, 500, 502, 503, 504})
"""Statuses that may pass by themselves."""
LONGEST_ANSWER: Final = 64 << 20
"""Bytes; a KFP run with thousands of tasks has a few megabytes."""


class SchedulerDownError(TemporaryError):
    """The scheduler's server did not answer, or not as itself; a POST may or may not have been executed."""


class NotThereError(ConfigError):
    """The server answers, and does not have what was asked for."""


class TakenError(ConfigError):
    """The server already has an object of that name."""


@dataclass(frozen=True, kw_only=True)
class Api:
    """One server.

    Reads are repeated after a fault. A POST is repeated only while no connection could be made: afterwards nobody
    knows whether it was executed, and the caller has to look.
    """

    endpoint: str
    what: str
    """What should answer there, for messages."""
    hint: str
    """What to do when something else does."""
    token_file: Path | None = None
    """Read before each request, because clusters replace it; None sends no token."""
    ca_file: Path | None = None
    """Certificates of a private authority; None trusts the system's."""
    timeout: float = 30.0
    """Seconds, for connecting and for each read."""
    attempts: int = 4
    pause: float = 0.5
    """Seconds before the second attempt; doubled each time."""

    def get(self, path: str, query: Mapping[str, str] | None = None) -> Any:
        """Body of the answer, parsed.

        Raises:
            NotThereError: for 404.
            ConfigError: for any other refusal, a login page, and what is not JSON.
            SchedulerDownError: when all attempts failed.
        """
        retries = Retry(
            self.attempts - 1,
            redirect=0,
            status_forcelist=PASSING,
            backoff_factor=self.pause,
            backoff_max=16,
            respect_retry_after_header=False,
            raise_on_redirect=False,
            raise_on_status=False,
        )
        return self._asked("GET", f"{path}?{urlencode(query)}" if query else path, None, retries)

    def post(self, path: str, body: Mapping[str, Any] | None = None, method: str = "POST") -> Any:
        """Body of the answer, parsed; raises as `get` does."""
        retries = Retry(None, connect=self.attempts - 1, read=0, redirect=0, status=0, other=0, raise_on_redirect=False)
        return self._asked(method, path, json.dumps(body or {}).encode(), retries)

    def _asked(self, method: str, path: str, body: bytes | None, retries: Retry) -> Any:
        headers = {"Accept": "application/json", **({"Content-Type": "application/json"} if body is not None else {})}
        if self.token_file is not None:
            headers["Authorization"] = f"Bearer {read_token(self.token_file)}"
        try:
            answer = self._pool().request(
                method, self._url(path), body=body, headers=headers, retries=retries, preload_content=False
            )
            data = answer.read(LONGEST_ANSWER)
            answer.release_conn()
        except urllib3.exceptions.HTTPError as error:
            raise self._unreachable(error) from error
        return self._parsed(answer, data, path)

    def _url(self, path: str) -> str:
        return self.endpoint.rstrip("/") + path

    def _pool(self) -> urllib3.PoolManager:
        authority = str(self.ca_file) if self.ca_file else None
        return urllib3.PoolManager(timeout=urllib3.Timeout(self.timeout), ca_certs=authority)

    def _unreachable(self, error: urllib3.exceptions.HTTPError) -> ConfigError | SchedulerDownError:
        reason = getattr(error, "reason", None) or error
        if isinstance(reason, urllib3.exceptions.SSLError) and "CERTIFICATE" in str(reason).upper():
            return ConfigError(
                f"the certificate of {self.endpoint} is not trusted",
                hint="name the file of its authority with --ca-file",
            )
        return SchedulerDownError(
            f"{self.what} at {self.endpoint} cannot be reached: {type(reason).__name__}", hint=self.hint
        )

    def _parsed(self, answer: urllib3.BaseHTTPResponse, data: bytes, path: str) -> Any:
        status, kind = answer.status, answer.headers.get("Content-Type", "").partition(";")[0].strip()
        if status in PASSING:
            raise SchedulerDownError(
                f"{self.what} at {self.endpoint} answered {path.partition('?')[0]} with {status}: {said(data)}",
                hint=self.hint,
            )
        if 300 <= status < 400 or kind == "text/html":
            found = (
                f"redirects to {shown(answer.headers.get('Location', ''))}" if 300 <= status < 400 else "answers HTML"
            )
            raise ConfigError(
                f"{self.endpoint} {found}, not {self.what}: it looks like a page to log in", hint=self.hint
            )
        if status in (401, 403):
            raise ConfigError(
                f"{self.what} at {self.endpoint} refused access with {status}: {said(data)}",
                hint="give a token with --token-file, and its account the right to do this in this namespace",
            )
        try:
            body = json.loads(data) if data.strip() else {}
        except ValueError as error:
            raise ConfigError(
                f"{self.endpoint} answers {status} with {kind or 'no type'} that is not JSON, not as {self.what}",
                hint=self.hint,
            ) from error
        if status >= 400:
            kinds = {404: NotThereError, 409: TakenError}
            raise kinds.get(status, ConfigError)(
                f"{self.what} at {self.endpoint} refused {path.partition('?')[0]} with {status}: {said(data)}",
                hint="correct what the message names",
            )
        return body


def require_endpoint(endpoint: str) -> str:
    """Return an address that can be used as one, or refuse.

    Raises:
        ConfigError: for anything but http(s)://host, and for an address with a password in it.
    """
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
        raise ConfigError(
            "--endpoint is no address of a server",
            hint="write http://host:port without a user name; a token goes into a file named by --token-file",
        )
    return endpoint


def read_token(path: Path) -> str:
    """The token that stands in a file now."""
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ConfigError(
            f"the token file `{path}` cannot be read: {error.strerror}", hint="see --token-file"
        ) from error


def said(data: bytes) -> str:
    """A server's message, short and without control characters."""
    try:
        body = json.loads(data)
        text = str(body.get("message") or body.get("error") or body) if isinstance(body, dict) else str(body)
    except ValueError:
        text = data[:300].decode(errors="replace")
    return printable(" ".join(text.split()))[:300]


def shown(url: str) -> str:
    """An address without its query, which may hold secrets."""
    return printable(url.partition("?")[0])[:200]
