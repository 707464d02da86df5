"""Where numbers go: a port that Prometheus scrapes, and a Pushgateway. A fault of either is one line of warning."""

from __future__ import annotations

import time
import urllib.parse
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from prometheus_client import (
    CollectorRegistry,
    ProcessCollector,
    delete_from_gateway,
    push_to_gateway,
    pushadd_to_gateway,
    start_http_server,
)
from prometheus_client.exposition import basic_auth_handler, default_handler

from tdm_r1.telemetry.board import Board, Fixed, Sample

Say = Callable[[str], None]
"""Prints one line for people."""

STAGE_JOB: Final = "tdm-r1-stage"
RUN_JOB: Final = "tdm-r1-run"
TIMEOUT: Final = 10.0
"""Seconds that a push may take; a stage's end waits no longer for it."""


@dataclass(frozen=True)
class Outlets:
    """What was asked for; empty where nothing was."""

    port: str = ""
    """`9464`, or `127.0.0.1:9464`; 0 takes any free port."""
    pushgateway: str = ""
    """`http://host:9091`, perhaps with `user:password@`; it is never printed."""

    @property
    def any(self) -> bool:
        return bool(self.port or self.pushgateway)


@contextmanager
def serving(board: Board, port: str, say: Say) -> Iterator[None]:
    """Serve `/metrics` until the end of the block. Without a port, or with one that is taken, nothing is served."""
    front = _front(board, port, say) if port else None
    try:
        yield
    finally:
        if front is not None:
            server, thread = front
            server.shutdown()
            server.server_close()
            thread.join()


def _front(board: Board, port: str, say: Say) -> Any:
    host, _, number = port.rpartition(":")
    registry = CollectorRegistry()
    try:
        registry.register(board)
        ProcessCollector(registry=registry)
        server, thread = start_http_server(int(number), host or "0.0.0.0", registry)
    except (OSError, ValueError, OverflowError) as error:
        say(f"warning: no metrics on port {number[:20]!r}: {type(error).__name__}: {error}")
        return None
    say(f"metrics on http://{host or '0.0.0.0'}:{server.server_port}/metrics")
    return server, thread


@dataclass
class Pushgateway:
    """A Pushgateway. A group is what one push replaces: a job, and the labels run, stage and shard.

    A group never names an iteration or a pod, so that their number does not grow. After a failure nothing is sent
    for `pause` seconds, so that a gateway that is away does not slow a loop down.
    """

    url: str
    say: Say
    pause: float = 60.0
    _resume: float = 0.0

    def replace(self, job: str, group: Mapping[str, str], samples: Iterable[Sample]) -> bool:
        """Let these be all samples of a group; True when the gateway took them."""
        return self._tell(push_to_gateway, job, group, registry=_registry(samples))

    def add(self, job: str, group: Mapping[str, str], samples: Iterable[Sample]) -> bool:
        """Replace metrics of the same names in a group; the others stay."""
        return self._tell(pushadd_to_gateway, job, group, registry=_registry(samples))

    def forget(self, job: str, group: Mapping[str, str]) -> bool:
        """Delete a group."""
        return self._tell(delete_from_gateway, job, group)

    def _tell(self, call: Callable[..., None], job: str, group: Mapping[str, str], **more: Any) -> bool:
        if not self.url or time.monotonic() < self._resume:
            return False
        try:
            address, handler = without_credentials(self.url)
            call(address, job=job, grouping_key=dict(group), timeout=TIMEOUT, handler=handler, **more)
        except Exception as error:
            # an HTTPError's text is the server's, and a URL may hold a password: the class says enough
            self._resume = time.monotonic() + self.pause
            code = getattr(error, "code", "")
            self.say(f"warning: the Pushgateway was not told: {type(error).__name__} {code}".rstrip())
            return False
        return True


def _registry(samples: Iterable[Sample]) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(Fixed(samples))
    return registry


def without_credentials(url: str) -> tuple[str, Callable[..., Callable[[], None]]]:
    """The address without `user:password@`, and a handler that sends these as a header."""
    parts = urllib.parse.urlsplit(url if "://" in url else f"http://{url}")
    if not parts.username:
        return parts.geturl(), default_handler
    host = parts.netloc.rpartition("@")[2]
    user, password = (urllib.parse.unquote(text or "") for text in (parts.username, parts.password))
    return parts._replace(netloc=host).geturl(), partial(basic_auth_handler, username=user, password=password)


@contextmanager
def harmless(say: Say) -> Iterator[None]:
    """Whatever goes wrong inside is said and forgotten."""
    with suppress(Exception):
        try:
            yield
        except Exception as error:
            say(f"warning: some metrics are missing: {type(error).__name__}: {error}".splitlines()[0])
