"""Dtypes of stored tensors, by name: a file is judged without the library that computes with it.

An auditor's machine needs no torch, and a command that only looks at a run does not wait for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Bits:
    """Of one float: an unsigned integer of its width, all bits but the sign, and infinity as such a number."""

    dtype: type[np.unsignedinteger[Any]]
    magnitude: np.unsignedinteger[Any]
    infinity: int


@dataclass(frozen=True)
class DType:
    """A dtype of numpy and torch."""

    name: str
    """As both libraries call it."""
    itemsize: int
    """Bytes."""
    bits: Bits | None = None
    """Of a dtype that knows NaN."""

    def __str__(self) -> str:
        return self.name

    @property
    def torch(self) -> torch.dtype:
        """The same one, of the library."""
        import torch

        found = getattr(torch, self.name)
        assert isinstance(found, torch.dtype)
        return found


BYTE: Final = np.uint8(0x7F)
HALF: Final = np.uint16(0x7FFF)
SINGLE: Final = Bits(np.uint32, np.uint32(0x7FFF_FFFF), 0x7F80_0000)

UINT8: Final = DType("uint8", 1)
INT64: Final = DType("int64", 8)
FLOAT16: Final = DType("float16", 2, Bits(np.uint16, HALF, 0x7C00))
FLOAT32: Final = DType("float32", 4, SINGLE)
FLOAT64: Final = DType("float64", 8, Bits(np.uint64, np.uint64((1 << 63) - 1), 0x7FF0_0000_0000_0000))

STORED: Final[Mapping[str, DType]] = MappingProxyType(
    {
        **{"U8": UINT8, "I64": INT64, "F16": FLOAT16, "F32": FLOAT32, "F64": FLOAT64},
        "BF16": DType("bfloat16", 2, Bits(np.uint16, HALF, 0x7F80)),
        "C64": DType("complex64", 8, SINGLE),
        "F8_E4M3": DType("float8_e4m3fn", 1, Bits(np.uint8, BYTE, 0x7F)),  # it has NaN and no infinity
        "F8_E5M2": DType("float8_e5m2", 1, Bits(np.uint8, BYTE, 0x7C)),
        **{"BOOL": DType("bool", 1), "I8": DType("int8", 1), "I16": DType("int16", 2), "I32": DType("int32", 4)},
        **{"U16": DType("uint16", 2), "U32": DType("uint32", 4), "U64": DType("uint64", 8)},
    }
)
"""By their names in the header of a safetensors file."""
NAMES: Final = frozenset(dtype.name for dtype in STORED.values())
ARROW: Final[Mapping[DType, pa.DataType]] = MappingProxyType(
    {UINT8: pa.uint8(), INT64: pa.int64(), FLOAT16: pa.float16(), FLOAT32: pa.float32(), FLOAT64: pa.float64()}
)
"""Those that a Parquet column can hold as a list of numbers."""
