"""Field specs: what a record may hold, checked when it is built.

A record is a frozen dataclass whose fields are declared with `table`, `rows`, `tensors` and `text`.
Dim names are shared inside one record: `N` is the same number wherever it stands. A dim written as
a number must have that size. `K+1` is a name like any other.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, Protocol, TypeGuard

import pyarrow as pa
import pyarrow.compute as pc

from tdm_r1.artifacts.dtypes import ARROW, NAMES, DType
from tdm_r1.errors import SchemaError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Bare:
    """A stored tensor whose values were looked at and not kept."""

    dtype: DType
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]


class Dims:
    """The sizes bound so far in one record, each with the field that bound it."""

    def __init__(self) -> None:
        self._bound: dict[str, tuple[int, str]] = {}

    def bind(self, name: str, size: int, label: str) -> None:
        """Bind `name` to `size`, or refuse when it is already another number."""
        if name.isdigit():
            if int(name) != size:
                raise SchemaError(f"{label} has size {size} where {name} is declared")
            return
        bound, owner = self._bound.setdefault(name, (size, label))
        if bound != size:
            raise SchemaError(f"{label} has {name}={size} but {owner} has {name}={bound}")


class Spec(Protocol):
    """Checks one field of a record and returns its canonical value."""

    def parse(self, value: Any, label: str, dims: Dims) -> Any: ...


@dataclass(frozen=True)
class Column:
    """One column of a table: its Arrow type, and what else it may hold."""

    dtype: pa.DataType
    nullable: bool = False
    finite: bool = False

    def check(self, values: pa.ChunkedArray, label: str) -> None:
        if values.type != self.dtype:
            raise SchemaError(f"{label} is {values.type} but {self.dtype} is declared")
        if values.null_count and not self.nullable:
            raise SchemaError(f"{label} has {values.null_count} nulls but is declared without")
        if self.finite and pc.all(pc.is_finite(values)).as_py() is False:
            raise SchemaError(f"{label} has a value that is NaN or infinite")


@dataclass(frozen=True)
class TableSpec:
    """A table with exactly these columns; `dim` names its number of rows."""

    file: str
    dim: str
    columns: Mapping[str, Column]

    @property
    def schema(self) -> pa.Schema:
        return pa.schema([pa.field(name, c.dtype, nullable=c.nullable) for name, c in self.columns.items()])

    def parse(self, value: Any, label: str, dims: Dims) -> pa.Table:
        """Return the table with declared column order and nullability, in one chunk, without metadata."""
        if not isinstance(value, pa.Table):
            raise SchemaError(f"{label} is a {type(value).__name__} but a pyarrow Table is declared")
        if sorted(value.column_names) != sorted(self.columns):
            raise SchemaError(f"{label} has columns {value.column_names} but {list(self.columns)} are declared")
        for name, column in self.columns.items():
            column.check(value[name], f"{label}.{name}")
        dims.bind(self.dim, value.num_rows, label)
        chosen = value.select(list(self.columns)).replace_schema_metadata(None)
        return (chosen if chosen.schema == self.schema else chosen.cast(self.schema)).combine_chunks()


@dataclass(frozen=True)
class RowsSpec:
    """A tensor with one entry for each row of the table that has the same first dim."""

    dims: tuple[str, ...]
    dtype: DType

    def parse(self, value: Any, label: str, dims: Dims) -> Tensor | Bare:
        checked = parse_tensor(value, label, self.dtype)
        bind_shape(checked, self.dims, label, dims)
        return checked


@dataclass(frozen=True)
class TensorsSpec:
    """Named tensors in one file. With `shapes`, exactly these names; without, any."""

    file: str
    dtype: DType | None
    shapes: Mapping[str, tuple[str, ...]]
    by_rows: bool = False
    """Whether stages read some rows of a large file, so that its manifest has the hashes of blocks."""

    def parse(self, value: Any, label: str, dims: Dims) -> dict[str, Tensor | Bare]:
        """Return a copy of the dict, sorted by name; the tensors are not copied."""
        if not isinstance(value, Mapping):
            raise SchemaError(f"{label} is a {type(value).__name__} but a dict of tensors is declared")
        if self.shapes and set(value) != set(self.shapes):
            raise SchemaError(f"{label} has tensors {sorted(value)} but {sorted(self.shapes)} are declared")
        return {name: self._parse_one(name, value[name], label, dims) for name in sorted(value)}

    def _parse_one(self, name: str, value: Any, label: str, dims: Dims) -> Tensor | Bare:
        label = f"{label}[{name!r}]"
        if name in ("", "__metadata__"):
            raise SchemaError(f"{label} has a name that safetensors cannot store")
        checked = parse_tensor(value, label, self.dtype)
        if self.shapes:
            bind_shape(checked, self.shapes[name], label, dims)
        return checked


@dataclass(frozen=True)
class TextSpec:
    """A string, stored as one UTF-8 file."""

    file: str

    def parse(self, value: Any, label: str, dims: Dims) -> str:  # noqa: ARG002
        if not isinstance(value, str):
            raise SchemaError(f"{label} is a {type(value).__name__} but a string is declared")
        return value


def table(file: str, dim: str, /, **columns: pa.DataType | Column) -> Any:
    """Declare a pyarrow Table of `dim` rows with exactly these columns, stored in the Parquet file `file`."""
    specs = {name: c if isinstance(c, Column) else Column(c) for name, c in columns.items()}
    return dataclasses.field(metadata={"spec": TableSpec(file, dim, specs)})


def nullable(dtype: pa.DataType, *, finite: bool = False) -> Column:
    """Declare a column that may hold nulls; with `finite`, neither NaN nor infinity."""
    return Column(dtype, nullable=True, finite=finite)


def rows(shape: str, dtype: DType) -> Any:
    """Declare a tensor stored as a column of the table whose dim comes first in `shape`."""
    return dataclasses.field(metadata={"spec": RowsSpec(tuple(shape.split()), dtype)})


def tensors(file: str, dtype: DType | None = None, /, *, by_rows: bool = False, **shapes: str) -> Any:
    """Declare named tensors stored in the safetensors file `file`.

    Without `dtype`, any dtype is allowed; without `shapes`, any names and shapes are. With `by_rows`, some rows of a
    large file can be read without the others.
    """
    dims = {name: tuple(shape.split()) for name, shape in shapes.items()}
    return dataclasses.field(metadata={"spec": TensorsSpec(file, dtype, dims, by_rows)})


def text(file: str) -> Any:
    """Declare a string stored in the UTF-8 file `file`."""
    return dataclasses.field(metadata={"spec": TextSpec(file)})


def parse_tensor(value: Any, label: str, dtype: DType | None) -> Tensor | Bare:
    """Return a tensor without its graph, or what was seen of a stored one, when it is of `dtype`."""
    if isinstance(value, Bare):
        require_dtype(value.dtype.name, label, dtype)
        return value
    return check_tensor(value, label, dtype).detach()


def require_dtype(found: str, label: str, dtype: DType | None) -> None:
    """Refuse another dtype than declared; None is any that can be stored."""
    if dtype is not None and found != dtype.name:
        raise SchemaError(f"{label} is {found} but {dtype} is declared")
    if found not in NAMES:
        raise SchemaError(f"{label} is {found} but {', '.join(sorted(NAMES))} can be stored")


def is_tensor(value: object) -> TypeGuard[Tensor]:
    """Whether `value` is one of torch, which is not loaded for the question."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def check_tensor(value: Any, label: str, dtype: DType | None) -> Tensor:
    """Return `value` when it is a contiguous, finite tensor of `dtype`."""
    if not is_tensor(value):
        raise SchemaError(f"{label} is a {type(value).__name__} but a tensor is declared")
    require_dtype(str(value.dtype).removeprefix("torch."), label, dtype)
    if not value.is_contiguous():
        raise SchemaError(f"{label} is not contiguous", hint="call `.contiguous()` before building the record")
    if not is_finite(value):
        raise SchemaError(f"{label} has a value that is NaN or infinite")
    return value


def is_finite(value: Tensor) -> bool:
    """Whether no element is NaN or infinite: a finite sum proves it, any other asks each element."""
    import torch

    if value.is_complex():
        return is_finite(torch.view_as_real(value))
    if not value.is_floating_point():
        return True
    summed = value.dtype == torch.bfloat16 or value.dtype in {dtype.torch for dtype in ARROW}
    exact = value if summed else value.float()
    total = exact.sum(dtype=torch.promote_types(exact.dtype, torch.float32))
    return bool(total.isfinite()) or bool(exact.isfinite().all())


def bind_shape(value: Tensor | Bare, names: tuple[str, ...], label: str, dims: Dims) -> None:
    """Bind each dim of `value` to its declared name."""
    if value.ndim != len(names):
        raise SchemaError(f"{label} has shape {list(value.shape)} but [{' '.join(names)}] is declared")
    for name, size in zip(names, value.shape, strict=True):
        dims.bind(name, size, label)


def specs_of(record: Any) -> dict[str, Spec]:
    """Return the specs of a record or record class by field name, in declared order."""
    return {field.name: field.metadata["spec"] for field in dataclasses.fields(record)}
