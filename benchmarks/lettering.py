"""Pictures of written text for the OCR benchmark and its tests: coloured, tilted, noisy, in fonts of matplotlib."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Final

import matplotlib
import numpy as np
from PIL import Image as Pillow
from PIL import ImageDraw, ImageFont

from tdm_r1.rewards.protocol import Image

FONTS: Final = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSerif", "DejaVuSerif-BoldItalic", "DejaVuSansMono-Bold")
WORDS_PER_ROW: Final = 2


@lru_cache(maxsize=16)
def font(name: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf", size)


def lettering(text: str, side: int, seed: int, *, fill: float = 0.85, tilt: float = 4.0, noise: float = 8.0) -> Image:
    """A text on a flat ground of a contrasting colour, two words per row.

    Args:
        side: pixels of the square picture.
        fill: share of the side that the longest row takes.
        tilt: degrees, the text is turned by up to this.
        noise: standard deviation of the Gaussian noise, in grey levels.
    """
    rng = np.random.default_rng(seed)
    words = text.split()
    rows = "\n".join(" ".join(words[at : at + WORDS_PER_ROW]) for at in range(0, len(words), WORDS_PER_ROW))
    name, size = FONTS[rng.integers(len(FONTS))], side
    draw = ImageDraw.Draw(Pillow.new("RGB", (side, side)))
    while True:
        left, top, right, bottom = draw.multiline_textbbox((0, 0), rows, font=font(name, size))
        if right - left <= fill * side and bottom - top <= fill * side:
            break
        size -= max(1, size // 16)
    ground = rng.integers(0, 256, 3)
    ink = np.where(ground < 128, 255, 0)
    picture = Pillow.new("RGB", (side, side), tuple(map(int, ground)))
    place = ((side - right - left) / 2, (side - top - bottom) / 2)
    ImageDraw.Draw(picture).multiline_text(place, rows, font=font(name, size), fill=tuple(map(int, ink)))
    turned = picture.rotate(rng.uniform(-tilt, tilt), Pillow.Resampling.BICUBIC, fillcolor=tuple(map(int, ground)))
    noisy = np.asarray(turned, np.float64) + rng.normal(0, noise, (side, side, 3))
    return noisy.clip(0, 255).astype(np.uint8)
