"""Where two files of one record differ first, and by how much."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import isnan
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import safe_open
from torch import Tensor

from tdm_r1.artifacts.rows import described, flat_entries


@dataclass(frozen=True)
class Difference:
    """The first place where two files differ."""

    where: str
    """Such as `state.safetensors, tensor generator/w, entry [3, 0]`."""
    recorded: str
    replayed: str
    largest: float | None = None
    """Largest absolute difference in that tensor or column; None when it holds no numbers."""


def compare_files(recorded: Path, replayed: Path, name: str) -> Difference | None:
    """The first difference in content; None when only the encoding differs."""
    compare: Callable[[Path, Path, str], Difference | None] = {
        ".safetensors": compare_tensors,
        ".parquet": compare_tables,
    }.get(Path(name).suffix, compare_texts)
    return compare(recorded, replayed, name)


def compare_tensors(recorded: Path, replayed: Path, name: str) -> Difference | None:
    """Tensor by tensor, in the order of their names; one of each is in memory."""
    with safe_open(recorded, framework="pt") as a, safe_open(replayed, framework="pt") as b:
        there, here = set(a.keys()), set(b.keys())
        if alone := sorted(there ^ here):
            place = ("present", "absent") if alone[0] in there else ("absent", "present")
            return Difference(f"{name}, tensor {alone[0]}", *place)
        for key in sorted(there):
            if found := compare_values(a.get_tensor(key), b.get_tensor(key), f"{name}, tensor {key}"):
                return found
    return None


def compare_values(recorded: Tensor, replayed: Tensor, where: str) -> Difference | None:
    """Entry by entry; two NaN are equal."""
    left, right = (f"{str(t.dtype).removeprefix('torch.')} {list(t.shape)}" for t in (recorded, replayed))
    if left != right:
        return Difference(where, left, right)
    apart = (recorded != replayed) & ~(recorded.isnan() & replayed.isnan())
    if not bool(apart.any()):
        return None
    entry = tuple(int(i) for i in apart.nonzero()[0])
    largest = (recorded.to(torch.float64) - replayed.to(torch.float64))[apart].abs().max().item()
    count = f"{int(apart.sum()):,} of {recorded.numel():,} entries differ, first {list(entry)}"
    return Difference(f"{where}, {count}", repr(recorded[entry].item()), repr(replayed[entry].item()), largest)


def compare_tables(recorded: Path, replayed: Path, name: str) -> Difference | None:
    """Column by column, in the order of the table; one of each is in memory."""
    with pq.ParquetFile(recorded) as a, pq.ParquetFile(replayed) as b:
        left, right = a.schema_arrow, b.schema_arrow
        if not left.equals(right):
            return Difference(f"{name}, schema", str(left.remove_metadata()), str(right.remove_metadata()))
        if a.metadata.num_rows != b.metadata.num_rows:
            return Difference(f"{name}, number of rows", str(a.metadata.num_rows), str(b.metadata.num_rows))
        for column in left.names:
            pair = [as_tensor(file.read(columns=[column])[column], left.field(column)) for file in (a, b)]
            if found := compare_columns(pair[0], pair[1], f"{name}, column {column}"):
                return found
    return None


def compare_columns(
    recorded: pa.ChunkedArray | Tensor, replayed: pa.ChunkedArray | Tensor, where: str
) -> Difference | None:
    """Row by row; a column of tensors entry by entry."""
    if isinstance(recorded, Tensor) and isinstance(replayed, Tensor):
        return compare_values(recorded, replayed, where)
    assert not isinstance(recorded, Tensor)
    assert not isinstance(replayed, Tensor)
    left, right = recorded.to_pylist(), replayed.to_pylist()
    rows = [row for row, pair in enumerate(zip(left, right, strict=True)) if not same(*pair)]
    if not rows:
        return None
    sizes = [abs(left[row] - right[row]) for row in rows if is_number(left[row]) and is_number(right[row])]
    count = f"{len(rows):,} of {len(left):,} rows differ, first row {rows[0]}"
    largest = float(max(sizes)) if sizes else None
    return Difference(f"{where}, {count}", short(left[rows[0]]), short(right[rows[0]]), largest)


def as_tensor(column: pa.ChunkedArray, field: pa.Field) -> pa.ChunkedArray | Tensor:
    """[rows, ...] for a column of row tensors; any other column as it is."""
    if isinstance(field.type, pa.FixedShapeTensorType):
        return torch.from_numpy(np.array(column.combine_chunks().to_numpy_ndarray()))
    if not isinstance(field.type, pa.FixedSizeBinaryType):
        return column
    shape, dtype = described(field)
    return torch.from_numpy(
        np.concatenate([np.empty(0, dtype), *flat_entries(column.chunks, dtype)]).reshape(-1, *shape)
    )


def compare_texts(recorded: Path, replayed: Path, name: str) -> Difference | None:
    """Line by line."""
    left, right = recorded.read_bytes().split(b"\n"), replayed.read_bytes().split(b"\n")
    for number, (a, b) in enumerate(zip(left, right, strict=False), start=1):
        if a != b:
            return Difference(f"{name}, line {number}", short(a), short(b))
    return Difference(f"{name}, lines", str(len(left)), str(len(right))) if len(left) != len(right) else None


def same(a: Any, b: Any) -> bool:
    """Equality in which NaN equals NaN."""
    return bool(a == b or (isinstance(a, float) and isinstance(b, float) and isnan(a) and isnan(b)))


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def short(value: Any) -> str:
    return repr(value)[:120]
