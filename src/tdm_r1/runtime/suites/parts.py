"""Pictures and scores of an evaluation, part by part, so that one that was killed goes on where it stopped.

A part is a fixed piece of the suite: `images/00000.parquet`, and `scores/NAME/00000.parquet` for each scorer. Files are
replaced whole. A part of pictures that is there is never drawn again, also not for a scorer that is added later.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from tdm_r1.artifacts.store import Store
from tdm_r1.errors import CorruptArtifactError
from tdm_r1.rewards.ask import Question
from tdm_r1.rewards.judges import Judges
from tdm_r1.rewards.protocol import Score
from tdm_r1.runtime.suites.subject import Subject
from tdm_r1.runtime.suites.suite import Suite
from tdm_r1.worlds.world import WorldPrompt

SIZE: Final = 64
"""Images of a part."""
PICTURES: Final = pa.schema([("prompt_id", pa.string()), ("number", pa.int64()), ("image", pa.binary())])
"""`image` is a PNG."""
SCORES: Final = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("number", pa.int64()),
        ("value", pa.float64()),
        ("parts", pa.list_(pa.struct([("name", pa.string()), ("value", pa.float64())]))),
        ("detail", pa.string()),
        ("error", pa.string()),
    ]
)
Row = dict[str, Any]


@dataclass(frozen=True)
class Part:
    """A piece of the suite."""

    number: int
    images: tuple[tuple[WorldPrompt, int], ...]
    """Prompt, and number of the image among those of the prompt."""

    def key(self, folder: str) -> str:
        return f"{folder}/{self.number:05d}.parquet"


def parts_of(suite: Suite) -> list[Part]:
    """The suite in pieces of `SIZE` images, prompts in order."""
    images = [(row, number) for row in suite.prompts for number in range(suite.images_per_prompt)]
    return [Part(n, tuple(images[start : start + SIZE])) for n, start in enumerate(range(0, len(images), SIZE))]


def pictures(part: Part, subject: Subject, seed: int, store: Store, asked: str) -> list[bytes]:
    """PNGs of a part: those that lie there, or newly drawn ones, which then lie there.

    Args:
        asked: digest of `suite.json`.
    """
    key, about = part.key("images"), {"asked": asked}
    table = read(store, key, PICTURES, about)
    if table is None:
        rows, numbers = [row for row, _ in part.images], [number for _, number in part.images]
        names = [f"{row.prompt_id}/{number}" for row, number in part.images]
        drawn = subject.draw(rows, names, seed)
        table = pa.table([[row.prompt_id for row in rows], numbers, drawn], schema=PICTURES)
        write(store, key, table, about)
    found: list[bytes] = table["image"].to_pylist()
    return found


def scored(part: Part, images: Sequence[bytes], name: str, judges: Judges, store: Store, asked: str) -> list[Row]:
    """Scores of a part by one scorer: those that lie there by this very scorer, or new ones, which then lie there."""
    revision = judges.scorers[name].info.revision
    key, about = part.key(f"scores/{name}"), {"asked": asked, "revision": revision}
    table = read(store, key, SCORES, about) if revision else None  # whose code may be another one today
    if table is None:
        pairs = list(zip(part.images, images, strict=True))
        questions = [Question(image, row.text, row.metadata) for (row, _), image in pairs]
        scores = judges.score_asked(name, questions)
        rows = [_row(row, number, score) for (row, number), score in zip(part.images, scores, strict=True)]
        table = pa.Table.from_pylist(rows, schema=SCORES)
        write(store, key, table, about)
    found: list[Row] = table.to_pylist()
    return found


def _row(prompt: WorldPrompt, number: int, score: Score) -> Row:
    parts = [{"name": part, "value": value} for part, value in score.parts]
    said = {"value": score.value, "parts": parts, "detail": score.detail, "error": score.error}
    return {"prompt_id": prompt.prompt_id, "number": number, **said}


def score_of(row: Row) -> Score:
    """The inverse of what `scored` stores."""
    parts = tuple((part["name"], part["value"]) for part in row["parts"])
    return Score(value=row["value"], parts=parts, detail=row["detail"], error=row["error"])


def read(store: Store, key: str, schema: pa.Schema, about: Mapping[str, str]) -> pa.Table | None:
    """A part, or None when it is not there or answers another question.

    Raises:
        CorruptArtifactError: when it is no such table.
    """
    if not store.exists(key):
        return None
    with tempfile.TemporaryDirectory(prefix="tdm-r1-") as scratch:
        local = Path(scratch, "part.parquet")
        store.fetch(key, local)
        try:
            with pq.ParquetFile(local) as file:
                said = file.schema_arrow.metadata or {}
                if any(said.get(name.encode()) != value.encode() for name, value in about.items()):
                    return None
                found = file.read().replace_schema_metadata(None)
        except (pa.ArrowException, OSError) as error:
            raise CorruptArtifactError(f"`{store.root}/{key}` is no Parquet file: {error}", hint="delete it") from error
    if not found.schema.equals(schema):
        raise CorruptArtifactError(f"`{store.root}/{key}` has other columns than a part has", hint="delete it")
    return found


def write(store: Store, key: str, table: pa.Table, about: Mapping[str, str] | None = None) -> None:
    """Store a table as Parquet, with strings about it in its schema."""
    sink = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata(dict(about or {})), sink, compression="zstd")
    store.overwrite(key, sink.getvalue().to_pybytes())


def progress_steps(parts: Sequence[Part], scorers: Sequence[str]) -> Iterator[tuple[Part, str | None]]:
    """What is done in turn: the pictures of a part, then each scorer's scores of them."""
    for part in parts:
        yield part, None
        for name in scorers:
            yield part, name
