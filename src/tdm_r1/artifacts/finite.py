"""Whether stored floats are finite, told by their bits: no arithmetic, no warning, one rule for every width."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tdm_r1.artifacts.dtypes import DType


def all_finite(values: NDArray[Any] | memoryview, dtype: DType) -> bool:
    """Whether no element of contiguous `values` of this dtype, or of its bytes, is NaN or infinite.

    Without its sign, such a float is at least infinity as an unsigned number (IEEE 754-2019, 3.4).
    """
    if dtype.bits is None:
        return True
    kind, magnitude = dtype.bits.dtype, dtype.bits.magnitude
    bits = np.frombuffer(values, kind) if isinstance(values, memoryview) else values.view(kind)
    return bool((bits & magnitude).max(initial=0) < dtype.bits.infinity)
