"""Tensors with one entry per row, as columns of a Parquet table.

An entry is one binary value of fixed width: its elements in C order, little-endian, with dtype and shape in the
metadata of the column. Version 1 of a record held Arrow's fixed-shape tensors, which Parquet stores as lists of
single numbers; they are still read, and written for the replay of such a record. Reading them costs ten times
as much as reading bytes (`python benchmarks/audit.py` measures what is left).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from math import prod
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tdm_r1.artifacts.dtypes import ARROW
from tdm_r1.artifacts.schema import RowsSpec
from tdm_r1.errors import SchemaError

if TYPE_CHECKING:
    from torch import Tensor

DTYPE, SHAPE = b"dtype", b"shape"
"""Keys of a column's metadata: the name of a numpy dtype, and the shape of an entry as JSON."""
MOST_ENTRY_BYTES: Final = 1 << 30


def rows_column(name: str, spec: RowsSpec, tensor: Tensor, *, lists: bool) -> tuple[pa.Field, pa.Array]:
    """Field and values of a contiguous [N, ...] tensor, without a copy on the CPU; `lists` is version 1's layout."""
    entry, values = tuple(tensor.shape[1:]), tensor.cpu().contiguous().numpy()
    if lists:
        dtype = pa.fixed_shape_tensor(ARROW[spec.dtype], entry)
        flat = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), type=dtype.storage_type)
        return pa.field(name, dtype, nullable=False), pa.ExtensionArray.from_storage(dtype, flat)
    width = prod(entry) * values.itemsize
    metadata = {DTYPE: values.dtype.name, SHAPE: json.dumps(list(entry))}
    column = pa.Array.from_buffers(pa.binary(width), len(values), [None, pa.py_buffer(values)])
    return pa.field(name, column.type, nullable=False, metadata=metadata), column


def entry_shape(field: pa.Field, spec: RowsSpec) -> tuple[int, ...]:
    """The shape of one entry that a stored column declares.

    Raises:
        SchemaError: when dtype, number of dims or width are not those of `spec`, or a dim is negative or absurd.
    """
    if isinstance(field.type, pa.FixedShapeTensorType):
        shape, right = tuple(field.type.shape), field.type.value_type == ARROW[spec.dtype]
    else:
        shape, dtype = described(field)
        right = dtype == spec.dtype.name and field.type == pa.binary(prod(shape) * spec.dtype.itemsize)
    if not right:
        raise SchemaError(f"column {field.name} of type {field.type} cannot hold rows of {spec.dtype}, shape {shape}")
    if len(shape) != len(spec.dims) - 1 or min(shape, default=1) < 0:
        raise SchemaError(f"column {field.name} holds entries of shape {shape} but {spec.dims[1:]} is declared")
    return shape


def described(field: pa.Field) -> tuple[tuple[int, ...], str]:
    """Shape of an entry and name of its dtype, as the metadata of a binary column has them."""
    metadata = field.metadata or {}
    try:
        shape = json.loads(metadata.get(SHAPE, b"null"))
    except (ValueError, RecursionError):
        shape = None
    if not isinstance(shape, list) or not all(type(dim) is int and 0 <= dim <= MOST_ENTRY_BYTES for dim in shape):
        raise SchemaError(f"column {field.name} of type {field.type} does not say the shape of its entries")
    if prod(shape) > MOST_ENTRY_BYTES:
        raise SchemaError(f"column {field.name} has entries of shape {shape}, more than {MOST_ENTRY_BYTES:,} numbers")
    return tuple(shape), metadata.get(DTYPE, b"").decode("ascii", "replace")


def entries(batches: Iterable[pa.Array], spec: RowsSpec) -> Iterator[npt.NDArray[np.generic]]:
    """The batches of a stored column as flat read-only arrays, without a copy."""
    for batch in batches:
        if batch.null_count:
            raise SchemaError(f"{batch.null_count} rows of {spec.dtype} are null but none may be")
        if isinstance(batch.type, pa.FixedSizeBinaryType):
            yield from flat_entries([batch], spec.dtype.name)
        else:
            yield batch.storage.flatten().to_numpy(zero_copy_only=False)


def flat_entries(batches: Iterable[pa.Array], dtype: str) -> Iterator[npt.NDArray[np.generic]]:
    """The batches of a binary column as flat read-only arrays, without a copy."""
    for batch in (batch for batch in batches if len(batch)):
        width = batch.type.byte_width
        yield np.frombuffer(batch.buffers()[1].slice(batch.offset * width, len(batch) * width), dtype=dtype)


def fill_rows(target: Tensor, batches: Iterable[pa.Array], spec: RowsSpec) -> None:
    """Copy a stored column into `target` [rows, ...]."""
    flat, start = target.reshape(-1).numpy(), 0
    for values in entries(batches, spec):
        flat[start : start + len(values)] = values
        start += len(values)
