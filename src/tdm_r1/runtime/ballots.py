"""What people say, until the stage `feedback` commits it: `votes/iter-NNNNN/` below the root.

Every vote on the page is an object of its own, `raters/NAME/NNNNNN.json`, written once, which holds the hash of the
one before: a change or a gap is noticed. Taking a vote back is another object. A file that was brought is
`files/SHA256.parquet`. Nothing committed is touched, and after the commit nothing more is taken.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from tdm_r1.artifacts.manifest import Digest
from tdm_r1.artifacts.store import MOST_BYTES, Store
from tdm_r1.errors import ArtifactError, ConfigError, CorruptArtifactError, SchemaError
from tdm_r1.rewards.votes import VOTES
from tdm_r1.runtime.layout import votes_folder

RATER: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
MOST_VOTES: Final = 999_999
"""Of one rater on one iteration; their names have six digits."""
ATTEMPTS: Final = 20
"""Of finding a free number, when a rater has the page open in several processes."""


class Ballot(BaseModel):
    """One thing that a rater did."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    number: int = Field(ge=1, le=MOST_VOTES)
    previous: str
    """SHA-256 of the rater's ballot before this one; empty for the first."""
    rater: str = Field(pattern=RATER.pattern)
    time: AwareDatetime
    """By the clock of the server."""
    page: str = Field(max_length=64)
    """Version of the page that it was given on."""
    rollout: Digest
    """Of the rollout's manifest."""
    kind: Literal["like", "pair", "undo"]
    sample_id: str = Field(max_length=200)
    """What was judged; of a pair, the better one."""
    other_id: str | None = Field(default=None, max_length=200)
    """Of a pair, the other one."""
    verdict: bool = True
    """Like or dislike."""
    picture: Digest
    """SHA-256 of the pixels of `sample_id`."""
    undoes: int | None = None
    """Number of the ballot that is taken back."""
    key: str = Field(default="", max_length=64)
    """Of the request: the same one again is not another vote."""

    def to_bytes(self) -> bytes:
        return self.model_dump_json(exclude_none=True).encode() + b"\n"


@dataclass(frozen=True)
class Collected:
    """Everything that was said of an iteration."""

    votes: pa.Table
    """With the columns of `VOTES`: files by name, then raters by name, each in its order."""
    undone: npt.NDArray[np.bool_]
    """[V] what its rater took back."""


def folder_of(iteration: int, variant: str = "") -> str:
    """Where the votes on an iteration lie."""
    return f"{votes_folder(variant)}/iter-{iteration:05d}"


class Box:
    """The ballots of one rater on one iteration."""

    def __init__(self, store: Store, folder: str, rater: str) -> None:
        """Read what is there.

        Raises:
            ConfigError: for what can be no name of a rater.
            CorruptArtifactError: when a ballot is missing or is not as it was given.
        """
        if not RATER.fullmatch(rater):
            raise ConfigError(
                f"{rater!r:.80} cannot be the name of a rater",
                hint="use at most 64 letters, digits, _, . and -, beginning with a letter or a digit",
            )
        self.rater = rater
        self._store, self._folder = store, f"{folder}/raters/{rater}"
        self.ballots: list[Ballot] = []
        self._last = ""
        self._catch_up()

    def _key(self, number: int) -> str:
        return f"{self._folder}/{number:06d}.json"

    def _catch_up(self) -> None:
        """Read what is there and was not read yet."""
        known, keys = len(self.ballots), self._store.list(self._folder)
        if (expected := [self._key(n + 1) for n in range(len(keys))]) != keys:
            strange = next(k for k in (*keys, "") if k not in expected)
            raise CorruptArtifactError(
                f"`{self._store.root}/{self._folder}` has {len(keys)} ballots, but they are not 1 to {len(keys)}:"
                f" `{strange}`",
                hint="somebody changed it: restore it from a copy, or take all of the rater's ballots away",
            )
        with ThreadPoolExecutor(8) as pool:
            for data in pool.map(self._store.read_bytes, keys[known:]):
                self._take(data)

    def _take(self, data: bytes) -> None:
        number = len(self.ballots) + 1
        try:
            ballot = Ballot.model_validate_json(data)
        except ValidationError as error:
            raise CorruptArtifactError(f"`{self._key(number)}` is no ballot: {error!s:.300}") from error
        if (ballot.number, ballot.previous, ballot.rater) != (number, self._last, self.rater):
            raise CorruptArtifactError(
                f"`{self._store.root}/{self._key(number)}` does not follow from the ballot before it",
                hint="one of the two was changed: restore them from a copy, or take all of the rater's ballots away",
            )
        self.ballots.append(ballot)
        self._last = hashlib.sha256(data).hexdigest()

    def append(self, **said: Any) -> Ballot:
        """Store one more ballot; it is on disk when this returns. A `key` that was stored before gives that ballot.

        Raises:
            ArtifactError: when the rater votes from too many places at once.
        """
        for _ in range(ATTEMPTS):
            if (seen := next((b for b in self.ballots if b.key and b.key == said.get("key")), None)) is not None:
                return seen
            ballot = Ballot(
                number=len(self.ballots) + 1, previous=self._last, rater=self.rater, time=datetime.now(UTC), **said
            )
            data = ballot.to_bytes()
            if self._store.write_bytes_if_absent(self._key(ballot.number), data):
                self._take(data)
                return ballot
            self._catch_up()
        raise ArtifactError(f"`{self.rater}` votes from too many places at once", hint="close the other pages")

    def standing(self) -> list[Ballot]:
        """Votes that were not taken back."""
        gone = {ballot.undoes for ballot in self.ballots}
        return [ballot for ballot in self.ballots if ballot.kind != "undo" and ballot.number not in gone]


