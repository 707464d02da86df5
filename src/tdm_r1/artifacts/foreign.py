"""The border to libraries that parse files: whatever they raise on bytes that are no record is one refusal."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import pyarrow as pa
from PIL import Image
from safetensors import SafetensorError

from tdm_r1.errors import CorruptArtifactError

REBUILD = "restore the file from a copy, or delete its directory and run the stage again"
FOREIGN: Final = (
    *(pa.ArrowException, SafetensorError, Image.DecompressionBombError, Image.DecompressionBombWarning),
    *(ValueError, TypeError, LookupError, ArithmeticError, RuntimeError, EOFError, SyntaxError),
    *(struct.error, zlib.error),
)
"""Pillow calls a broken PNG a SyntaxError."""
SHOWN: Final = 300
"""Characters of a library's message: it may quote the file."""


@contextmanager
def refusing(what: str) -> Iterator[None]:
    """Turn what pyarrow, safetensors, Pillow, numpy and torch raise while they parse `what` into CorruptArtifactError.

    An operating system's error passes: a disk that fails or is full says nothing about the bytes.
    """
    try:
        yield
    except OSError as error:
        if error.errno is not None:  # pyarrow raises OSError without a number for bytes that it cannot parse
            raise
        raise _corrupt(what, error) from error
    except FOREIGN as error:
        raise _corrupt(what, error) from error


def _corrupt(what: str, error: Exception) -> CorruptArtifactError:
    said = " ".join(str(error).split())[:SHOWN]
    return CorruptArtifactError(f"`{what}` cannot be read: {type(error).__name__}: {said}", hint=REBUILD)
