"""Rows of the tensors in a stored file, read block by block: what is not asked for is neither fetched nor hashed."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tdm_r1.artifacts.blocks import block_span, covering
from tdm_r1.artifacts.foreign import REBUILD, refusing
from tdm_r1.artifacts.manifest import FileEntry
from tdm_r1.artifacts.schema import Bare
from tdm_r1.artifacts.store import Store, storage_errors
from tdm_r1.artifacts.tensors import data_start, described, open_tensors
from tdm_r1.errors import CorruptArtifactError, SchemaError

if TYPE_CHECKING:
    from torch import Tensor

PARALLEL: Final = 4
"""Blocks that are read at a time: so many are in memory beside the rows."""


@dataclass(frozen=True)
class Blocks:
    """The blocks of one stored file whose manifest has their hashes."""

    store: Store
    key: str
    entry: FileEntry

    def read(self, number: int) -> bytes:
        """One block, once read and verified.

        Raises:
            CorruptArtifactError: when it is not what the manifest says. It is not read again.
        """
        assert self.entry.blocks is not None
        start, end = block_span(number, self.entry.size)
        data, expected = self.store.read_range(self.key, start, end - start), self.entry.blocks[number]
        if (found := sha256(data).hexdigest()) != expected:
            raise CorruptArtifactError(
                f"block {number} of `{self.entry.stored_as}`, bytes {start} to {end}, has {len(data)} bytes with "
                f"sha256 {found} but {expected} is expected",
                hint=REBUILD,
            )
        return data


@dataclass(frozen=True)
class Header:
    """What the head of a file says of its tensors."""

    tensors: Mapping[str, Bare]
    """In the order of their offsets, without gaps."""
    start: int
    """Byte at which the first begins."""
    blocks: Mapping[int, bytes]
    """That were read for it; the last may hold rows, too."""


def read_rows(blocks: Blocks, name: str, rows: Sequence[int]) -> dict[str, Tensor]:
    """Rows of every tensor of a safetensors file, [len(rows), ...] each, in the order of `rows`.

    Args:
        name: of the file, for messages.

    Raises:
        CorruptArtifactError: for a block that is not what the manifest says, or no safetensors file.
        SchemaError: for a row that is not there.
    """
    header = read_header(blocks, name)
    found, start = {}, header.start
    pieces: dict[int, list[tuple[int, memoryview]]] = {}
    for tensor, bare in header.tensors.items():
        require_rows_of(bare.shape, rows, f"`{name}`[{tensor!r:.80}]")
        found[tensor], places = empty_rows(bare, rows, name)
        width = len(places) // len(rows) if rows else 0
        for place, row in enumerate(rows):
            first = start + row * width
            for number in covering(first, first + width):
                pieces.setdefault(number, []).append((first, places[place * width : (place + 1) * width]))
        start += bare.nbytes

    def fill(number: int) -> None:
        data = header.blocks.get(number) or blocks.read(number)
        begin, end = block_span(number, blocks.entry.size)
        for first, place in pieces[number]:
            low, high = max(first, begin), min(first + len(place), end)
            place[low - first : high - first] = data[low - begin : high - begin]

    with ThreadPoolExecutor(PARALLEL) as pool:
        for _ in pool.map(fill, sorted(pieces)):  # the first that fails cancels those that have not begun
            pass
    return found


def read_header(blocks: Blocks, name: str) -> Header:
    """Read no more than the blocks of the header, and let the library check it, in a file that holds nothing else."""
    size, read = blocks.entry.size, {number: blocks.read(number) for number in covering(0, min(8, blocks.entry.size))}
    start = data_start(b"".join(read.values())[:8], size, name)
    read |= {number: blocks.read(number) for number in covering(0, start) if number not in read}
    with tempfile.TemporaryDirectory(prefix="tdm-r1-") as scratch:
        path = Path(scratch, name)
        with storage_errors(str(path)), path.open("wb") as file:
            file.truncate(size)  # a hole: it takes no room
            for data in read.values():
                file.write(data)
        with open_tensors(path, "numpy") as opened:
            return Header(described(opened, path), start, read)


def require_rows_of(shape: Sequence[int], rows: Iterable[int], label: str) -> None:
    """Refuse a row that a tensor of this shape does not have."""
    count = shape[0] if shape else 0
    if outside := [row for row in rows if not 0 <= row < count]:
        raise SchemaError(f"{label} has {count} rows but row {outside[0]} is asked for")


def empty_rows(bare: Bare, rows: Sequence[int], name: str) -> tuple[Tensor, memoryview]:
    """A tensor for so many rows of `bare`, and its bytes to write to."""
    import torch

    with refusing(name):
        tensor = torch.empty((len(rows), *bare.shape[1:]), dtype=bare.dtype.torch)
        return tensor, tensor.reshape(-1).view(torch.uint8).numpy().data
