"""Whether stored floats are finite, told by their bits: no arithmetic, no warning, one rule for every width."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray


class Bits(NamedTuple):
    """Of one float: an unsigned integer of its width, all bits but the sign, and infinity as such a number."""

    dtype: type[np.unsignedinteger[Any]]
    magnitude: np.unsignedinteger[Any]
    infinity: int


HALF: Final = np.uint16(0x7FFF)
SINGLE: Final = Bits(np.uint32, np.uint32(0x7FFF_FFFF), 0x7F80_0000)
FLOATS: Final[Mapping[torch.dtype, Bits]] = MappingProxyType(
    {
        torch.float16: Bits(np.uint16, HALF, 0x7C00),
        torch.bfloat16: Bits(np.uint16, HALF, 0x7F80),
        torch.float32: SINGLE,
        torch.complex64: SINGLE,
        torch.float64: Bits(np.uint64, np.uint64((1 << 63) - 1), 0x7FF0_0000_0000_0000),
    }
)
INTEGERS: Final = frozenset({torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64})


def all_finite(values: NDArray[Any] | memoryview, dtype: torch.dtype) -> bool:
    """Whether no element of contiguous `values` of this dtype, or of its bytes, is NaN or infinite.

    Without its sign, such a float is at least infinity as an unsigned number (IEEE 754-2019, 3.4).

    Raises:
        KeyError: for a dtype that is neither in `FLOATS` nor in `INTEGERS`.
    """
    if dtype in INTEGERS:
        return True
    kind, magnitude, infinity = FLOATS[dtype]
    bits = np.frombuffer(values, kind) if isinstance(values, memoryview) else values.view(kind)
    return bool((bits & magnitude).max(initial=0) < infinity)
