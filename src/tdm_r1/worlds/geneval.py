"""The GenEval rule: from detected objects and a metadata row to correct, strict and partial score.

Sources: GenEval (arXiv 2310.11513) for `correct`; the partial credit that RL trains on is
the mean over clauses described for Flow-GRPO and DGPO (arXiv 2505.05470, 2510.08425).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Detection:
    """An object found in an image: class, colour name, confidence, box in pixels (x1, y1, x2, y2)."""

    label: str
    color: str
    score: float
    box: tuple[float, float, float, float]


@dataclass(frozen=True)
class Judgement:
    """What the rule says of one image."""

    correct: bool
    """The benchmark's rule: found ≥ required, and no exclude clause hit."""
    strict: bool
    """Found equals required in every clause."""
    score: float
    """Mean of the clause parts; unbounded below unless clipped by the caller."""
    parts: tuple[tuple[str, float], ...]
    """Name and value of each part, in the order of the clauses."""


def relations(subject: Detection, anchor: Detection) -> frozenset[str]:
    """Where the subject lies as seen from the anchor; a diagonal can be both.

    Centre offsets are shrunk by 0.1 × (sum of the box sides) per axis, then divided by the
    norm of the unshrunk offset; a direction holds beyond 0.5. The y axis points down.
    """
    a, b = np.array(subject.box), np.array(anchor.box)
    offset = (a[:2] + a[2:] - b[:2] - b[2:]) / 2
    sides = (a[2:] - a[:2]) + (b[2:] - b[:2])
    shrunk = np.sign(offset) * np.maximum(np.abs(offset) - 0.1 * sides, 0.0)
    if not shrunk.any():
        return frozenset()
    x, y = shrunk / np.linalg.norm(offset)
    found = {"left of": x < -0.5, "right of": x > 0.5, "above": y < -0.5, "below": y > 0.5}
    return frozenset(name for name, holds in found.items() if holds)


def _holds(subjects: Sequence[Detection], anchors: Sequence[Detection], relation: str) -> bool:
    return bool(anchors) and all(relation in relations(s, a) for s in subjects for a in anchors)


def _by_class(detections: Sequence[Detection]) -> dict[str, list[Detection]]:
    found: dict[str, list[Detection]] = {}
    for detection in sorted(detections, key=lambda d: -d.score):
        found.setdefault(detection.label, []).append(detection)
    return found


def _benchmark(found: Mapping[str, list[Detection]], metadata: Mapping[str, Any]) -> bool:
    matched: list[list[Detection]] = []
    correct = True
    for clause in metadata["include"]:
        boxes = found.get(clause["class"], [])[: clause["count"]]
        good = len(boxes) == clause["count"]
        if good and "color" in clause:
            good = sum(box.color == clause["color"] for box in boxes) >= clause["count"]
        if good and "position" in clause:
            relation, target = clause["position"]
            good = _holds(boxes, matched[int(target)], relation)
        matched.append(boxes if good else [])
        correct = correct and good
    return correct and all(len(found.get(c["class"], [])) < c["count"] for c in metadata.get("exclude", []))


def _clause_parts(
    clause: Mapping[str, Any],
    boxes: Sequence[Detection],
    matched: Sequence[Sequence[Detection]],
    *,
    replicate: bool,
) -> list[tuple[str, float]]:
    want = int(clause["count"])
    asked = [name for name in ("color", "position") if name in clause]
    parts = [("count", 1 - abs(want - len(boxes)) / want)]
    if len(boxes) != want:
        return parts + [(name, 0.0) for name in asked[:1]]
    if "color" in clause:
        right = sum(box.color == clause["color"] for box in boxes)
        parts.append(("color", 1 - abs(want - right) / want))
    if "position" in clause:
        relation, target = clause["position"]
        anchors = matched[int(target)]
        holds = _holds(boxes, anchors, relation)
        parts.append(("position", float(holds)))
        if replicate and anchors and not holds:
            parts.append(("position", 1.0))
    return parts


def judge(
    detections: Sequence[Detection], metadata: Mapping[str, Any], *, replicate: bool = False, clip_low: float = 0.0
) -> Judgement:
    """Apply the benchmark's rule, the strict rule and the partial score.

    Args:
        replicate: add the released reward's 1.0 after a failed relation (0.75 for a wrong side).
        clip_low: lower bound of the score; GenEval's released score can reach −14.
    """
    found = _by_class(detections)
    parts: list[tuple[str, float]] = []
    matched: list[list[Detection]] = []
    strict = True
    for clause in metadata["include"]:
        boxes = found.get(clause["class"], [])
        new = _clause_parts(clause, boxes, matched, replicate=replicate)
        good = all(value == 1.0 for _, value in new) and not any(value == 0.0 for _, value in new)
        matched.append(list(boxes) if len(boxes) == clause["count"] and good else [])
        strict = strict and good
        parts.extend(new)
    score = max(clip_low, sum(value for _, value in parts) / len(parts))
    return Judgement(_benchmark(found, metadata), strict, score, tuple(parts))
