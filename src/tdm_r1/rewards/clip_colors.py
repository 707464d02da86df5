"""The colour of an object by CLIP zero-shot, as GenEval asks: the object on flat grey, cut to its box.

Source: GenEval, arXiv 2310.11513, `evaluation/evaluate_images.py`: three templates, normalised, averaged and
normalised again per colour; the nearest of ten colours.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from PIL import Image as Pillow
from torch import Tensor
from torch.nn.functional import normalize

from tdm_r1.rewards.detectors import Mask
from tdm_r1.rewards.protocol import Image
from tdm_r1.worlds.geneval import COLORS, Box

TEMPLATES: Final = ("a photo of a {color} {noun}", "a photo of a {color}-colored {noun}", "a photo of a {color} object")
GROUND: Final = 0x99
MEAN: Final = (0.48145466, 0.4578275, 0.40821073)
STD: Final = (0.26862954, 0.26130258, 0.27577711)


class ClipColors:
    """Any CLIP in transformers' format; one image at a time, so that no other image can change its answer."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._model: Any = None
        self._tokenizer: Any = None
        self.text = lru_cache(maxsize=len(COLORS) * 100)(self._text)

    def files(self) -> Sequence[Path]:
        names = ("*.safetensors", "*.json")
        return sorted(path for name in names for path in self._folder.glob(name))

    def load(self, threads: int) -> None:
        from transformers import AutoTokenizer, CLIPModel

        del threads  # a process of the pool has set them; in the stage's own they are the run's
        if not (self._folder / "config.json").is_file():
            raise FileNotFoundError(f"`{self._folder}` holds no CLIP; the option `colors` names its folder")
        self._model = CLIPModel.from_pretrained(self._folder, local_files_only=True).eval()
        self._tokenizer = AutoTokenizer.from_pretrained(self._folder, local_files_only=True)

    @torch.inference_mode()
    def name(self, image: Image, noun: str, box: Box, mask: Mask | None) -> str:
        """The nearest of the ten colours."""
        side = self._model.config.vision_config.image_size
        pixels = clip_input(cut_out(image, box, mask), side)
        seen = normalize(features(self._model.get_image_features(pixel_values=pixels)), dim=-1)[0]
        return COLORS[int((self.text(noun) @ seen).argmax())]

    @torch.inference_mode()
    def _text(self, noun: str) -> Tensor:
        """[10, D] one direction per colour."""
        sentences = [template.format(color=color, noun=noun) for color in COLORS for template in TEMPLATES]
        tokens = self._tokenizer(sentences, padding=True, return_tensors="pt")
        each = normalize(features(self._model.get_text_features(**tokens)), dim=-1)
        return normalize(each.view(len(COLORS), len(TEMPLATES), -1).mean(1), dim=-1)


def features(output: Any) -> Tensor:
    """Projected features; transformers 5 wraps them, 4 does not."""
    found: Tensor = getattr(output, "pooler_output", output)
    return found


def cut_out(image: Image, box: Box, mask: Mask | None) -> Image:
    """The object on flat grey (all of the image without a mask), cut to its box; at least one pixel."""
    shown = image if mask is None else np.where(mask[..., None], image, np.uint8(GROUND))
    x1, y1, x2, y2 = (round(value) for value in box)
    return np.ascontiguousarray(shown[y1 : max(y2, y1 + 1), x1 : max(x2, x1 + 1)])


def clip_input(image: Image, side: int) -> Tensor:
    """CLIP's own preprocessing: short side to `side` (bicubic), centre cut, normalised; [1, 3, side, side]."""
    height, width = image.shape[:2]
    short = min(height, width)
    size = side * width // short, side * height // short  # whole numbers: of 165 × 110, floats make 335 × 224
    resized = np.asarray(Pillow.fromarray(image).resize(size, Pillow.Resampling.BICUBIC), dtype=np.float32) / 255
    left, top = round((size[0] - side) / 2), round((size[1] - side) / 2)
    cut = torch.from_numpy(resized[top : top + side, left : left + side]).permute(2, 0, 1)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return ((cut - mean) / std)[None]
