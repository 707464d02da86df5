"""Objects by Mask2Former, run by transformers and read as mmdet reads it: GenEval's thresholds are for that reading.

transformers' own post-processing scores masks on a square grid and gives no boxes, so it is not used.
Source: mmdetection 2.x, `MaskFormerFusionHead.instance_postprocess`; preprocessing of its COCO configurations.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from tdm_r1.rewards.detectors import Found
from tdm_r1.rewards.protocol import Image
from tdm_r1.worlds.geneval import Detection
from tdm_r1.worlds.geneval_prompts import CLASSES

MEAN: Final = (123.675, 116.28, 103.53)
STD: Final = (58.395, 57.12, 57.375)
SHORT, LONG, MULTIPLE = 800, 1333, 32
"""Sides of the network's input, in pixels."""
INSTANCES: Final = 100
PADDING: Final = 128.0


class Mask2Former:
    """Any Mask2Former with GenEval's 80 classes in COCO's order."""

    labels: Sequence[str] = CLASSES
    colors: Sequence[str] = ()
    caveat = ""
    golden = None

    def __init__(self, folder: Path, *, short: int = SHORT, long: int = LONG) -> None:
        self._folder, self._sides = folder, (short, long)
        self._model: Any = None

    def files(self) -> Sequence[Path]:
        return sorted([*self._folder.glob("*.safetensors"), *self._folder.glob("config.json")])

    def load(self, threads: int) -> None:
        from transformers import Mask2FormerForUniversalSegmentation

        del threads  # a process of the pool has set them; in the stage's own they are the run's
        if not (self._folder / "config.json").is_file():
            raise FileNotFoundError(f"`{self._folder}` holds no Mask2Former; the option `weights` names its folder")
        model = Mask2FormerForUniversalSegmentation.from_pretrained(self._folder, local_files_only=True)
        if model.config.num_labels != len(CLASSES):
            raise ValueError(f"the network has {model.config.num_labels} classes, expected COCO's {len(CLASSES)}")
        self._model = model.eval()

    @torch.inference_mode()
    def detect(self, image: Image) -> list[Found]:
        pixels, size = network_input(image, *self._sides)
        output = self._model(pixel_values=pixels)
        return instances(output.class_queries_logits[0], output.masks_queries_logits[0], pixels.shape[2:], size, image)


def network_input(image: Image, short: int = SHORT, long: int = LONG) -> tuple[Tensor, tuple[int, int]]:
    """Resize so that the short side is `short` and the long one at most `long`, pad to a multiple of 32, normalise.

    Returns:
        [1, 3, H, W] float32, and the (height, width) of its part that is not padding.
    """
    height, width = image.shape[:2]
    scale = min(long / max(height, width), short / min(height, width))
    size = int(height * scale + 0.5), int(width * scale + 0.5)
    resized = cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)
    pixels = torch.from_numpy(resized).permute(2, 0, 1).float()
    right, below = -size[1] % MULTIPLE, -size[0] % MULTIPLE
    padded = pad(pixels, (0, right, 0, below), value=PADDING)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return ((padded - mean) / std)[None], size


def instances(
    logits_QC: Tensor, masks_Qhw: Tensor, padded: Sequence[int], size: tuple[int, int], image: Image
) -> list[Found]:
    """The 100 surest pairs of query and class, each with mask, box and confidence.

    Confidence = class probability × mean mask probability inside the mask; the box is the extent of the mask.

    Args:
        logits_QC: [Q, 81] class logits; the last class is "no object".
        masks_Qhw: [Q, h, w] mask logits, at a quarter of the padded input.
        padded: (H, W) of the network's input.
        size: (height, width) of its part that is not padding.
        image: [height, width, 3], to whose size masks and boxes refer.
    """
    classes = logits_QC.shape[1] - 1
    probability = logits_QC.softmax(-1)[:, :-1].flatten()
    score_N, pair_N = probability.topk(min(INSTANCES, len(probability)))
    query_N, label_N = pair_N // classes, pair_N % classes
    found = []
    large = {}
    for query in query_N.unique().tolist():
        whole = interpolate(masks_Qhw[query][None, None], size=tuple(padded), mode="bilinear", align_corners=False)
        cut = whole[..., : size[0], : size[1]]
        large[query] = interpolate(cut, size=image.shape[:2], mode="bilinear", align_corners=False)[0, 0]
    for score, query, label in zip(score_N.tolist(), query_N.tolist(), label_N.tolist(), strict=True):
        mask = large[query] > 0
        if bool(mask.any()):
            sure = float(large[query].sigmoid()[mask].sum() / (mask.sum() + 1e-6))
            found.append(Found(Detection(CLASSES[label], "", score * sure, _extent(mask.numpy())), mask.numpy()))
    return found


def _extent(mask: np.ndarray[Any, np.dtype[np.bool_]]) -> tuple[float, float, float, float]:
    rows, columns = np.nonzero(mask.any(1))[0], np.nonzero(mask.any(0))[0]
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)
