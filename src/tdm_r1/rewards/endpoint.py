"""An OpenAI-compatible server as one function: a request in, the first choice out, or the reason why there is none.

What may pass is tried again, a bounded number of times: no connection, 408, 429, 502, 503, 504. A 500 is not: one
picture that makes a server stumble must not hold up a run.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Mapping
from typing import Any, Final

from tdm_r1.rewards.extras import need

PASSING: Final = frozenset({408, 429, 502, 503, 504})
LONGEST_WAIT: Final = 30.0
"""Seconds between two attempts, whatever `Retry-After` says."""
SHOWN: Final = 200
"""Characters of an answer in an error."""


class EndpointError(ValueError):
    """No usable answer."""


class Endpoint:
    """Chat completions of one server.

    Args:
        url: up to and without `/chat/completions`.
        key_variable: environment variable with the key; without it none is sent.
        timeout: seconds for one attempt.
        retries: further attempts after the first.
        connections: that are kept open.
    """

    def __init__(self, url: str, *, key_variable: str, timeout: float, retries: int, connections: int) -> None:
        urllib3 = need("urllib3", extra="preference")
        self._url = url.rstrip("/") + "/chat/completions"
        self._retries = retries
        self._headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if key := os.environ.get(key_variable):
            self._headers["Authorization"] = f"Bearer {key}"
        self._errors = urllib3.exceptions.HTTPError
        self._pool = urllib3.PoolManager(maxsize=connections, timeout=timeout, retries=False)

    def ask(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The first choice of the answer.

        Raises:
            EndpointError: with what was answered instead.
        """
        content = json.dumps(body).encode()
        for attempt in range(self._retries + 1):
            last = attempt == self._retries
            try:
                answer = self._pool.request("POST", self._url, body=content, headers=self._headers, redirect=False)
            except self._errors as error:
                if last:
                    raise EndpointError(f"no answer from {self._url} in {attempt + 1} attempts: {error}") from error
                time.sleep(_wait(attempt, None))
                continue
            if answer.status in PASSING and not last:
                time.sleep(_wait(attempt, answer.headers.get("Retry-After")))
                continue
            return _choice(answer.status, answer.data)
        raise AssertionError("the last attempt returns or raises")


def _wait(attempt: int, asked: str | None) -> float:
    """Seconds: what the server asked for, else twice as long each time, and a random part so that clients spread."""
    seconds = float(asked) if asked and asked.isdigit() else 0.5 * 2**attempt * random.uniform(0.5, 1.0)
    return min(LONGEST_WAIT, seconds)


def _choice(status: int, data: bytes) -> dict[str, Any]:
    text = data.decode(errors="replace")
    if status != 200:
        raise EndpointError(f"the endpoint answered {status}: {text[:SHOWN]!r}")
    try:
        choice = json.loads(text)["choices"][0]
        content = choice["message"]["content"]
    except (ValueError, LookupError, TypeError) as error:
        raise EndpointError(f"the endpoint's answer is no chat completion: {text[:SHOWN]!r}") from error
    if not isinstance(content, str):
        raise EndpointError(f"the endpoint's message is {content!r}, expected a text")
    found: dict[str, Any] = choice
    return found
