"""Renderer of the world `shapes`: flat anti-aliased figures on a flat ground, 64×64 pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from tdm_r1.worlds.shapes.grammar import BACKGROUNDS, COLORS, SIZES, Prompt

SIDE: Final = 64
_MARGIN: Final = 2.0
_GAP: Final = 4.0
_COLUMN, _ROW = np.meshgrid(np.arange(SIDE) + 0.5, np.arange(SIDE) + 0.5)

Image = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Figure:
    """One object: class, colour name, centre and half side, in pixels."""

    shape: str
    color: str
    x: float
    y: float
    radius: float


def coverage(shape: str, x: float, y: float, radius: float) -> npt.NDArray[np.float64]:
    """Share of each pixel that the figure covers, [64, 64] in [0, 1], from a signed distance in pixels."""
    dx, dy = _COLUMN - x, _ROW - y
    if shape == "circle":
        distance = np.hypot(dx, dy) - radius
    elif shape == "ring":
        distance = np.abs(np.hypot(dx, dy) - 0.72 * radius) - 0.28 * radius
    elif shape == "square":
        distance = np.maximum(np.abs(dx), np.abs(dy)) - 0.9 * radius
    elif shape == "cross":
        arm = 0.34 * radius
        upright = np.maximum(np.abs(dx) - arm, np.abs(dy) - radius)
        level = np.maximum(np.abs(dx) - radius, np.abs(dy) - arm)
        distance = np.minimum(upright, level)
    elif shape == "triangle":
        slope = np.hypot(1.0, 2.0)
        distance = np.maximum(dy - 0.9 * radius, (2.0 * np.abs(dx) - dy - 0.9 * radius) / slope)
    else:
        raise ValueError(f"no figure is called {shape!r}")
    share: npt.NDArray[np.float64] = np.clip(0.5 - distance, 0.0, 1.0)
    return share


def draw(figures: Sequence[Figure], background: str, rng: np.random.Generator) -> Image:
    """Paint figures on a ground; every colour is jittered by up to ±8 levels.

    Returns:
        [64, 64, 3] uint8, RGB.
    """
    canvas = np.empty((SIDE, SIDE, 3))
    canvas[:] = np.array(BACKGROUNDS[background]) + rng.uniform(-5, 5, 3)
    for figure in figures:
        alpha = coverage(figure.shape, figure.x, figure.y, figure.radius)[..., None]
        paint = np.array(COLORS[figure.color]) + rng.uniform(-8, 8, 3)
        canvas = (1 - alpha) * canvas + alpha * paint
    return np.clip(np.rint(canvas), 0, 255).astype(np.uint8)


def _objects(prompt: Prompt, rng: np.random.Generator) -> list[tuple[str, str, float]]:
    low, high = SIZES[prompt.size]
    names = tuple(COLORS)
    return [
        (clause["class"], clause.get("color") or names[rng.integers(len(names))], float(rng.uniform(low, high)))
        for clause in prompt.include
        for _ in range(clause["count"])
    ]


def _spot(radius: float, rng: np.random.Generator) -> tuple[float, float]:
    low, high = radius + _MARGIN, SIDE - radius - _MARGIN
    return float(rng.uniform(low, high)), float(rng.uniform(low, high))


def _apart(a: Figure, b: Figure) -> bool:
    reach = a.radius + b.radius + _GAP
    return max(abs(a.x - b.x), abs(a.y - b.y)) >= reach


def _related(subject: Figure, anchor: Figure, relation: str) -> bool:
    dx, dy = subject.x - anchor.x, subject.y - anchor.y
    along, across = {
        "left of": (-dx, dy),
        "right of": (dx, dy),
        "above": (-dy, dx),
        "below": (dy, dx),
    }[relation]
    return along > 1.5 * abs(across)


def _layout(prompt: Prompt, rng: np.random.Generator) -> list[Figure] | None:
    figures: list[Figure] = []
    for shape, color, radius in _objects(prompt, rng):
        for _ in range(60):
            figure = Figure(shape, color, *_spot(radius, rng), radius)
            if all(_apart(figure, other) for other in figures):
                figures.append(figure)
                break
        else:
            return None
    for index, clause in enumerate(prompt.include):
        if "position" in clause:
            relation, target = clause["position"]
            if not _related(figures[index], figures[target], relation):
                return None
    return figures


def compose(prompt: Prompt, rng: np.random.Generator) -> list[Figure]:
    """Place the prompt's objects so that none touch and every relation holds."""
    while True:
        figures = _layout(prompt, rng)
        if figures is not None:
            return figures


def render(prompt: Prompt, rng: np.random.Generator) -> Image:
    """An image that satisfies the prompt, [64, 64, 3] uint8, RGB."""
    return draw(compose(prompt, rng), prompt.background, rng)
