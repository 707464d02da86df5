"""What a run asks of a world: its prompts, both splits, with metadata."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from tdm_r1.worlds.shapes import grammar


@dataclass(frozen=True)
class WorldPrompt:
    prompt_id: str
    text: str
    tag: str
    split: str
    metadata: Mapping[str, Any]


class World(Protocol):
    def prompts(self) -> list[WorldPrompt]:
        """Every prompt, in a fixed order, `train` before `test`."""


@dataclass(frozen=True)
class ShapesWorld:
    """Compositional prompts over flat figures."""

    def prompts(self) -> list[WorldPrompt]:
        training, held_out = grammar.split()
        return [
            WorldPrompt(f"{name}-{tag}-{number:04d}", prompt.text, tag, name, prompt.metadata())
            for name, part in (("train", training), ("test", held_out))
            for tag, rows in part.items()
            for number, prompt in enumerate(rows)
        ]


def open_world(name: str) -> World:
    """The world of that name; names that are joined by `+` are mixed."""
    if "+" in name:
        from tdm_r1.worlds.mix import MixedWorld

        return MixedWorld({part: open_world(part) for part in name.split("+")})
    if name == "plane":
        from tdm_r1.worlds.plane import PlaneWorld

        return PlaneWorld()
    if name == "geneval":
        from tdm_r1.worlds.geneval_prompts import GenEvalWorld

        return GenEvalWorld()
    if name == "ocr":
        from tdm_r1.worlds.ocr_prompts import OcrWorld

        return OcrWorld()
    if name == "words":
        from tdm_r1.worlds.words import WordsWorld

        return WordsWorld()
    return ShapesWorld()
