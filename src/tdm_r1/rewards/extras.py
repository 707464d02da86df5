"""Libraries that only some scorers need: imported when a scorer is loaded, never when it is opened or listed."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from tdm_r1.errors import ScorerError


def need(module: str, *, extra: str) -> Any:
    """Import a library of an extra.

    Raises:
        ScorerError: when it is not installed, or cannot be imported.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise ScorerError(
            f"the library `{module}` cannot be imported: {error}",
            hint=f"pip install 'tdm-r1[{extra}]' where the run scores",
        ) from error


def versions(distributions: Iterable[str]) -> dict[str, str | None]:
    """What is installed, by name; None for what is not."""
    found: dict[str, str | None] = {}
    for name in distributions:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found
