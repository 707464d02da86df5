"""JSON lines that other programs wrote."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tdm_r1.errors import ConfigError


def json_lines(text: str, path: Path) -> Iterator[tuple[int, Any]]:
    """Each line's number, from 1, and value; blank lines are left out.

    A line ends with a line feed only: JSON strings may hold the other separators of Unicode.

    Raises:
        ConfigError: naming the line that is no JSON.
    """
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except ValueError as error:
                raise ConfigError(f"line {number} of `{path}` is no JSON: {error}") from error