def raters(store: Store, folder: str) -> list[str]:
    """Who said anything on the page."""
    prefix = f"{folder}/raters/"
    return sorted({key.removeprefix(prefix).partition("/")[0] for key in store.list(prefix.rstrip("/"))})


def collect(store: Store, variant: str, iteration: int, rollouts: Collection[str]) -> Collected:
    """All votes on an iteration.

    Args:
        rollouts: digests of the manifests of its rollouts as they stand.

    Raises:
        SchemaError: when there is none.
        CorruptArtifactError: when one was changed, or given on another rollout.
    """
    folder = folder_of(iteration, variant)
    tables = [table for _, table in brought(store, folder)]
    undone = [np.zeros(table.num_rows, dtype=np.bool_) for table in tables]
    for rater in raters(store, folder):
        box = Box(store, folder, rater)
        if strange := [ballot for ballot in box.ballots if ballot.rollout not in rollouts]:
            raise CorruptArtifactError(
                f"`{rater}` judged another rollout: ballot {strange[0].number} is on {strange[0].rollout[:12]}",
                hint=f"the rollout was made again; take `{store.root}/{folder}` away and let people judge the new one",
            )
        votes = [ballot for ballot in box.ballots if ballot.kind != "undo"]
        standing = {ballot.number for ballot in box.standing()}
        tables.append(pa.Table.from_pylist([_row(ballot) for ballot in votes], schema=VOTES))
        undone.append(np.array([ballot.number not in standing for ballot in votes], dtype=np.bool_))
    if not sum(table.num_rows for table in tables):
        where = f"--root {store.root} --iteration {iteration}" + (f" --variant {variant}" if variant else "")
        raise SchemaError(
            f"nobody has judged iteration {iteration}: `{store.root}/{folder}` holds no vote",
            hint=f"show its images with `tdm-r1 label {where}`, or bring a file: `tdm-r1 feedback import FILE {where}`",
        )
    return Collected(pa.concat_tables(tables).combine_chunks(), np.concatenate(undone))


def _row(ballot: Ballot) -> Mapping[str, Any]:
    said = ballot.model_dump(include={"kind", "sample_id", "other_id", "verdict", "rater", "time", "picture"})
    return {**said, "impression": None, "source": f"page {ballot.page}"}


def bring(store: Store, folder: str, votes: pa.Table) -> str | None:
    """Keep votes from a file; None when the same ones are there already, else their name."""
    sink = io.BytesIO()
    pq.write_table(votes, sink, compression="zstd")
    data = sink.getvalue()
    if len(data) > MOST_BYTES:
        raise SchemaError(f"the votes take {len(data):,} bytes, at most {MOST_BYTES:,} fit", hint="split the file")
    name = hashlib.sha256(data).hexdigest()
    return name if store.write_bytes_if_absent(f"{folder}/files/{name}.parquet", data) else None


def brought(store: Store, folder: str) -> Iterator[tuple[str, pa.Table]]:
    """Names and votes of the files that were brought.

    Raises:
        CorruptArtifactError: when one is not what its name says.
    """
    for key in store.list(f"{folder}/files"):
        data, name = store.read_bytes(key), key.rpartition("/")[2].removesuffix(".parquet")
        if (found := hashlib.sha256(data).hexdigest()) != name:
            raise CorruptArtifactError(
                f"`{store.root}/{key}` has sha256 {found}", hint="take it away and bring it again"
            )
        yield name, pq.read_table(io.BytesIO(data)).cast(VOTES)
