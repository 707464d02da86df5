"""Parquet tables, one row group at a time: what is written, and what is believed of a file.

A file is judged by its footer before a page of it is decoded: columns, types, rows and the sizes that it claims.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tdm_r1.artifacts.finite import all_finite
from tdm_r1.artifacts.foreign import refusing
from tdm_r1.artifacts.rows import entries, entry_shape, fill_rows, rows_column
from tdm_r1.artifacts.schema import Bare, RowsSpec, TableSpec
from tdm_r1.errors import SchemaError

if TYPE_CHECKING:
    from torch import Tensor

GROUP_ROWS: Final = 256
"""Rows of a row group, at most."""
GROUP_BYTES: Final = 16 << 20
"""Bytes of the row tensors of a row group; one row may be larger."""
BATCH_BYTES: Final = 512 << 10
"""Of a row tensor that are decoded at once: little enough to stay in a processor's cache while they are looked at."""
MOST_COLUMN_BYTES: Final = 64 << 20
"""What the table's own columns of one row group may claim and hold; row tensors have their declared width."""
BUFFER: Final = 4 << 10
"""Of a column that is opened and not read; without one, opening reads it."""
FOOTER: Final = 16 << 20
"""Bytes of a footer's strings, and entries of its lists."""

Shapes = dict[str, tuple[int, ...]]
"""Entry shape of each row tensor."""


@dataclass(frozen=True)
class Group:
    """One row group."""

    start: int
    """Its first row."""
    table: pa.Table
    """The table's own columns, strings as dictionaries."""
    rows: Mapping[str, Iterator[pa.Array]]
    """Row tensors as they are stored, a few rows at a time; to be read once, before the next group."""


