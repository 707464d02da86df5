"""Objects by NanoDet: 80 classes of COCO in under 0.1 s on one core, far weaker than GenEval's own Mask2Former.

For smoke tests and demonstrations on photographs; a score with it is no GenEval score. Source:
github.com/RangiLyu/nanodet, configuration nanodet-g: a box is four distances from the centre of a cell.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
import numpy.typing as npt

from tdm_r1.rewards.detectors import Found
from tdm_r1.rewards.extras import need
from tdm_r1.rewards.protocol import Image
from tdm_r1.worlds.geneval import Detection
from tdm_r1.worlds.geneval_prompts import CLASSES

SIDE: Final = 416
"""Pixels of the network's square input; pictures are stretched to it."""
MEAN: Final = np.array([103.53, 116.28, 123.675], np.float32)
STD: Final = np.array([57.375, 57.12, 58.395], np.float32)
"""Of blue, green and red."""
STRIDES: Final = (8, 16, 32)
"""Pixels between cells, by output."""
BINS: Final = 11
"""Of a distance, in strides from 0 to 10; the network gives a distribution over them."""
FLOOR: Final = 0.05
"""Confidence below which a cell is not looked at; the scorer's own threshold is higher."""
OVERLAP: Final = 0.5
"""Intersection over union above which the less confident of two boxes of one class goes."""

Float = npt.NDArray[np.float32]


class NanoDet:
    """The network of `tdm-r1 geneval nanodet`, through onnxruntime."""

    labels: Sequence[str] = CLASSES
    colors: Sequence[str] = ()
    caveat = "NanoDet, for smoke tests and demonstrations: this is no GenEval score"

    def __init__(self, weights: Path) -> None:
        self._weights = weights
        self._session: Any = None

    @property
    def golden(self) -> tuple[Path, str] | None:
        """Grace Hopper, as matplotlib ships her; an image for scoring alone has no matplotlib, and must be told one."""
        found = find_spec("matplotlib")
        folders = found.submodule_search_locations if found else None
        picture = Path(next(iter(folders or ()), ""), "mpl-data", "sample_data", "grace_hopper.jpg")
        return (picture, "person") if picture.is_file() else None

    def files(self) -> Sequence[Path]:
        return [self._weights] if self._weights.is_file() else []

    def load(self, threads: int) -> None:
        if not self._weights.is_file():
            raise FileNotFoundError(f"`{self._weights}` is no file; `tdm-r1 geneval nanodet` writes it")
        runtime = need("onnxruntime", extra="nanodet")
        options = runtime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 3
        self._session = runtime.InferenceSession(str(self._weights), options, providers=["CPUExecutionProvider"])

    def detect(self, image: Image) -> list[Found]:
        (given,) = self._session.get_inputs()
        outputs = {value.shape: value[0] for value in self._session.run(None, {given.name: network_input(image)[None]})}
        classes, boxes = [], []
        for stride in STRIDES:
            cells = (SIDE // stride) ** 2
            classes.append(outputs[1, cells, len(CLASSES)])
            boxes.append(cell_boxes(outputs[1, cells, 4 * BINS], stride))
        height, width = image.shape[:2]
        scale = np.array([width, height, width, height], np.float32) / SIDE
        return surest(np.concatenate(classes), (np.concatenate(boxes) * scale).astype(np.float32))


def network_input(image: Image) -> Float:
    """[3, 416, 416] float32: blue, green, red, normalised."""
    resized = cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR)[..., ::-1].astype(np.float32)
    return np.ascontiguousarray(((resized - MEAN) / STD).transpose(2, 0, 1))


def cell_boxes(distance_NB: Float, stride: int) -> Float:
    """[N, 4] left, top, right, bottom in pixels of the network's input, cut to it.

    Args:
        distance_NB: [N, 4 · 11] logits over the bins of the distances to the left, top, right and bottom, row by row.
    """
    logits = distance_NB.reshape(-1, 4, BINS)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    distance = (weights / weights.sum(-1, keepdims=True)) @ np.arange(BINS, dtype=np.float32) * stride
    rows, columns = np.divmod(np.arange(len(logits)), SIDE // stride)
    x, y = (columns + 0.5) * stride, (rows + 0.5) * stride
    found = np.stack([x - distance[:, 0], y - distance[:, 1], x + distance[:, 2], y + distance[:, 3]], axis=1)
    return found.clip(0, SIDE).astype(np.float32)


def surest(score_NC: Float, box_N4: Float) -> list[Found]:
    """Every cell and class above the floor, without those that a surer box of the same class covers."""
    cell, label = np.nonzero(score_NC > FLOOR)
    corners, scores = box_N4[cell], score_NC[cell, label]
    sizes = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
    kept = cv2.dnn.NMSBoxesBatched(sizes.tolist(), scores.tolist(), label.tolist(), FLOOR, OVERLAP)
    found = []
    for number in np.asarray(kept, np.int64).ravel():
        left, top, right, bottom = (float(edge) for edge in corners[number])
        box = (left, top, right, bottom)
        found.append(Found(Detection(CLASSES[label[number]], "", float(scores[number]), box)))
    return found
