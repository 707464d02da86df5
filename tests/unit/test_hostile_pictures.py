"""Pictures that are not one frame of 8-bit RGB: each is refused by an error of ours."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path
from struct import pack
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tdm_r1.artifacts.picture import KEYWORD, SIGNATURE, read_png
from tdm_r1.errors import CorruptArtifactError


def chunk(kind: bytes, data: bytes) -> bytes:
    return pack(">I", len(data)) + kind + data + pack(">I", zlib.crc32(kind + data))


def png_of(width: int, height: int, data: bytes, depth: int = 8, colour: int = 2) -> bytes:
    header = pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return SIGNATURE + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def good_png() -> bytes:
    return png_of(2, 2, zlib.compress(bytes(2 * (1 + 2 * 3))))


def stamped(text: str) -> Callable[[Path], None]:
    def save(path: Path) -> None:
        note = PngInfo()
        note.add_itxt(KEYWORD, text)
        Image.new("RGB", (2, 2)).save(path, pnginfo=note)

    return save


def mode(name: str) -> Callable[[Path], None]:
    return lambda path: Image.new(name, (2, 2)).save(path, format="PNG")


PICTURES: dict[str, Callable[[Path], Any]] = {
    "grey": mode("L"),
    "palette": mode("P"),
    "alpha": mode("RGBA"),
    "one bit": mode("1"),
    "sixteen bit grey": mode("I;16"),
    "sixteen bit colour": lambda path: path.write_bytes(png_of(2, 2, zlib.compress(bytes(26)), depth=16)),
    "jpeg": lambda path: Image.new("RGB", (2, 2)).save(path, format="JPEG"),
    "no pixels": lambda path: path.write_bytes(png_of(0, 2, zlib.compress(b""))),
    "too few pixels": lambda path: path.write_bytes(png_of(2, 2, zlib.compress(bytes(3)))),
    "cut": lambda path: path.write_bytes(good_png()[:-30]),
    "broken stream": lambda path: path.write_bytes(png_of(2, 2, b"\xff" * 20)),
    "empty": lambda path: path.write_bytes(b""),
    "two frames": lambda path: Image.new("RGB", (2, 2)).save(
        path, format="PNG", save_all=True, append_images=[Image.new("RGB", (2, 2), "red")]
    ),
    "stamp that is none": stamped("{}"),
    "stamp with nan": stamped('{"version": 1, "seed": NaN}'),
    "stamp of lists": stamped("[" * 100_000),
}


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_that_is_no_rgb8_png_is_refused(name: str, tmp_path: Path) -> None:
    PICTURES[name](path := tmp_path / "x.png")
    with pytest.raises(CorruptArtifactError):
        read_png(path)


def test_a_plain_rgb8_png_is_read_and_has_no_stamp(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(good_png())
    picture, stamp = read_png(tmp_path / "x.png")
    assert (picture.size, picture.mode, stamp) == ((2, 2), "RGB", None)
