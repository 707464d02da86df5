"""What was submitted, and what became of it: one number per submission, each object written once.

`drive/submissions/00003/intent.json` is written before the scheduler is asked, so that of two drivers only one can
submit number 3, and so that the next driver knows what to look for when this one dies in between.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from tdm_r1.artifacts.store import Store
from tdm_r1.drive.lease import encoded

FOLDER: Final = "drive/submissions"


@dataclass(frozen=True, kw_only=True)
class Submission:
    """One block that was, or was about to be, submitted."""

    number: int
    name: str
    """Of the run in the scheduler; no other submission has it."""
    start: int
    """First iteration of the block."""
    records: int
    """Records that were committed before it."""
    fence: int
    """Of the driver that submitted it."""
    run_id: str | None = None
    """What the scheduler calls it; None while nobody knows whether it got there."""
    ended: str | None = None
    """How it ended; None while it may still run."""


class Journal:
    """The submissions of one run."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def last(self) -> Submission | None:
        """The newest submission."""
        names = self._store.list(FOLDER)
        numbers = [int(match[1]) for name in names if (match := re.match(rf"{FOLDER}/(\d{{5}})/intent\.json$", name))]
        return self.read(max(numbers)) if numbers else None

    def read(self, number: int) -> Submission:
        """One submission as it stands now."""
        intent = self._get(number, "intent") or {}
        known = {name: intent[name] for name in ("name", "start", "records", "fence")}
        run, end = self._get(number, "run"), self._get(number, "end")
        return Submission(
            number=number, **known, run_id=run["run_id"] if run else None, ended=end["ended"] if end else None
        )

    def begin(self, submission: Submission) -> bool:
        """Reserve the number; False when another driver has it."""
        value = {name: getattr(submission, name) for name in ("name", "start", "records", "fence")}
        return self._put(submission.number, "intent", value)

    def placed(self, number: int, run_id: str) -> None:
        """Remember what the scheduler calls it."""
        self._put(number, "run", {"run_id": run_id})

    def end(self, number: int, ended: str) -> None:
        """Remember how it ended; the first word stands."""
        self._put(number, "end", {"ended": ended})

    def has_ended(self, number: int) -> bool:
        """Whether somebody closed it."""
        return self._store.exists(f"{FOLDER}/{number:05d}/end.json")

    def _put(self, number: int, name: str, value: dict[str, Any]) -> bool:
        body = value | {"at": datetime.now(UTC).isoformat(timespec="seconds")}
        return self._store.write_bytes_if_absent(f"{FOLDER}/{number:05d}/{name}.json", encoded(body))

    def _get(self, number: int, name: str) -> dict[str, Any] | None:
        key = f"{FOLDER}/{number:05d}/{name}.json"
        if not self._store.exists(key):
            return None
        value: dict[str, Any] = json.loads(self._store.read_bytes(key))
        return value
