"""Safetensors files: named tensors, each looked at without reading the others."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from io import FileIO
from itertools import groupby
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from safetensors import safe_open

from tdm_r1.artifacts.dtypes import STORED, DType
from tdm_r1.artifacts.finite import all_finite
from tdm_r1.artifacts.foreign import refusing
from tdm_r1.artifacts.schema import Bare, require_dtype
from tdm_r1.errors import CorruptArtifactError, SchemaError

if TYPE_CHECKING:
    from torch import Tensor

CHUNK: Final = 256 << 10
"""Bytes that stay in a processor's cache while they are looked at; a multiple of every dtype's width."""
MOST_HEADER_BYTES: Final = 16 << 20
"""Of names, shapes and offsets: some 100 bytes per tensor."""

MOST_NUMBERS: Final = 1 << 60
"""Of a tensor: beside a dim of 0 the library lets any other pass."""


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write named tensors as one safetensors file; a tensor with two names is stored twice."""
    from safetensors.torch import save_file

    save_file(dict(_unshared(tensors.items())), path)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read what `write_tensors` wrote, into memory of our own.

    Raises:
        CorruptArtifactError: for bytes that are no safetensors file, or whose header lies about them.
    """
    with open_tensors(path) as file:
        return {name: tensor.clone() for name, tensor in tensors_of(file)}


def scan_tensors(path: Path, dtype: DType | None) -> dict[str, Bare]:
    """Check each tensor of a file as a record does, with CHUNK bytes of it in memory.

    Args:
        dtype: of each; None for any.

    Returns:
        Dtype and shape of each.

    Raises:
        CorruptArtifactError: as `read_tensors`.
        SchemaError: for another dtype, NaN or an infinity.
    """
    with open_tensors(path, "numpy") as file:
        found = described(file, path, dtype)
    require_finite(path, found)
    return found


def described(file: Any, path: Path, dtype: DType | None = None) -> dict[str, Bare]:
    """Dtype and shape of each tensor of an opened file, in the order of their offsets; as `scan_tensors` refuses."""
    found: dict[str, Bare] = {}
    for name in file.offset_keys():  # the library has checked that one begins where the one before ends
        said = file.get_slice(name)
        stored = STORED.get(said.get_dtype())
        if stored is None:
            raise SchemaError(f"{labelled(path, name)} is {said.get_dtype()}, which no record holds")
        require_dtype(stored.name, labelled(path, name), dtype)
        found[name] = Bare(stored, tuple(said.get_shape()))
        if prod(max(1, dim) for dim in found[name].shape) > MOST_NUMBERS:
            raise CorruptArtifactError(f"{labelled(path, name)} claims the shape {found[name].shape!s:.80}")
    return found


def labelled(path: Path, name: str) -> str:
    return f"`{path.name}`[{name!r:.80}]"


def require_finite(path: Path, tensors: Mapping[str, Bare]) -> None:
    """Refuse NaN and infinity in a file whose header was checked; neighbours of one dtype are one run of numbers.

    Args:
        tensors: in the order of their offsets.
    """
    chunk = memoryview(bytearray(CHUNK))
    with path.open("rb", buffering=0) as data:
        data.seek(8 + int.from_bytes(data.read(8), "little"))
        for dtype, group in groupby(tensors.items(), lambda item: item[1].dtype):
            run, start = dict(group), data.tell()
            if dtype.bits is None:
                data.seek(sum(tensor.nbytes for tensor in run.values()), os.SEEK_CUR)
            elif not is_finite(data, run.values(), chunk):
                data.seek(start)
                name = next(name for name, tensor in run.items() if not is_finite(data, [tensor], chunk))
                raise SchemaError(f"{labelled(path, name)} has a value that is NaN or infinite")


def is_finite(data: FileIO, run: Iterable[Bare], chunk: memoryview) -> bool:
    """Whether the next bytes of a file, which are these tensors of one dtype, hold neither NaN nor infinity."""
    dtype, size = next((tensor.dtype for tensor in run), None), sum(tensor.nbytes for tensor in run)
    return dtype is None or all(all_finite(part, dtype) for part in parts_of(data, size, chunk))


def parts_of(data: FileIO, size: int, chunk: memoryview) -> Iterator[memoryview]:
    """The next `size` bytes of a file, part by part in the same memory."""
    while size:
        part = chunk[: min(size, len(chunk))]
        if data.readinto(part) != len(part):
            raise CorruptArtifactError(f"`{data.name}` ends before its last tensor")
        yield part
        size -= len(part)


@contextmanager
def open_tensors(path: Path, framework: str = "pt") -> Iterator[Any]:
    """Open a safetensors file. The library refuses offsets that overlap, leave gaps or pass the end of the file."""
    with path.open("rb") as file:
        data_start(file.read(8), path.stat().st_size, path.name)
    with refusing(path.name), safe_open(path, framework=framework) as opened:
        yield opened


def data_start(head: bytes, size: int, name: str) -> int:
    """Where the tensors begin in a file of `size` bytes whose first 8 are `head`, or a refusal."""
    header = int.from_bytes(head, "little")
    if not 0 < header <= min(size - 8, MOST_HEADER_BYTES):
        raise CorruptArtifactError(
            f"`{name}` claims a header of {header} bytes in a file of {size}; at most {MOST_HEADER_BYTES} are read"
        )
    return 8 + header


def tensors_of(file: Any) -> Iterator[tuple[str, Tensor]]:
    """Name and tensor, one at a time, mapped from the file: do not write to it."""
    for name in file.keys():  # noqa: SIM118
        yield name, file.get_tensor(name)


def _unshared(items: Iterable[tuple[str, Tensor]]) -> Iterable[tuple[str, Tensor]]:
    seen: set[int] = set()  # safetensors refuses tensors that share memory
    for name, tensor in items:
        address = tensor.data_ptr()
        yield name, tensor.clone() if address in seen and tensor.numel() else tensor
        seen.add(address)
