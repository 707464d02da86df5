"""The world `plane`: a prompt names a class, a class owns two of eight modes on a ring.

Classes repeat between the splits on purpose: a class has no parts that a held-out sentence could
recombine, so the tunnel cannot test generalisation over prompts. What is held out is the noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from tdm_r1.worlds.world import WorldPrompt

MODES: Final = 8
RADIUS: Final = 1.4
"""Of the ring: a coordinate then has a variance near 1, as latents of images have."""
DEVIATION: Final = 0.1
"""Of the points around a mode, per coordinate, in the training data."""
LANDED: Final = 0.3
"""Distance within which a point is on a mode: three deviations. Neighbouring modes are 1.07 apart."""


def centre(mode: int) -> tuple[float, float]:
    """Where a mode lies."""
    angle = 2 * math.pi * mode / MODES
    return RADIUS * math.cos(angle), RADIUS * math.sin(angle)


def right_modes(number: int) -> tuple[int, int]:
    """The two modes of a class; every mode belongs to two classes, and no two classes share both."""
    return number, (number + 3) % MODES


@dataclass(frozen=True)
class PlaneWorld:
    """Eight classes, each once per split; a tag per class."""

    def prompts(self) -> list[WorldPrompt]:
        return [
            WorldPrompt(
                f"{split}-class-{number}", f"class {number}", f"class {number}", split, {"modes": right_modes(number)}
            )
            for split in ("train", "test")
            for number in range(MODES)
        ]
