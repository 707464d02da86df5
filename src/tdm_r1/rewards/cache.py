"""Scores by the content of what was asked: the same picture, prompt, metadata and scorer are never paid for twice.

The cache is one SQLite file in the folder that `TDM_R1_SCORE_CACHE` names; without the variable there is none. It
never changes a result, so it is no part of a run's configuration. Errors are not kept.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from tdm_r1.errors import ConfigError
from tdm_r1.rewards.ask import Question
from tdm_r1.rewards.protocol import Score, ScorerInfo

VARIABLE: Final = "TDM_R1_SCORE_CACHE"
_AT_ONCE: Final = 500


def key_of(question: Question, info: ScorerInfo) -> str | None:
    """SHA-256 of all that the score depends on; None for what is no picture, or a scorer that names no revision."""
    picture = question.picture
    if not info.revision:  # its code may be another one tomorrow
        return None
    if isinstance(picture, np.ndarray):
        head, pixels = f"{picture.dtype}{picture.shape}", np.ascontiguousarray(picture).tobytes()
    elif isinstance(picture, bytes):
        head, pixels = "file", picture
    else:
        return None
    prompt = question.prompt if "prompt" in info.needs else None
    metadata = question.metadata if {"metadata", "feedback"} & set(info.needs) else None
    asked = json.dumps([info.name, info.revision, head, prompt, metadata], sort_keys=True)
    return hashlib.sha256(asked.encode() + b"\0" + pixels).hexdigest()


class ScoreCache:
    """A table of scores. One that fails while a stage runs is left alone: it may not cost a score."""

    def __init__(self, folder: Path) -> None:
        self.fault: str | None = None
        """Why nothing more is stored."""
        self._path = folder / "scores.sqlite"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._base = sqlite3.connect(self._path, timeout=30, isolation_level=None)
            self._base.execute("CREATE TABLE IF NOT EXISTS scores (key TEXT PRIMARY KEY, score TEXT) WITHOUT ROWID")
        except (OSError, sqlite3.Error) as error:
            raise ConfigError(
                f"the score cache `{self._path}` cannot be opened: {error}", hint=f"delete it, or unset {VARIABLE}"
            ) from error

    def get(self, keys: Sequence[str | None]) -> list[Score | None]:
        """The known scores, in the order of the keys."""
        wanted = sorted({key for key in keys if key is not None})
        found: dict[str, Score] = {}
        for start in range(0, len(wanted), _AT_ONCE):
            part = wanted[start : start + _AT_ONCE]
            marks = ",".join("?" * len(part))
            rows = self._execute(f"SELECT key, score FROM scores WHERE key IN ({marks})", part)
            found |= {key: _decode(text) for key, text in rows}
        return [None if key is None else found.get(key) for key in keys]

    def put(self, pairs: Iterable[tuple[str | None, Score]]) -> None:
        """Keep the scores that are no errors."""
        rows = [value for key, score in pairs if key and score.error is None for value in (key, _encode(score))]
        if rows and self.fault is None:
            marks = ",".join(["(?, ?)"] * (len(rows) // 2))
            self._execute(f"INSERT OR IGNORE INTO scores VALUES {marks}", rows)

    def close(self) -> None:
        self._base.close()

    def _execute(self, sql: str, values: Sequence[Any]) -> list[Any]:
        try:
            return self._base.execute(sql, values).fetchall()
        except sqlite3.Error as error:
            self.fault = f"the score cache `{self._path}` failed: {error}"
            return []


def open_cache() -> ScoreCache | None:
    """The cache that the environment names."""
    folder = os.environ.get(VARIABLE)
    return ScoreCache(Path(folder)) if folder else None


def _encode(score: Score) -> str:
    return json.dumps([score.value, score.parts, score.detail])


def _decode(text: str) -> Score:
    value, parts, detail = json.loads(text)
    return Score(value=value, parts=tuple((name, part) for name, part in parts), detail=detail)
