"""Records to files and back: Parquet for tables and rows, safetensors for tensors, UTF-8 for text.

Equal content gives equal bytes, for one version of pyarrow and safetensors. Nothing is pickled.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from math import prod
from pathlib import Path
from typing import Any, ClassVar, Self

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tdm_r1.artifacts.schema import ARROW_DTYPES, Dims, RowsSpec, TableSpec, TensorsSpec, TextSpec, specs_of
from tdm_r1.errors import SchemaError

ROW_GROUP_ROWS = 256


@dataclass(frozen=True, kw_only=True, eq=False)
class Record:
    """What a stage returns. Its fields are declared by specs; an invalid record cannot be built."""

    kind: ClassVar[str]
    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        dims = Dims()
        for name, spec in specs_of(self).items():
            parsed = spec.parse(getattr(self, name), f"{type(self).__name__}.{name}", dims)
            object.__setattr__(self, name, parsed)
        self.check()

    def check(self) -> None:
        """Refuse content that the field specs cannot express; a record overrides it where needed."""

    @classmethod
    def table(cls, field: str, **columns: Sequence[Any]) -> pa.Table:
        """Build the table of `field` from Python values, with the declared types: None is null."""
        spec = specs_of(cls).get(field)
        if not isinstance(spec, TableSpec) or set(columns) != set(spec.columns):
            declared = list(spec.columns) if isinstance(spec, TableSpec) else "no table"
            raise SchemaError(f"{cls.__name__}.{field} was given columns {list(columns)} but declares {declared}")
        try:
            return pa.table({name: pa.array(columns[name], c.dtype) for name, c in spec.columns.items()})
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise SchemaError(f"{cls.__name__}.{field} cannot hold these values: {error}") from error

    @classmethod
    def files(cls) -> dict[str, str]:
        """Return the field stored in each file; row tensors lie in the file of their table."""
        return {s.file: f for f, s in specs_of(cls).items() if isinstance(s, TableSpec | TensorsSpec | TextSpec)}

    def row_counts(self) -> dict[str, int | None]:
        """Return the number of rows of each file, None for a file that is not a table."""
        values = {file: getattr(self, field) for file, field in self.files().items()}
        return {file: v.num_rows if isinstance(v, pa.Table) else None for file, v in values.items()}

    def write(self, directory: Path) -> None:
        """Write the files of this record into an existing directory."""
        for file, field in self.files().items():
            value = getattr(self, field)
            if isinstance(value, pa.Table):
                write_table(directory / file, value, self._rows_of(field))
            elif isinstance(value, str):
                (directory / file).write_bytes(value.encode())
            else:
                write_tensors(directory / file, value)

    @classmethod
    def read(cls, directory: Path) -> Self:
        """Read the record that `write` left in `directory`."""
        values: dict[str, Any] = {}
        for file, field in cls.files().items():
            spec = specs_of(cls)[field]
            if isinstance(spec, TableSpec):
                values[field], tensors = read_table(directory / file, row_specs(cls, spec.dim))
                values.update(tensors)
            elif isinstance(spec, TextSpec):
                values[field] = (directory / file).read_bytes().decode()
            else:
                values[field] = load_file(directory / file)
        return cls(**values)

    def _rows_of(self, field: str) -> dict[str, tuple[RowsSpec, Tensor]]:
        spec = specs_of(self)[field]
        assert isinstance(spec, TableSpec)
        return {name: (rows, getattr(self, name)) for name, rows in row_specs(type(self), spec.dim).items()}


def row_specs(record: type[Record], dim: str) -> dict[str, RowsSpec]:
    """Return the row tensors of `record` that belong to its table of dim `dim`."""
    specs = {field.name: field.metadata["spec"] for field in fields(record)}
    return {name: s for name, s in specs.items() if isinstance(s, RowsSpec) and s.dims[0] == dim}


def write_table(path: Path, table: pa.Table, rows: Mapping[str, tuple[RowsSpec, Tensor]]) -> None:
    """Write `table` and, beside its columns, each tensor of `rows` as a fixed-shape-tensor column."""
    names = table.column_names
    for name, (spec, tensor) in rows.items():
        column = tensor_to_arrow(spec, tensor)
        table = table.append_column(pa.field(name, column.type, nullable=False), column)
    pq.write_table(
        table,
        path,
        compression="zstd",
        row_group_size=ROW_GROUP_ROWS,
        use_dictionary=names,  # a dictionary of pixels or floats only costs time
        write_statistics=names,
    )


def read_table(path: Path, rows: Mapping[str, RowsSpec]) -> tuple[pa.Table, dict[str, Tensor]]:
    """Read what `write_table` wrote, one row group at a time, into a table and preallocated tensors."""
    with pq.ParquetFile(path) as file:
        schema = file.schema_arrow
        missing = [name for name in rows if name not in schema.names]
        if missing:
            raise SchemaError(f"`{path.name}` has columns {schema.names} but {missing} are declared too")
        tensors = {n: empty_rows(file.metadata.num_rows, schema.field(n).type, spec) for n, spec in rows.items()}
        parts, start = [], 0
        for group in range(file.num_row_groups):
            part = file.read_row_group(group)
            for name, tensor in tensors.items():
                fill_rows(tensor[start : start + part.num_rows], part[name])
            start += part.num_rows
            parts.append(part.drop_columns(list(rows)) if rows else part)
    return pa.concat_tables(parts), tensors


def tensor_to_arrow(spec: RowsSpec, tensor: Tensor) -> pa.Array:
    """View a contiguous [N, ...] tensor as an Arrow array of N fixed-shape tensors, without a copy on the CPU."""
    dtype = spec.arrow_type(tuple(tensor.shape[1:]))
    flat = pa.array(tensor.cpu().reshape(-1).numpy())
    return pa.ExtensionArray.from_storage(dtype, pa.FixedSizeListArray.from_arrays(flat, type=dtype.storage_type))


def empty_rows(count: int, dtype: pa.DataType, spec: RowsSpec) -> Tensor:
    """Allocate the [count, ...] tensor for a Parquet column of type `dtype`."""
    if not isinstance(dtype, pa.FixedShapeTensorType) or dtype.value_type != ARROW_DTYPES[spec.dtype]:
        raise SchemaError(f"a column of type {dtype} cannot hold rows of {spec.dtype}")
    return torch.empty((count, *dtype.shape), dtype=spec.dtype)


def fill_rows(target: Tensor, column: pa.ChunkedArray) -> None:
    """Copy the chunks of a fixed-shape-tensor column into `target` [rows, ...]."""
    start = 0
    flat = target.reshape(-1)
    for chunk in column.chunks:
        size = len(chunk) * prod(target.shape[1:])
        flat[start : start + size] = torch.from_numpy(chunk.storage.flatten().to_numpy(zero_copy_only=False).copy())
        start += size


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write named tensors as one safetensors file; a tensor with two names is stored twice."""
    save_file(dict(_unshared(tensors.items())), path)


def _unshared(items: Iterable[tuple[str, Tensor]]) -> Iterable[tuple[str, Tensor]]:
    seen: set[int] = set()  # safetensors refuses tensors that share memory
    for name, tensor in items:
        address = tensor.data_ptr()
        yield name, tensor.clone() if address in seen and tensor.numel() else tensor
        seen.add(address)
