"""Pictures as scorers want them, or the reason why one is refused.

A wrong picture that a scorer accepts silently looks like a bad policy: four channels or NaN give an empty
text, and so a reward of 0. So every picture is checked before a scorer sees it.
"""

from __future__ import annotations

import io
import warnings
from typing import Any, Final

import numpy as np

from tdm_r1.rewards.protocol import Image

MAX_PIXELS: Final = 16_777_216
"""4096 × 4096."""
MAX_ASPECT: Final = 20.0
"""Longer over shorter side."""


class BadImageError(ValueError):
    """A picture that no scorer should see."""


def as_image(picture: Any, min_side: int = 8) -> Image:
    """Check an array, or decode the bytes of a picture file.

    Args:
        picture: [height, width, 3] uint8 RGB, or the bytes of a PNG, WebP or JPEG file in mode RGB.
        min_side: smallest height and width, in pixels.

    Raises:
        BadImageError: with what was found and what is expected.
    """
    array = _decode(bytes(picture), min_side) if isinstance(picture, bytes | bytearray | memoryview) else picture
    if not isinstance(array, np.ndarray):
        raise BadImageError(f"a {type(array).__name__} is no picture, expected an array or the bytes of a file")
    if array.ndim != 3 or array.shape[2] != 3:
        raise BadImageError(f"the picture has shape {array.shape}, expected (height, width, 3)")
    _check_size(array.shape[1], array.shape[0], min_side)
    if array.dtype != np.uint8:
        finite = array.dtype.kind != "f" or bool(np.isfinite(array).all())
        raise BadImageError(f"the picture is {array.dtype}{'' if finite else ' with NaN'}, expected uint8")
    return np.ascontiguousarray(array)


def _decode(content: bytes, min_side: int) -> Image:
    from PIL import Image as Pillow

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Pillow.DecompressionBombWarning)  # refused below, by size
            picture = Pillow.open(io.BytesIO(content))
        _check_size(*picture.size, min_side)
        if picture.mode != "RGB":
            raise BadImageError(f"the picture has mode {picture.mode}, expected RGB")
        picture.load()
    except BadImageError:
        raise
    except Exception as error:  # decoders raise what they like: OSError, SyntaxError, struct.error
        raise BadImageError(f"the file cannot be decoded: {error}") from error
    return np.array(picture)  # `asarray` may not be written into, and a scorer may do so


def _check_size(width: int, height: int, min_side: int) -> None:
    short, long = sorted((width, height))
    if short < min_side:
        raise BadImageError(f"the picture is {width}×{height}, expected sides of at least {min_side}")
    if width * height > MAX_PIXELS:
        raise BadImageError(f"the picture is {width}×{height}, expected at most {MAX_PIXELS:,} pixels")
    if long > MAX_ASPECT * short:
        raise BadImageError(f"the picture is {width}×{height}, expected sides of at most {MAX_ASPECT:g}:1")
