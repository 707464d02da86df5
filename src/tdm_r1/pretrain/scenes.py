"""What an embedded world shows its autoencoder and its teacher: captioned pictures of the training split."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tdm_r1.worlds import words
from tdm_r1.worlds.shapes import grammar
from tdm_r1.worlds.shapes import render as figures

Picture = NDArray[np.uint8]
Log = Callable[[str], None]


@dataclass(frozen=True)
class Scenes:
    """One world."""

    tags: Sequence[str]
    draw: Callable[[str, np.random.Generator], tuple[str, Picture]]
    """A caption of a tag, and a picture of it [64, 64, 3]."""
    vocabulary: frozenset[str]
    """Words of captions that are one token each."""
    characters: str = ""
    """What is spelt, a token for each: strings that a caption quotes."""

    def pictures(self, seed: int) -> Iterator[Picture]:
        """Endless; tags in turn."""
        rng = np.random.default_rng(seed)
        while True:
            for tag in self.tags:
                yield self.draw(tag, rng)[1]


def _figures(tag: str, rng: np.random.Generator) -> tuple[str, Picture]:
    rows = grammar.split()[0][tag]
    prompt = rows[rng.integers(len(rows))]
    return prompt.text, figures.render(prompt, rng)


def _words(tag: str, rng: np.random.Generator) -> tuple[str, Picture]:
    rows = words.split()[0][tag]
    prompt = rows[rng.integers(len(rows))]
    return prompt.sentence, words.render(prompt, rng)


SHAPES = Scenes(grammar.TAGS, _figures, frozenset(grammar.vocabulary()))
WORDS = Scenes(words.TAGS, _words, words.vocabulary(), characters='"' + words.LETTERS.lower() + words.DIGITS)