def write_table(
    path: Path, table: pa.Table, rows: Mapping[str, tuple[RowsSpec, Tensor]], *, lists: bool = False
) -> None:
    """Write `table` and, beside its columns, each tensor of `rows`; `lists` is the layout of version 1.

    Pixels are compressed. Floats are not: zstd takes 7% off a latent and then costs more than reading it.
    """
    names, width = table.column_names, 0
    for name, (spec, tensor) in rows.items():
        field, column = rows_column(name, spec, tensor, lists=lists)
        table = table.append_column(field, column)
        width += tensor[:1].nbytes
    bare = [name for name, (spec, _) in rows.items() if spec.dtype.bits is not None and not lists]
    height = GROUP_ROWS if lists else min(GROUP_ROWS, max(1, GROUP_BYTES // max(1, width)))
    pq.write_table(
        table,
        path,
        compression={name: "none" if name in bare else "zstd" for name in table.column_names} if bare else "zstd",
        row_group_size=height,
        use_dictionary=names,  # a dictionary of pixels or floats only costs time
        write_statistics=names,
    )


def read_table(
    path: Path, spec: TableSpec, rows: Mapping[str, RowsSpec], *, without: Collection[str] = ()
) -> tuple[pa.Table, dict[str, Tensor]]:
    """Read a table and its row tensors, one row group at a time into preallocated tensors.

    Args:
        without: row tensors of which no more is read than what the footer says.

    Raises:
        CorruptArtifactError: for bytes that are no Parquet file, or one whose pages cannot be decoded.
        SchemaError: for other columns, shapes or sizes than declared.
    """
    with open_table(path, spec, rows) as (file, shapes):
        count, parts = file.metadata.num_rows, []
        tensors = {name: empty(rows[name], (count, *shapes[name])) for name in rows if name not in without}
        for group in groups_of(file, spec, rows, shapes):
            parts.append(group.table)
            for name, tensor in tensors.items():
                fill_rows(tensor[group.start : group.start + group.table.num_rows], group.rows[name], rows[name])
        return join(parts, spec), tensors


def empty(row: RowsSpec, shape: tuple[int, ...]) -> Tensor:
    """Memory for a row tensor; only who keeps one needs torch."""
    import torch

    return torch.empty(shape, dtype=row.dtype.torch)


def read_columns(path: Path, spec: TableSpec, rows: Mapping[str, RowsSpec]) -> pa.Table:
    """Read a table without its row tensors; refuses what `read_table` does of all but their values."""
    with open_table(path, spec, rows) as (file, shapes):
        return join([group.table for group in groups_of(file, spec, rows, shapes)], spec)


def scan_table(
    path: Path, spec: TableSpec, rows: Mapping[str, RowsSpec], *, pixels: bool = True
) -> tuple[pa.Table, dict[str, Bare]]:
    """Check all that `read_table` and a record's fields check, and keep the table's own columns only.

    Args:
        pixels: also decode row tensors of integers, whose every value is allowed. Without, the footer speaks for
            them: type, shape, values, and that their bytes are there.

    Returns:
        The table, and the dtype and shape of each row tensor.
    """
    with open_table(path, spec, rows) as (file, shapes):
        count, parts = file.metadata.num_rows, []
        decoded = [name for name in rows if pixels or not is_vouched(file, path, name, rows[name], shapes[name])]
        for group in groups_of(file, spec, rows, shapes):
            parts.append(group.table)
            for name in decoded:
                for values in entries(group.rows[name], rows[name]):
                    if not all_finite(values, rows[name].dtype):
                        raise SchemaError(f"{name} has a value that is NaN or infinite")
        bare = {name: Bare(rows[name].dtype, (count, *shapes[name])) for name in rows}
        return join(parts, spec), bare


@contextmanager
def open_table(path: Path, spec: TableSpec, rows: Mapping[str, RowsSpec]) -> Iterator[tuple[pq.ParquetFile, Shapes]]:
    """Open a file whose footer says that it holds exactly these columns, in row groups of bounded size."""
    texts = [text for name, column in spec.columns.items() for text in texts_of(name, column.dtype)]
    limits = {"thrift_string_size_limit": FOOTER, "thrift_container_size_limit": FOOTER, "schema_depth_limit": 16}
    with (
        refusing(path.name),
        pq.ParquetFile(path, read_dictionary=texts, memory_map=False, pre_buffer=False, **limits) as file,
    ):
        shapes = check_schema(file, path.name, spec, rows)
        open_columns(path, file.metadata)
        check_groups(file, path.name, rows, shapes)
        yield file, shapes


def open_columns(path: Path, footer: pq.FileMetaData) -> None:
    """Let the reader open every column and read none: it refuses what `RowGroupMetaData.column` ends the process for.

    Such as size statistics with a level histogram of the wrong length (pyarrow 26; `tests/fuzz/found`).
    """
    with pq.ParquetFile(path, metadata=footer, buffer_size=BUFFER, memory_map=False, pre_buffer=False) as file:
        for number in range(footer.num_row_groups):
            next(file.reader.iter_batches(0, row_groups=[number], use_threads=False), None)


def texts_of(path: str, dtype: pa.DataType) -> list[str]:
    """Parquet paths of the strings in a column: read as dictionaries, their size is known before they spread."""
    if pa.types.is_list(dtype):
        return texts_of(f"{path}.list.element", dtype.value_type)
    if pa.types.is_struct(dtype):
        return [text for field in dtype for text in texts_of(f"{path}.{field.name}", field.type)]
    return [path] if dtype == pa.string() else []


def plain_type(dtype: pa.DataType) -> pa.DataType:
    """`dtype` with every dictionary in it replaced by its values' type."""
    if pa.types.is_dictionary(dtype):
        return plain_type(dtype.value_type)
    if pa.types.is_list(dtype):
        return pa.list_(plain_type(dtype.value_type))
    if pa.types.is_struct(dtype):
        return pa.struct([(field.name, plain_type(field.type)) for field in dtype])
    return dtype


def check_schema(file: pq.ParquetFile, label: str, spec: TableSpec, rows: Mapping[str, RowsSpec]) -> Shapes:
    """Refuse other columns than declared."""
    schema, expected = file.schema_arrow, [*spec.columns, *rows]
    if sorted(schema.names) != sorted(expected):
        raise SchemaError(f"`{label}` has columns {shown(schema.names)} but {expected} are declared")
    for name, column in spec.columns.items():
        if (found := plain_type(schema.field(name).type)) != column.dtype:
            raise SchemaError(f"`{label}`.{name} is {shown(found)} but {column.dtype} is declared")
    return {name: entry_shape(schema.field(name), rows[name]) for name in rows}


def check_groups(file: pq.ParquetFile, label: str, rows: Mapping[str, RowsSpec], shapes: Shapes) -> None:
    """Refuse row groups that claim more than such a table can need."""
    lists = any(is_list(file, name) for name in rows)
    width = {name: prod(shapes[name]) * (8 if lists else rows[name].dtype.itemsize) for name in rows}
    for number in range(file.num_row_groups):
        check_claims(file.metadata.row_group(number), f"`{label}`, row group {number},", width, lists=lists)
    if sum(file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)) != file.metadata.num_rows:
        raise SchemaError(f"`{label}` says that it has {file.metadata.num_rows} rows, but its row groups do not")


def is_list(file: pq.ParquetFile, name: str) -> bool:
    """Whether a row tensor is stored as version 1 did: lists of numbers."""
    return isinstance(file.schema_arrow.field(name).type, pa.FixedShapeTensorType)


def check_claims(group: pq.RowGroupMetaData, label: str, width: Mapping[str, int], *, lists: bool) -> None:
    """Refuse a row group that claims more rows, values or bytes than its columns can need.

    Args:
        width: bytes of one entry of each row tensor.
    """
    count, own = group.num_rows, sum(width.values())
    if not 0 <= count <= GROUP_ROWS:
        raise SchemaError(f"{label} has {count} rows but at most {GROUP_ROWS} are written")
    if not lists and count > 1 and count * own > GROUP_BYTES:
        raise SchemaError(f"{label} has {count} rows of {own} bytes but at most {GROUP_BYTES} bytes are written")
    for column in (group.column(number) for number in range(group.num_columns)):
        name = column.path_in_schema.partition(".")[0]
        most = 2 * count * width[name] + (1 << 20) if name in width else MOST_COLUMN_BYTES
        if not 0 <= column.total_uncompressed_size <= most or not 0 <= column.num_values <= most:
            claim = f"{column.total_uncompressed_size} bytes and {column.num_values} values"
            raise SchemaError(f"{label} column {shown(name)} claims {claim} but at most {most} are expected")


def is_vouched(file: pq.ParquetFile, path: Path, name: str, row: RowsSpec, shape: tuple[int, ...]) -> bool:
    """Whether the footer can speak for a row tensor: integers, whose every value is allowed, whole and plain.

    Raises:
        SchemaError: when a row group claims other rows than its own, or bytes that are not there.
    """
    if row.dtype.bits is not None or is_list(file, name):
        return False
    width, end = prod(shape) * row.dtype.itemsize, path.stat().st_size - 8 - file.metadata.serialized_size
    number = file.schema_arrow.get_field_index(name)
    for group in (file.metadata.row_group(n) for n in range(file.num_row_groups)):
        column = group.column(number)
        if column.has_dictionary_page:
            return False
        start, size, whole = column.data_page_offset, column.total_compressed_size, column.total_uncompressed_size
        if column.num_values != group.num_rows or whole < group.num_rows * width or not 4 <= start <= end - size <= end:
            claim = f"{column.num_values} values, {whole} bytes in the {size} at {start} of {end}"
            raise SchemaError(f"column {name} claims {claim} but {group.num_rows} of {width} bytes are expected")
    return True


def groups_of(file: pq.ParquetFile, spec: TableSpec, rows: Mapping[str, RowsSpec], shapes: Shapes) -> Iterator[Group]:
    """The row groups of an opened table; one at a time is in memory."""
    start, columns = 0, list(spec.columns)
    height = {name: max(1, BATCH_BYTES // max(1, prod(shapes[name]) * rows[name].dtype.itemsize)) for name in rows}
    for number in range(file.num_row_groups):
        table = file.read_row_group(number, columns=columns, use_threads=False)
        for name, column in zip(table.column_names, table.columns, strict=True):
            if (size := sum(map(spread_bytes, column.chunks))) > MOST_COLUMN_BYTES:
                raise SchemaError(f"column {name} holds {size} bytes in one row group, more than {MOST_COLUMN_BYTES}")
        yield Group(start, table, {name: batches_of(file, number, name, height[name]) for name in rows})
        start += table.num_rows


def batches_of(file: pq.ParquetFile, group: int, name: str, height: int) -> Iterator[pa.Array]:
    """One row tensor of a row group, `height` rows at a time."""
    count, seen = file.metadata.row_group(group).num_rows, 0
    for batch in file.iter_batches(height, row_groups=[group], columns=[name], use_threads=False):
        seen += batch.num_rows
        yield batch.column(0)
    if seen != count:
        raise SchemaError(f"column {name} has {seen} values in a row group of {count} rows")


def spread_bytes(values: pa.Array) -> int:
    """Bytes of all strings in an array once its dictionaries are spread; more, where that is little too."""
    if pa.types.is_list(values.type):
        return spread_bytes(values.flatten())
    if pa.types.is_struct(values.type):
        return sum(spread_bytes(child) for child in values.flatten())
    if not pa.types.is_dictionary(values.type):
        return int(values.nbytes)
    if (most := int(values.dictionary.nbytes) * len(values)) <= MOST_COLUMN_BYTES:
        return most
    lengths = pc.binary_length(values.dictionary).cast(pa.int64())
    return int(pc.sum(lengths.take(values.indices)).as_py() or 0)


def join(parts: list[pa.Table], spec: TableSpec) -> pa.Table:
    """The row groups as one table of the declared types, whose strings are valid UTF-8."""
    if not parts:
        return spec.schema.empty_table()
    found = pa.concat_tables(parts)
    found = found.cast(pa.schema([field.with_type(spec.columns[field.name].dtype) for field in found.schema]))
    found.validate(full=True)
    return found


def shown(value: object) -> str:
    """Enough of what a file says for one line."""
    return str(value)[:200]
