"""Safetensors files: named tensors, each looked at without reading the others."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from io import FileIO
from itertools import groupby
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from tdm_r1.artifacts.finite import FLOATS, all_finite
from tdm_r1.artifacts.foreign import refusing
from tdm_r1.artifacts.schema import check_tensor, is_finite
from tdm_r1.errors import CorruptArtifactError, SchemaError

CHUNK: Final = 256 << 10
"""Bytes that stay in a processor's cache while they are looked at; a multiple of every dtype's width."""
DTYPES: Final[Mapping[str, torch.dtype]] = MappingProxyType(
    {
        **{"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64},
        **{"C64": torch.complex64, "BOOL": torch.bool, "U8": torch.uint8},
        **{"I8": torch.int8, "I16": torch.int16, "I32": torch.int32, "I64": torch.int64},
    }
)
"""By their names in a header; those of other names are checked whole."""
MOST_HEADER_BYTES: Final = 16 << 20
"""Of names, shapes and offsets: some 100 bytes per tensor."""


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write named tensors as one safetensors file; a tensor with two names is stored twice."""
    save_file(dict(_unshared(tensors.items())), path)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read what `write_tensors` wrote, into memory of our own.

    Raises:
        CorruptArtifactError: for bytes that are no safetensors file, or whose header lies about them.
    """
    with open_tensors(path) as file:
        return {name: tensor.clone() for name, tensor in tensors_of(file)}


def scan_tensors(path: Path, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """Check each tensor of a file as a record does, with CHUNK bytes of it in memory.

    Args:
        dtype: of each; None for any.

    Returns:
        Tensors on the device `meta`: shape and dtype without values.

    Raises:
        CorruptArtifactError: as `read_tensors`.
        SchemaError: for another dtype, NaN or an infinity.
    """
    found: dict[str, Tensor] = {}
    with open_tensors(path) as file:
        for name in file.offset_keys():  # the library has checked that one begins where the one before ends
            said = file.get_slice(name)
            stored = DTYPES.get(said.get_dtype())
            tensor = (
                file.get_tensor(name) if stored is None else torch.empty(said.get_shape(), dtype=stored, device="meta")
            )
            found[name] = check_tensor(tensor, labelled(path, name), dtype).to("meta")
        require_finite(path, file, found)
    return found


def labelled(path: Path, name: str) -> str:
    return f"`{path.name}`[{name!r:.80}]"


def require_finite(path: Path, file: Any, tensors: Mapping[str, Tensor]) -> None:
    """Refuse NaN and infinity in an opened file; neighbours of one dtype are looked at as one run of numbers.

    Args:
        tensors: on the device `meta`, in the order of their offsets.
    """
    chunk = memoryview(bytearray(CHUNK))
    with path.open("rb", buffering=0) as data:
        data.seek(8 + int.from_bytes(data.read(8), "little"))
        for dtype, group in groupby(tensors.items(), lambda item: item[1].dtype):
            run = dict(group)
            size = sum(tensor.nbytes for tensor in run.values())
            if dtype not in FLOATS:
                data.seek(size, os.SEEK_CUR)
            elif not all(all_finite(part, dtype) for part in parts_of(data, size, chunk)):
                name = next((name for name in run if not is_finite(file.get_tensor(name))), next(iter(run)))
                raise SchemaError(f"{labelled(path, name)} has a value that is NaN or infinite")


def parts_of(data: FileIO, size: int, chunk: memoryview) -> Iterator[memoryview]:
    """The next `size` bytes of a file, part by part in the same memory."""
    while size:
        part = chunk[: min(size, len(chunk))]
        if data.readinto(part) != len(part):
            raise CorruptArtifactError(f"`{data.name}` ends before its last tensor")
        yield part
        size -= len(part)


@contextmanager
def open_tensors(path: Path) -> Iterator[Any]:
    """Open a safetensors file. The library refuses offsets that overlap, leave gaps or pass the end of the file."""
    size = path.stat().st_size
    with path.open("rb") as file:
        header = int.from_bytes(file.read(8), "little")
    if not 0 < header <= min(size - 8, MOST_HEADER_BYTES):
        raise CorruptArtifactError(
            f"`{path.name}` claims a header of {header} bytes in a file of {size}; at most {MOST_HEADER_BYTES} are read"
        )
    with refusing(path.name), safe_open(path, framework="pt") as opened:
        yield opened


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
