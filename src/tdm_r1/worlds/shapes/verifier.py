"""Black-box verifier of the world `shapes`: it sees pixels and nothing else.

Ground = most common colour of the border; figures = connected components that differ from
it in CIE Lab; class = best overlap with the five ideal figures in the component's own box;
colour = nearest palette entry of the component's inner pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, Final

import cv2
import numpy as np
import numpy.typing as npt

from tdm_r1.worlds.geneval import Detection, Judgement, judge
from tdm_r1.worlds.shapes.grammar import COLORS, SHAPES
from tdm_r1.worlds.shapes.render import SIDE, Image, coverage

MIN_AREA: Final = 20
"""Smaller components are specks, not objects, in pixels."""
MIN_OVERLAP: Final = 0.74
"""Intersection over union with an ideal figure below which a component has no class."""
GROUND_DISTANCE: Final = 28.0
"""Lab distance (CIE76) from the ground beyond which a pixel belongs to a figure."""
COLOR_DISTANCE: Final = 32.0
"""Lab distance from a palette colour beyond which a colour has no name."""
_BOX: Final = 32

Mask = npt.NDArray[np.bool_]


def to_lab(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """RGB uint8 to CIE Lab float32, L in 0..100."""
    lab: npt.NDArray[np.float32] = cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    return lab


def _fit(mask: Mask) -> npt.NDArray[np.float32]:
    resized: npt.NDArray[np.float32] = cv2.resize(mask.astype(np.float32), (_BOX, _BOX), interpolation=cv2.INTER_LINEAR)
    return resized


@cache
def _templates() -> tuple[tuple[str, npt.NDArray[np.bool_], float], ...]:
    """Each ideal figure at two sizes, fitted to its own box, with its aspect ratio."""
    rows = []
    for shape in SHAPES:
        for radius in (6.0, 8.0, 11.5):
            mask = coverage(shape, SIDE / 2, SIDE / 2, radius) > 0.5
            ys, xs = np.nonzero(mask)
            crop = mask[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]
            rows.append((shape, _fit(crop) > 0.5, crop.shape[1] / crop.shape[0]))
    return tuple(rows)


@cache
def _palette() -> npt.NDArray[np.float32]:
    palette: npt.NDArray[np.float32] = to_lab(np.array([list(COLORS.values())], dtype=np.uint8))[0]
    return palette


def _ground(lab: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    border = np.concatenate(
        [lab[:2].reshape(-1, 3), lab[-2:].reshape(-1, 3), lab[:, :2].reshape(-1, 3), lab[:, -2:].reshape(-1, 3)]
    )
    ground: npt.NDArray[np.float32] = np.median(border, axis=0)
    return ground


def _half_maximum(distance: npt.NDArray[np.float32], component: Mask) -> Mask:
    """The component up to half of its own contrast: where a blurred edge, or the rim of a hole, really lies."""
    peak = float(np.percentile(distance[component], 90))
    inside: Mask = component & (distance > max(GROUND_DISTANCE, 0.5 * peak))
    return inside


def _classify(crop: Mask) -> tuple[str, float]:
    fitted = _fit(crop) > 0.5
    aspect = crop.shape[1] / crop.shape[0]
    best = ("", 0.0)
    for shape, template, ideal in _templates():
        ratio = min(aspect, ideal) / max(aspect, ideal)
        if ratio < 0.72:
            continue
        overlap = float((fitted & template).sum() / (fitted | template).sum())
        if overlap > best[1]:
            best = (shape, overlap)
    return best


def _name_color(lab: npt.NDArray[np.float32], mask: npt.NDArray[np.uint8]) -> str:
    inner = cv2.erode(mask, np.ones((3, 3), np.uint8))
    pixels = lab[(inner if inner.sum() >= 8 else mask) > 0]
    distance = np.linalg.norm(_palette() - np.median(pixels, axis=0), axis=1)
    nearest = int(distance.argmin())
    return tuple(COLORS)[nearest] if distance[nearest] <= COLOR_DISTANCE else ""


def detect(image: Image) -> list[Detection]:
    """Objects of an image.

    Args:
        image: [64, 64, 3] uint8, RGB.

    Returns:
        One detection per connected component that looks like one of the figures.
    """
    lab = to_lab(image)
    distance = np.linalg.norm(lab - _ground(lab), axis=2)
    foreground = (distance > GROUND_DISTANCE).astype(np.uint8)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(foreground, connectivity=8)
    found = []
    for index in range(1, count):
        if stats[index, cv2.CC_STAT_AREA] < MIN_AREA:
            continue
        mask = _half_maximum(distance, labels == index)
        x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
        shape, overlap = _classify(mask[y : y + height, x : x + width])
        if overlap >= MIN_OVERLAP:
            color = _name_color(lab, mask.astype(np.uint8))
            found.append(Detection(shape, color, overlap, (x, y, x + width, y + height)))
    return found


def verify(image: Image, metadata: Mapping[str, Any], *, replicate: bool = False) -> Judgement:
    """Judge an image against a GenEval metadata row; nothing but its pixels is looked at."""
    return judge(detect(image), metadata, replicate=replicate)
