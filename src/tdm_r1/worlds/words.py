"""The world `words`: two characters, written large, in any of four weights, a little moved, in a named colour.

What is held out is strings: a third of all pairs of characters, none of which is ever drawn for training, while each
character is in training at both places. Pictures are 64×64; what they say is judged by a real OCR engine
(`rewards/words.py`), so the alphabet leaves out what a reader confuses in any font, such as O and 0.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from itertools import product
from types import MappingProxyType
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from tdm_r1.worlds.world import WorldPrompt

Image = NDArray[np.uint8]
Color = tuple[int, int, int]

SIDE: Final = 64
LETTERS: Final = "ABCDEFHKLMNPRSTX"
DIGITS: Final = "234679"
TAGS: Final = ("letters", "digits", "mixed")
INKS: Final[Mapping[str, Color]] = MappingProxyType(
    {"white": (255, 255, 255), "yellow": (255, 220, 40), "cyan": (80, 220, 255), "orange": (255, 140, 80)}
)
GROUNDS: Final[Mapping[str, Color]] = MappingProxyType(
    {"black": (0, 0, 0), "navy": (20, 24, 90), "teal": (0, 70, 60), "brown": (80, 40, 20), "gray": (60, 60, 60)}
)
FONTS: Final = (
    cv2.FONT_HERSHEY_SIMPLEX,
    cv2.FONT_HERSHEY_DUPLEX,
    cv2.FONT_HERSHEY_COMPLEX,
    cv2.FONT_HERSHEY_TRIPLEX,
)
SCALES: Final = (1.3, 1.7)
"""Least and most size, in OpenCV's unit."""
WIDTH: Final = 54
"""Pixels that a pair may take."""
SHIFT: Final = (3.0, 5.0)
"""Pixels by which it may lie beside the middle, across and up or down."""
CAPITAL: Final = 0.76
"""Height of a capital, in that of a line."""
HELD_OUT: Final = 3
"""One string of so many is held out."""
COLORS_EACH: Final = 4
"""Prompts per string, in colours of their own."""


@dataclass(frozen=True)
class Prompt:
    """What a picture shall show."""

    text: str
    ink: str
    ground: str

    @property
    def sentence(self) -> str:
        """In quotation marks, as scorers of written text look for it."""
        return f'"{self.text}" in {self.ink} on {self.ground}'

    @property
    def tag(self) -> str:
        """What kind of characters."""
        return "letters" if self.text.isalpha() else "digits" if self.text.isdigit() else "mixed"


def is_held_out(text: str) -> bool:
    """By the hash of the string, so that no list has to be kept."""
    return hashlib.sha256(text.encode()).digest()[0] % HELD_OUT == 0


@cache
def split() -> tuple[dict[str, list[Prompt]], dict[str, list[Prompt]]]:
    """Training and held-out prompts by tag."""
    found: tuple[dict[str, list[Prompt]], dict[str, list[Prompt]]] = ({}, {})
    colors = list(product(INKS, GROUNDS))
    for number, pair in enumerate(product(LETTERS + DIGITS, repeat=2)):
        text = "".join(pair)
        for turn in range(COLORS_EACH):
            prompt = Prompt(text, *colors[(7 * number + 3 * turn) % len(colors)])
            found[is_held_out(text)].setdefault(prompt.tag, []).append(prompt)
    return found


def vocabulary() -> frozenset[str]:
    """Every word of a sentence but the string itself."""
    return frozenset({"in", "on", *INKS, *GROUNDS})


def render(prompt: Prompt, rng: np.random.Generator) -> Image:
    """A picture [64, 64, 3] uint8 RGB of a prompt; weight, size and place are drawn."""
    picture = np.full((SIDE, SIDE, 3), GROUNDS[prompt.ground], np.uint8)
    font, thickness = FONTS[rng.integers(len(FONTS))], int(rng.integers(3, 5))
    scale = rng.uniform(*SCALES)
    (width, _), _ = cv2.getTextSize(prompt.text, font, scale, thickness)
    scale *= min(1.0, WIDTH / width)
    (width, height), _ = cv2.getTextSize(prompt.text, font, scale, thickness)
    across, along = (rng.uniform(-most, most) for most in SHIFT)
    corner = round((SIDE - width) / 2 + across), round((SIDE + CAPITAL * height) / 2 + along)
    cv2.putText(picture, prompt.text, corner, font, scale, INKS[prompt.ink], thickness, cv2.LINE_AA)
    return picture


@dataclass(frozen=True)
class WordsWorld:
    """A tag for letters, for digits and for one of each."""

    def prompts(self) -> list[WorldPrompt]:
        return [
            WorldPrompt(f"{name}-{tag}-{number:04d}", prompt.sentence, tag, name, _metadata(prompt))
            for name, part in zip(("train", "test"), split(), strict=True)
            for tag in TAGS
            for number, prompt in enumerate(part[tag])
        ]


def _metadata(prompt: Prompt) -> dict[str, Any]:
    return {"tag": prompt.tag, "text": prompt.text}
