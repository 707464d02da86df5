"""One CLIP in transformers' format: pictures and prompts as directions in one space. Four scorers share it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from tdm_r1.rewards.clip_colors import clip_input, features
from tdm_r1.rewards.extras import need
from tdm_r1.rewards.protocol import Image

PROMPTS: Final = 4096
"""Embeddings of prompts that are kept: the images of a group share theirs."""
Precision = Literal["float32", "bfloat16"]


class Clip:
    """A folder of weights, configuration and tokenizer; nothing is read from a network.

    Args:
        option: of the scorer, the one that names the folder.
    """

    def __init__(self, folder: Path, *, device: str, precision: Precision, option: str = "weights") -> None:
        self._folder, self._device, self._option = folder, device, option
        self._dtype = torch.float32 if precision == "float32" else torch.bfloat16
        self._model: Any = None
        self._tokenizer: Any = None
        self._text = lru_cache(maxsize=PROMPTS)(self._embed)

    def files(self) -> Sequence[Path]:
        return sorted(path for name in ("*.safetensors", "*.json", "*.txt") for path in self._folder.glob(name))

    def load(self) -> None:
        transformers = need("transformers", extra="preference")
        if not (self._folder / "config.json").is_file():
            raise FileNotFoundError(f"`{self._folder}` holds no CLIP; the option `{self._option}` names its folder")
        model = transformers.CLIPModel.from_pretrained(self._folder, local_files_only=True, dtype=self._dtype)
        self._model = model.eval().to(self._device)
        self._tokenizer = transformers.AutoTokenizer.from_pretrained(self._folder, local_files_only=True)

    @property
    def scale(self) -> float:
        """exp(logit_scale), the temperature that CLIP was trained with."""
        return float(self._model.logit_scale.detach().float().exp())

    @torch.inference_mode()
    def images(self, images: Sequence[Image]) -> Tensor:
        """[N, D] float32 of length 1."""
        side = self._model.config.vision_config.image_size
        pixels = torch.cat([clip_input(image, side) for image in images]).to(self._device, self._dtype)
        return normalize(features(self._model.get_image_features(pixel_values=pixels)).float(), dim=-1).cpu()

    def texts(self, prompts: Sequence[str]) -> Tensor:
        """[N, D] float32 of length 1; each prompt is embedded alone, so that none changes another."""
        return torch.stack([self._text(prompt) for prompt in prompts])

    def cosines(self, images: Sequence[Image], prompts: Sequence[str]) -> Tensor:
        """[N] cosine of each image with its own prompt, and with no other."""
        return (self.images(images) * self.texts(prompts)).sum(-1)

    @torch.inference_mode()
    def _embed(self, prompt: str) -> Tensor:
        limit = self._model.config.text_config.max_position_embeddings
        tokens = self._tokenizer([prompt], truncation=True, max_length=limit, return_tensors="pt").to(self._device)
        return normalize(features(self._model.get_text_features(**tokens)).float(), dim=-1)[0].cpu()
