"""A webhook: one small JSON POST per event, repeated a few times, and never a reason to stop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import urllib3
from urllib3.util import Retry

Say = Callable[[str], None]


@dataclass(frozen=True)
class Webhook:
    """Where events go; without a URL nothing is sent. The URL may be a secret and is never printed."""

    url: str | None
    say: Say
    timeout: float = 5.0
    attempts: int = 3
    pause: float = 0.5

    def send(self, event: str, text: str, **fields: Any) -> None:
        """POST `{"event": …, "text": …, …}`; chat services show `text`."""
        if not self.url:
            return
        retries = Retry(
            self.attempts - 1,
            redirect=0,
            allowed_methods=None,
            status_forcelist={429, 500, 502, 503, 504},
            backoff_factor=self.pause,
            respect_retry_after_header=False,
            raise_on_redirect=False,
        )
        try:
            body = {"event": event, "text": text, **fields}
            answer = urllib3.request("POST", self.url, json=body, retries=retries, timeout=self.timeout)
        except (urllib3.exceptions.HTTPError, ValueError) as error:
            self.say(f"the webhook was not told of `{event}`: {type(error).__name__}")
            return
        if answer.status >= 300:
            self.say(f"the webhook was not told of `{event}`: it answers {answer.status}")
