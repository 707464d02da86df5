"""Several worlds in one run: each prompt says in its metadata which one it is from, for scorers are asked by world."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from tdm_r1.errors import ConfigError
from tdm_r1.worlds.world import World, WorldPrompt

WORLD: Final = "world"
"""Key of a prompt's metadata, in a mix."""


@dataclass(frozen=True)
class MixedWorld:
    """The prompts of several worlds. A tag belongs to one of them, so that a table by tag mixes no two measures."""

    parts: Mapping[str, World]

    def prompts(self) -> list[WorldPrompt]:
        """
        Raises:
            ConfigError: when two of the worlds share a tag.
        """
        found = [
            replace(prompt, metadata={**prompt.metadata, WORLD: name})
            for name, world in self.parts.items()
            for prompt in world.prompts()
        ]
        owner: dict[str, str] = {}
        for prompt in found:
            name = owner.setdefault(prompt.tag, prompt.metadata[WORLD])
            if name != prompt.metadata[WORLD]:
                other = prompt.metadata[WORLD]
                raise ConfigError(
                    f"`{name}` and `{other}` both have the tag `{prompt.tag}`, so they cannot be mixed",
                    hint="mix worlds that ask for different things, such as geneval+ocr or shapes+ocr",
                )
        return sorted(found, key=lambda prompt: prompt.split != "train")
