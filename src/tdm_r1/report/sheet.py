"""A contact sheet: rows of pictures with their prompt underneath."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

MARGIN = 12
"""Pixels around the sheet and between pictures."""
TEXT = 15
"""Pixels of a letter's height; a line takes 1.4 of them."""
LEAST_SIDE = 192
"""Smaller pictures are enlarged by a whole factor until they reach this many pixels."""

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

INK, PAPER = (27, 31, 36), (255, 255, 255)


def enlarged(image: Tensor) -> Image.Image:
    """[height, width, 3] uint8 to a picture of at least `LEAST_SIDE` pixels, each pixel a square block."""
    picture = Image.fromarray(image.numpy())
    factor = max(1, -(-LEAST_SIDE // min(picture.size)))
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)


def contact_sheet(rows: Sequence[tuple[str, Sequence[Tensor]]], title: str) -> Image.Image:
    """Lay out one row per prompt.

    Args:
        rows: (prompt, pictures [height, width, 3] uint8); all rows alike in number and size.
    """
    font = ImageFont.load_default(size=TEXT)
    pictures = [[enlarged(image) for image in images] for _, images in rows]
    across, high = pictures[0][0].size
    width = MARGIN + len(pictures[0]) * (across + MARGIN)
    letters = max(10, int((width - 2 * MARGIN) / font.getlength("a photo of two") * 14))
    captions = [textwrap.wrap(prompt, letters) or ["(empty prompt)"] for prompt, _ in rows]
    heading, line = textwrap.wrap(title, letters), round(1.4 * TEXT)
    height = 2 * MARGIN + line * len(heading) + sum(high + line * len(c) + 2 * MARGIN for c in captions)
    sheet = Image.new("RGB", (width, height), PAPER)
    draw, top = ImageDraw.Draw(sheet), MARGIN
    top = _write(draw, heading, top, font, line) + MARGIN
    for images, caption in zip(pictures, captions, strict=True):
        for column, image in enumerate(images):
            sheet.paste(image, (MARGIN + column * (across + MARGIN), top))
        top = _write(draw, caption, top + high + MARGIN // 2, font, line) + MARGIN
    return sheet


def _write(draw: ImageDraw.ImageDraw, lines: Sequence[str], top: int, font: Font, line: int) -> int:
    """Write lines at the left margin; where the next thing may stand."""
    for text in lines:
        draw.text((MARGIN, top), text, fill=INK, font=font)
        top += line
    return top
