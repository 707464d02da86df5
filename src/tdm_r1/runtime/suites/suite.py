"""What a suite asks for: its prompts, how many images of each, and the scorer that knows its rule."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tdm_r1.config import WORLDS
from tdm_r1.errors import ConfigError
from tdm_r1.runtime.suites.prompt_file import read_prompts
from tdm_r1.stages.evaluation import spread
from tdm_r1.worlds.world import WorldPrompt, open_world

FROM_FILE: Final = ("drawbench", "prompts")
"""Suites without prompts of their own, and without a scorer of their own."""
IMAGES: Final = {"geneval": 4}
"""Images per prompt by the benchmark's own rule; 1 elsewhere."""
DRAWBENCH: Final = 200
"""Prompts that DrawBench has (Imagen, arXiv 2205.11487)."""
WHERE: Final = (
    "its prompts state no licence, so they are not shipped: save the sheet that imagen.research.google links to as CSV "
    "(columns `Prompts` and `Category`), or any list with one prompt per line, and give --prompts FILE"
)


@dataclass(frozen=True)
class Suite:
    """Chosen prompts, in order."""

    name: str
    """A world, worlds joined by `+`, `drawbench` or `prompts`."""
    prompts: Sequence[WorldPrompt]
    images_per_prompt: int

    @property
    def worlds(self) -> tuple[str, ...]:
        """Worlds that its prompts are from; none for a file of other prompts."""
        return () if self.name in FROM_FILE else tuple(self.name.split("+"))

    @property
    def digest(self) -> str:
        """SHA-256 over ids, texts and metadata: equal for the same prompts in the same order."""
        rows = [[row.prompt_id, row.text, row.tag, row.metadata] for row in self.prompts]
        return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()

    def facts(self) -> dict[str, Any]:
        """For `suite.json`."""
        return {"count": len(self.prompts), "sha256": self.digest, "images_per_prompt": self.images_per_prompt}


def open_suite(name: str, file: Path | None = None, *, count: int | None = None, images: int | None = None) -> Suite:
    """Choose the prompts of a suite.

    Args:
        file: prompts in place of the suite's own; `drawbench` and `prompts` have none of their own.
        count: at most so many, spread over the tags; None for all.
        images: per prompt; None for the benchmark's own number.

    Raises:
        ConfigError: for an unknown suite, one that needs a file, or a file that cannot be read.
    """
    parts = [name] if name in FROM_FILE else name.split("+")
    if unknown := [part for part in parts if part not in (*WORLDS, *FROM_FILE)]:
        known = ", ".join((*WORLDS, *FROM_FILE))
        raise ConfigError(f"there is no suite `{unknown[0]}`", hint=f"there are {known}, and mixes such as shapes+ocr")
    if file is None:
        prompts = _held_out(name)
    elif len(parts) > 1:
        raise ConfigError(f"a file cannot stand for the prompts of a mix, `{name}`", hint="name one of its worlds")
    else:
        prompts = read_prompts(file)
    tags: dict[str, list[WorldPrompt]] = {}
    for row in prompts:
        tags.setdefault(row.tag, []).append(row)
    chosen = prompts if count is None else spread(tags, count)
    return Suite(name, chosen, images or max((IMAGES.get(part, 1) for part in parts), default=1))


def _held_out(name: str) -> list[WorldPrompt]:
    if name in FROM_FILE:
        own = "DrawBench" if name == "drawbench" else "the suite `prompts`"
        raise ConfigError(
            f"{own} needs a file of prompts", hint=WHERE if name == "drawbench" else "give --prompts FILE"
        )
    return [row for row in open_world(name).prompts() if row.split == "test"]


def remarks(suite: Suite) -> list[str]:
    """What a reader of the numbers must know about the prompts."""
    count = len(suite.prompts)
    if suite.name == "drawbench" and count != DRAWBENCH:
        return [f"DrawBench has {DRAWBENCH} prompts, these are {count}: the numbers are not DrawBench's"]
    if suite.name == "drawbench":
        return [f"no SHA-256 of DrawBench's prompts is known here: compare {suite.digest[:16]} with your colleagues'"]
    return []
