"""A seal: the SHA-256 over a JSON object, carried by the object itself, so that a reader notices any change of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from tdm_r1.errors import CorruptArtifactError


def canonical_json(value: Mapping[str, Any]) -> bytes:
    """Return JSON with sorted keys and no spaces, in UTF-8; NaN is refused."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def parse_object(data: bytes) -> dict[str, Any]:
    """Parse a JSON object whose numbers are written as Python writes them: `1E-05` for `1e-05` is a changed bit.

    Raises:
        ValueError: for anything else.
    """
    body = json.loads(data, parse_float=_exact)
    if not isinstance(body, dict):
        raise ValueError("a JSON object is expected")
    return body


def _exact(text: str) -> float:
    number = float(text)
    if repr(number) != text:
        raise ValueError(f"the number {text:.40} is written {number!r}")
    return number


def seal_of(body: Mapping[str, Any]) -> str:
    """Return the SHA-256 over the canonical JSON of a whole object, without its seal."""
    return hashlib.sha256(canonical_json({key: body[key] for key in body if key != "seal"})).hexdigest()


def take_seal(body: dict[str, Any], what: str) -> None:
    """Take the seal off a parsed JSON object; one that is absent is that of an earlier version.

    Args:
        what: the object, for the message.

    Raises:
        CorruptArtifactError: when the seal does not fit.
    """
    try:
        sealed, expected = body.pop("seal", None), seal_of(body)
    except (ValueError, RecursionError) as error:  # NaN, or half of a surrogate pair
        raise CorruptArtifactError(f"the {what} is not canonical JSON: {error}") from error
    if sealed not in (None, expected):
        raise CorruptArtifactError(f"the {what} says its seal is {sealed!r:.80} but it hashes to {expected}")
