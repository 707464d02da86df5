"""From a prompt and recognised lines to the OCR reward: pure functions.

r = 1 − d/n with d = 0 if the target is in the recognised text, else min(Levenshtein distance, n), and n the length of
the target; spaces and case do not count. Source: Flow-GRPO, arXiv 2505.05470, visual text rendering.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Final

QUOTED: Final = re.compile('["“”„‟]([^"“”„‟]*)["“”„‟]')
"""Straight or curly, in any combination: tokenizers and editors swap them."""
SAME_ROW: Final = 0.5
"""Distance of two centres, in the smaller height, below which lines are read from left to right."""


@dataclass(frozen=True)
class Line:
    """One piece of text that an engine found."""

    text: str
    confidence: float
    """0 to 1, in the engine's own scale."""
    left: float
    top: float
    right: float
    bottom: float
    """Pixels, y downwards."""

    @property
    def middle(self) -> float:
        return (self.top + self.bottom) / 2

    @property
    def height(self) -> float:
        return self.bottom - self.top

    def beside(self, other: Line) -> bool:
        """Whether both stand in one row."""
        return abs(self.middle - other.middle) < SAME_ROW * min(self.height, other.height)


@dataclass(frozen=True)
class Reading:
    """How far the recognised text is the one that the prompt asks for."""

    reward: float
    """0 to 1, after the length penalty."""
    published: float
    """The same without the penalty."""
    contained: bool
    exact: bool
    similarity: float
    """1 − Levenshtein distance / the longer length: the reward without the substring rule."""
    excess: float
    """Recognised characters beyond the target's, in lengths of the target."""


def target_of(prompt: str) -> str:
    """The text between the first two quotation marks.

    Raises:
        ValueError: when there is none, or it is blank.
    """
    found = QUOTED.search(prompt)
    if found is None:
        raise ValueError(f"the prompt has no text in quotation marks, so nothing can be read for it: {prompt[:80]!r}")
    if not plain(found[1]):
        raise ValueError(f"the quotation marks of the prompt hold no text: {prompt[:80]!r}")
    return found[1]


def plain(text: str) -> str:
    """What is compared: composed characters, no white space, lower case."""
    return "".join(unicodedata.normalize("NFC", text).split()).lower()


def in_reading_order(lines: Sequence[Line]) -> list[Line]:
    """Rows from the top, each from the left. Engines swap the words of a row that is a little rotated."""
    rows: list[list[Line]] = []
    for line in sorted(lines, key=lambda line: (line.middle, line.left)):
        if rows and any(line.beside(other) for other in rows[-1]):
            rows[-1].append(line)
        else:
            rows.append([line])
    return list(chain.from_iterable(sorted(row, key=lambda line: line.left) for row in rows))


def read(recognised: str, target: str, *, length_penalty: float = 0.0) -> Reading:
    """Compare what was recognised with what was asked for.

    Args:
        length_penalty: λ in max(0, r − λ · excess): the substring rule alone pays for a picture full of words.
    """
    from rapidfuzz.distance import Levenshtein

    found, wanted = plain(recognised), plain(target)
    distance = 0 if wanted in found else min(Levenshtein.distance(found, wanted), len(wanted))
    published = 1 - distance / len(wanted)
    excess = max(0, len(found) - len(wanted)) / len(wanted)
    return Reading(
        reward=max(0.0, published - length_penalty * excess),
        published=published,
        contained=wanted in found,
        exact=found == wanted,
        similarity=Levenshtein.normalized_similarity(found, wanted),
        excess=excess,
    )
