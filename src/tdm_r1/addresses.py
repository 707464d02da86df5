"""Addresses in a configuration: what everybody who can read a run can read holds no credentials."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit

from tdm_r1.errors import ConfigError

ADDRESS: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://\S+")
SECRET: Final = re.compile(r"token|key|secret|passw|pwd|signature|credential|auth|^sig$", re.IGNORECASE)
"""Names of parameters that hold something nobody should read."""


def require_no_credentials(value: Any, label: str) -> None:
    """Refuse an address with a password or a token in it, anywhere in a JSON value. The value itself is never shown.

    Raises:
        ConfigError: naming where it stands, with where a key belongs.
    """
    for text in _texts(value):
        for address in ADDRESS.findall(text):
            if found := _secret(address):
                raise ConfigError(
                    f"an address in {label} has {found}: run.json and errors would show it to everybody",
                    hint="write the address without it, and put the key into the environment variable that the option "
                    "`key_variable` names, TDM_R1_JUDGE_KEY by default",
                )


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)


def _secret(address: str) -> str | None:
    """What kind of credential an address holds."""
    try:
        parts = urlsplit(address)
    except ValueError:
        return None
    if "@" in parts.netloc:
        return "a user name or a password before `@`"
    pairs = [*parse_qsl(parts.query), *parse_qsl(parts.fragment)]
    return next((f"a value for `{name[:40]}`" for name, _ in pairs if SECRET.search(name)), None)
