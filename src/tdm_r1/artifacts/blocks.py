"""Blocks of a file: hashes of consecutive parts, so that a part can be verified without the rest."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

BLOCK_BYTES: Final = 16 << 20
"""Of every block but the last. Manifests are written with it: another number makes their `blocks` unreadable."""
CHUNK: Final = 1 << 20
"""Bytes that are read and hashed at a time."""


@dataclass(frozen=True)
class Hashes:
    """What a file hashes to, in lower-case hex."""

    sha256: str
    blocks: tuple[str, ...] | None
    """SHA-256 of each `BLOCK_BYTES`; None when they were not asked for."""


def block_count(size: int) -> int:
    """Blocks of a file of `size` bytes."""
    return -(-size // BLOCK_BYTES)


def block_span(number: int, size: int) -> tuple[int, int]:
    """First byte of a block of a file of `size` bytes, and the one after its last."""
    return number * BLOCK_BYTES, min((number + 1) * BLOCK_BYTES, size)


def covering(start: int, end: int) -> range:
    """Numbers of the blocks that hold the bytes from `start` to before `end`."""
    return range(start // BLOCK_BYTES, block_count(end)) if end > start else range(0)


def hash_file(path: Path, *, blocks: bool) -> Hashes:
    """Hash a file and, if asked, each of its blocks, in one pass over it."""
    with path.open("rb") as file:
        if not blocks:
            return Hashes(hashlib.file_digest(file, "sha256").hexdigest(), None)
        whole, found = hashlib.sha256(), []
        block, room = hashlib.sha256(), BLOCK_BYTES
        while chunk := file.read(min(CHUNK, room)):
            whole.update(chunk)
            block.update(chunk)
            room -= len(chunk)
            if not room:
                found.append(block.hexdigest())
                block, room = hashlib.sha256(), BLOCK_BYTES
        if room < BLOCK_BYTES:
            found.append(block.hexdigest())
    return Hashes(whole.hexdigest(), tuple(found))
