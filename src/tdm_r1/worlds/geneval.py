"""The GenEval rule: from detected objects and a metadata row to correct, strict and partial score.

Sources: GenEval (arXiv 2310.11513) for `correct`; the partial credit that RL trains on is
the mean over clauses described for Flow-GRPO and DGPO (arXiv 2505.05470, 2510.08425).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

TAGS: Final = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
COLORS: Final = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
"""In the order in which the first of two equally likely ones wins."""
RELATIONS: Final = ("left of", "right of", "above", "below")
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Detection:
    """An object found in an image: class, colour name, confidence, box in pixels (x1, y1, x2, y2)."""

    label: str
    color: str
    score: float
    box: Box


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
    reasons: tuple[str, ...] = ()
    """Why it is not correct, in the words of the benchmark's result file."""


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


def _benchmark(found: Mapping[str, list[Detection]], metadata: Mapping[str, Any]) -> list[str]:
    """Why an image is not correct; nothing when it is."""
    matched: list[list[Detection]] = []
    reasons = []
    for clause in metadata["include"]:
        boxes = found.get(clause["class"], [])[: clause["count"]]
        reason = _fault(clause, boxes, matched)
        matched.append([] if reason else boxes)
        reasons += [reason] if reason else []
    for clause in metadata.get("exclude", []):
        count = len(found.get(clause["class"], []))
        if count >= clause["count"]:
            reasons.append(f"expected {clause['class']}<{clause['count']}, found {count}")
    return reasons


def _fault(clause: Mapping[str, Any], boxes: Sequence[Detection], matched: Sequence[Sequence[Detection]]) -> str | None:
    """What is wrong with the most confident boxes of a clause."""
    noun, count = clause["class"], clause["count"]
    if len(boxes) < count:
        return f"expected {noun}>={count}, found {len(boxes)}"
    if "color" in clause:
        seen = Counter(box.color for box in boxes)
        if seen[clause["color"]] < count:
            asked, told = clause["color"], ", ".join(f"{seen[name]} {name}" for name in COLORS if name in seen)
            return f"expected {asked} {noun}>={count}, found {seen[asked]} {asked}; and {told}"
    if "position" in clause:
        relation, target = clause["position"]
        if not matched[int(target)]:
            return f"no target for {noun} to be {relation}"
        for box in boxes:
            for anchor in matched[int(target)]:
                if relation not in (real := relations(box, anchor)):
                    return f"expected {noun} {relation} target, found {' and '.join(sorted(real))} target"
    return None


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
    reasons = tuple(_benchmark(found, metadata))
    return Judgement(not reasons, strict, score, tuple(parts), reasons)


def keep(
    detections: Sequence[Detection],
    tag: str,
    *,
    threshold: float = 0.3,
    counting_threshold: float = 0.9,
    most: int = 16,
    overlap: float = 1.0,
) -> list[Detection]:
    """The detections that the rule sees: per class the most confident ones above a threshold.

    Args:
        counting_threshold: takes the place of `threshold` for the tag `counting`.
        most: per class.
        overlap: of two boxes of a class with more intersection over union, the surer one stays; 1 keeps both.
    """
    least = counting_threshold if tag == "counting" else threshold
    kept = []
    for boxes in _by_class(detections).values():
        sure = [box for box in boxes if box.score > least][:most]
        chosen: list[Detection] = []
        for box in sure:
            if overlap >= 1 or all(_overlap(box.box, other.box) < overlap for other in chosen):
                chosen.append(box)
        kept += chosen
    return kept


def _overlap(a: Box, b: Box) -> float:
    """Intersection over union, with sides one pixel longer than the difference, as the benchmark measures."""

    def side(low: float, high: float) -> float:
        return max(0.0, high - low + 1)

    shared = side(max(a[0], b[0]), min(a[2], b[2])) * side(max(a[1], b[1]), min(a[3], b[3]))
    areas = sum(side(box[0], box[2]) * side(box[1], box[3]) for box in (a, b))
    return shared / (areas - shared)


def check_row(metadata: Mapping[str, Any], labels: Collection[str], colors: Collection[str]) -> None:
    """Refuse a metadata row that no image could satisfy, or that the rule cannot read.

    Raises:
        ValueError: naming what is unknown; without this check it would look like a reward of 0.
    """
    if metadata.get("tag") not in TAGS:
        raise ValueError(f"the tag is {metadata.get('tag')!r}, expected one of {', '.join(TAGS)}")
    clauses = [*metadata.get("include", ()), *metadata.get("exclude", ())]
    if not metadata.get("include"):
        raise ValueError("the metadata includes no object")
    for number, clause in enumerate(clauses):
        if clause.get("class") not in labels:
            raise ValueError(f"the detector knows no class {clause.get('class')!r}")
        if not isinstance(clause.get("count"), int) or clause["count"] < 1:
            raise ValueError(f"the count is {clause.get('count')!r}, expected a whole number of at least 1")
        if "color" in clause and clause["color"] not in colors:
            raise ValueError(f"the colour {clause['color']!r} has no name here, expected one of {', '.join(colors)}")
        if "position" in clause:
            relation, target = clause["position"]
            if relation not in RELATIONS or not 0 <= int(target) < number:
                raise ValueError(f"the position is {clause['position']!r}, expected a relation to an earlier object")
