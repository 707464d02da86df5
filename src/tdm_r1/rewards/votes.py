"""What people said of images, as one table, and the files in which others bring it: Parquet, CSV, JSONL.

Three kinds of file, told apart by their columns: likes (`sample_id`, `like`), pairs (`winner`, `loser`) and click logs
(`impression`, `sample_id`, `clicked`). `rater`, `time` and `picture` may be there too, and nothing else.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pc_csv
import pyarrow.json as pc_json
import pyarrow.parquet as pq

from tdm_r1.errors import ConfigError, SchemaError

VOTES: Final = pa.schema(
    [
        pa.field("kind", pa.string(), nullable=False),
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("other_id", pa.string()),
        pa.field("verdict", pa.bool_(), nullable=False),
        pa.field("rater", pa.string()),
        pa.field("time", pa.timestamp("us", "UTC")),
        pa.field("impression", pa.string()),
        pa.field("picture", pa.string()),
        pa.field("source", pa.string(), nullable=False),
    ]
)
"""One row per vote. `like`: verdict is like or dislike. `pair`: `sample_id` is better than `other_id`. `click`: one
image of an impression, verdict is clicked or passed over. `picture` is the SHA-256 of the pixels that were judged."""
KINDS: Final[Mapping[str, Mapping[str, str]]] = MappingProxyType(
    {
        "like": {"sample_id": "sample_id", "like": "verdict"},
        "pair": {"winner": "sample_id", "loser": "other_id"},
        "click": {"impression": "impression", "sample_id": "sample_id", "clicked": "verdict"},
    }
)
"""Columns that a file of each kind must have, and what they become."""
OPTIONAL: Final = ("rater", "time", "picture")
FLAGS: Final = ("like", "clicked")
MOST_FILE: Final = 1 << 31
"""Bytes."""
YES: Final = ("true", "1", "yes")
NO: Final = ("false", "0", "no")


@dataclass(frozen=True)
class Brought:
    """A file of votes, read."""

    kind: str
    votes: pa.Table
    """With the columns of `VOTES`, in the order of the file."""
    blank: int
    """Rows in which `like` or `clicked` was empty: no opinion, so no vote."""
    digest: str
    """SHA-256 of the file."""


def read_votes(path: Path) -> Brought:
    """Read a file of votes; it must be exactly one of the three kinds.

    Raises:
        ConfigError: when there is no such file, or its suffix is none of .parquet, .csv, .jsonl.
        SchemaError: for other columns, another type, no row, or a row that says nothing that can be used.
    """
    if not path.is_file():
        raise ConfigError(f"`{path}` is no file", hint="give a .parquet, .csv or .jsonl of likes, pairs or clicks")
    if path.stat().st_size > MOST_FILE:
        raise ConfigError(f"`{path}` has more than {MOST_FILE:,} bytes", hint="split it: several files are added up")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    table = _READERS[_suffix(path)](path)
    kind = kind_of(table.column_names, path.name)
    if table.num_rows == 0:
        raise SchemaError(f"`{path.name}` holds no row", hint="a file without votes says nothing: leave it out")
    flat = pa.table({name: _cast(table[name], name, path.name) for name in table.column_names})
    flag = next((name for name in FLAGS if name in flat.column_names), None)
    blank = flat[flag].null_count if flag else 0
    if flag:
        flat = flat.filter(pc.is_valid(flat[flag]))
    _require_full(flat, [name for name in KINDS[kind] if name != flag], path.name)
    return Brought(kind, canonical(kind, flat, f"file {digest[:16]}"), blank, digest)


def kind_of(columns: Iterable[str], label: str) -> str:
    """Which of the three kinds has these columns.

    Raises:
        SchemaError: when none has, or there is a column that none knows, or one twice.
    """
    names = list(columns)
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise SchemaError(f"`{label}` has the column `{twice[0]!s:.60}` more than once", hint=_HINT)
    for kind, needed in KINDS.items():
        if set(needed) <= set(names) and not (strange := [n for n in names if n not in (*needed, *OPTIONAL)]):
            return kind
        if set(needed) <= set(names) and kind != "like":
            raise SchemaError(f"`{label}` has a column `{strange[0]!s:.60}`, which nothing reads", hint=_HINT)
    raise SchemaError(f"`{label}` has the columns {', '.join(names)!r:.200}", hint=_HINT)


_HINT: Final = "; or ".join(f"{kind}s: {', '.join(needed)}" for kind, needed in KINDS.items()) + (
    f"; each may have {', '.join(OPTIONAL)} besides, and nothing else"
)


def canonical(kind: str, flat: pa.Table, source: str) -> pa.Table:
    """Votes of one kind with the columns of `VOTES`; what a file does not have is null."""
    found: dict[str, Any] = {target: flat[name] for name, target in KINDS[kind].items()}
    found |= {name: flat[name] for name in OPTIONAL if name in flat.column_names}
    count = flat.num_rows
    constant = {"kind": kind, "verdict": True, "source": source}
    columns = [
        found.get(field.name, pa.array([constant.get(field.name)] * count, field.type)).cast(field.type)
        for field in VOTES
    ]
    return pa.table(columns, schema=VOTES)


def _suffix(path: Path) -> str:
    if path.suffix.lower() not in _READERS:
        raise ConfigError(f"`{path.name}` is none of {', '.join(_READERS)}", hint="rename or convert it")
    return path.suffix.lower()


def _read_parquet(path: Path) -> pa.Table:
    try:
        return pq.read_table(path, memory_map=False)
    except (pa.ArrowException, OSError) as error:
        raise SchemaError(f"`{path.name}` is no Parquet: {error!s:.200}") from error


def _read_csv(path: Path) -> pa.Table:
    names = (*{name for needed in KINDS.values() for name in needed}, *OPTIONAL)
    convert = pc_csv.ConvertOptions(
        column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=True, null_values=[""]
    )
    try:
        return pc_csv.read_csv(path, convert_options=convert)
    except pa.ArrowException as error:
        if "Empty CSV" in str(error):
            raise SchemaError(f"`{path.name}` is empty", hint=_HINT) from error
        raise SchemaError(f"`{path.name}` is no CSV with one header: {error!s:.200}") from error


def _read_jsonl(path: Path) -> pa.Table:
    """The types come from the first line that has a flag: an identifier is a string, whatever it looks like."""
    with path.open("rb") as file:
        head = next((line for line in file if line.strip()), b"")
    try:
        first = json.loads(head or b"null")
    except ValueError as error:
        raise SchemaError(f"line 1 of `{path.name}` is not JSON: {error}", hint=_HINT) from error
    if not isinstance(first, dict):
        found = "is empty" if not head else "does not begin with an object"
        raise SchemaError(f"`{path.name}` {found}", hint=_HINT)
    kind = kind_of(first, path.name)
    numeric = any(type(first.get(name)) is int for name in FLAGS)
    flags = pa.int64() if numeric else pa.bool_()
    columns = [(name, flags if name in FLAGS else pa.string()) for name in (*KINDS[kind], *OPTIONAL)]
    options = pc_json.ParseOptions(explicit_schema=pa.schema(columns), unexpected_field_behavior="error")
    try:
        table = pc_json.read_json(path, parse_options=options)
    except pa.ArrowException as error:
        raise SchemaError(f"`{path.name}`: {error!s:.300}", hint=_HINT) from error
    return table


_READERS: Final = MappingProxyType({".parquet": _read_parquet, ".csv": _read_csv, ".jsonl": _read_jsonl})


def _cast(column: pa.ChunkedArray, name: str, label: str) -> pa.ChunkedArray:
    """A column with the type of its name."""
    if name in FLAGS:
        return _flags(column, name, label)
    if name == "time":
        return _times(column, label)
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type) or pa.types.is_null(column.type)):
        raise SchemaError(f"column `{name}` of `{label}` is {column.type}, expected string")
    return column.cast(pa.string())


def _flags(column: pa.ChunkedArray, name: str, label: str) -> pa.ChunkedArray:
    if pa.types.is_null(column.type) or pa.types.is_boolean(column.type):
        return column.cast(pa.bool_())
    text = pc.utf8_lower(column.cast(pa.string()))
    known = pc.is_in(text, value_set=pa.array([*YES, *NO, None]))
    if (bad := _first_false(known)) is not None:
        raise SchemaError(
            f"row {bad + 1} of `{label}` has {name}={column[bad].as_py()!r:.60}",
            hint="write true, false, 1, 0 or nothing",
        )
    return pc.if_else(pc.is_valid(text), pc.is_in(text, value_set=pa.array(YES)), None)


def _times(column: pa.ChunkedArray, label: str) -> pa.ChunkedArray:
    zoned = pa.types.is_timestamp(column.type) and column.type.tz is not None
    if not (zoned or pa.types.is_string(column.type) or pa.types.is_null(column.type)):
        raise SchemaError(f"column `time` of `{label}` is {column.type}", hint="give it a time zone")
    try:
        return column.cast(VOTES.field("time").type)
    except pa.ArrowInvalid as error:
        raise SchemaError(
            f"column `time` of `{label}`: {error!s:.200}", hint="write 2026-11-22T10:00:00Z, with a zone"
        ) from error


def _require_full(table: pa.Table, names: Iterable[str], label: str) -> None:
    """Refuse a vote that does not say of what it is."""
    for name in names:
        if (bad := _first_false(pc.is_valid(table[name]))) is not None:
            raise SchemaError(f"vote {bad + 1} of `{label}` has no `{name}`, and {table[name].null_count} have none")


def _first_false(values: pa.ChunkedArray) -> int | None:
    place = pc.index(values, pa.scalar(value=False)).as_py()
    return None if place < 0 else int(place)
