"""Safetensors files: named tensors, each looked at without reading the others."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from tdm_r1.artifacts.foreign import refusing
from tdm_r1.errors import CorruptArtifactError

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
