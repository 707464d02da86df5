"""PNG files that say where they come from, and what is believed of a PNG that somebody hands in."""

from __future__ import annotations

import hashlib
import struct
import warnings
from pathlib import Path
from typing import Annotated, Final, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tdm_r1.artifacts.foreign import refusing
from tdm_r1.artifacts.manifest import Digest
from tdm_r1.artifacts.seal import canonical_json
from tdm_r1.errors import CorruptArtifactError

KEYWORD: Final = "tdm-r1"
"""Of the PNG text chunk."""
MOST_PIXELS: Final = 64 << 20
SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
RGB8: Final = (8, 2)
"""Bit depth and colour type."""

Small = Annotated[int, Field(strict=True, ge=0, lt=1 << 63)]


class Stamp(BaseModel):
    """Where a picture comes from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    run: str | None
    """Root of the run, as it was given; null for an exported generator."""
    iteration: Small | None
    """Whose generator; null when the export does not say."""
    record: Digest | None
    """Digest of the generator's manifest."""
    config: Digest
    """Digest of the run's configuration."""
    prompts: tuple[str, ...]
    """From top to bottom."""
    count: Small
    """Images per prompt."""
    seed: int
    """Of the noise."""
    code_version: str
    pixels: Digest
    """SHA-256 of the picture's size and RGB bytes."""


def pixel_digest(image: Image.Image) -> str:
    """SHA-256 of width, height and RGB bytes."""
    return _digest(*image.size, image.tobytes())


def picture_digest(pixels: npt.NDArray[np.uint8]) -> str:
    """`pixel_digest` of an array [height, width, RGB]."""
    height, width, _ = pixels.shape
    return _digest(width, height, np.ascontiguousarray(pixels).tobytes())


def _digest(width: int, height: int, pixels: bytes) -> str:
    return hashlib.sha256(struct.pack(">II", width, height) + pixels).hexdigest()


def write_png(image: Image.Image, path: Path, stamp: Stamp) -> None:
    """Write an RGB picture with its stamp; equal content, equal bytes for one version of Pillow."""
    about = PngInfo()
    about.add_itxt(KEYWORD, canonical_json(stamp.model_dump(mode="json")).decode())
    image.save(path, format="PNG", pnginfo=about)


def read_png(path: Path) -> tuple[Image.Image, Stamp | None]:
    """Decode a PNG of 8-bit RGB, and its stamp when it has one.

    Raises:
        CorruptArtifactError: for bytes that are no PNG, another pixel format, a picture too large to decode,
            or a stamp that is none.
    """
    require_rgb8(path)
    with refusing(path.name), warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(path, formats=["PNG"]) as image:
            if getattr(image, "n_frames", 1) != 1 or image.mode != "RGB":
                raise CorruptArtifactError(f"`{path}` is no single RGB picture: mode {image.mode}")
            image.load()
            text = image.info.get(KEYWORD)
            picture = image.copy()
    return picture, None if text is None else read_stamp(str(text), path.name)


def require_rgb8(path: Path) -> None:
    """Look at the header alone, before a decoder reserves memory for what it claims."""
    with path.open("rb") as file:
        header = file.read(26)
    if len(header) < 26 or not header.startswith(SIGNATURE) or header[12:16] != b"IHDR":
        raise CorruptArtifactError(f"`{path}` is no PNG file", hint="give a picture that `tdm-r1 sample` wrote")
    width, height, depth, colour = struct.unpack(">IIBB", header[16:26])
    if (depth, colour) != RGB8:
        raise CorruptArtifactError(
            f"`{path}` has {depth} bits per channel and colour type {colour}, but 8 and 2 (RGB) are expected"
        )
    if not 0 < width * height <= MOST_PIXELS:
        raise CorruptArtifactError(f"`{path}` claims {width} × {height} pixels, more than {MOST_PIXELS:,} or none")


def read_stamp(text: str, label: str) -> Stamp:
    """Parse a stamp."""
    try:
        return Stamp.model_validate_json(text)
    except ValidationError as error:
        raise CorruptArtifactError(f"`{label}` has no valid stamp: {error.errors()[0]['msg']}") from error
