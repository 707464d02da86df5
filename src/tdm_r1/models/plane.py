"""A velocity network for points in a plane: latents [N, 2, 1, 1], a small MLP, classes as prompts.

An image must be uint8 to pass through the contract, so a point is written as two pixels: pixel 0
holds the first coordinate, pixel 1 the second, each as a 24-bit fixed-point number in R, G, B (most
significant first) over [−8, 8). The step is 16/2²⁴ ≈ 1e-6, far below every distance of this world.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import linear, silu

from tdm_r1.errors import ConfigError
from tdm_r1.models.backbone import Condition, Weights

EXTENT: Final = 8.0
"""Coordinates are stored in [−EXTENT, EXTENT); what lies outside is moved to the edge."""
_LEVELS: Final = 1 << 24
WEIGHTS_FILE, CONFIG_FILE = "model.safetensors", "config.json"


@dataclass(frozen=True, kw_only=True)
class PlaneShape:
    """Sizes of the network, as `config.json` holds them."""

    classes: int = 8
    width: int = 128
    hidden: int = 3
    """Hidden layers."""
    octaves: int = 3
    """A coordinate x enters as itself and as sin and cos of 2ᵏ x, k = 1..octaves."""
    waves: int = 4
    """The level σ enters as sin and cos of (π/2) k √σ, k = 1..waves."""

    @property
    def inputs(self) -> int:
        return 2 * (1 + 2 * self.octaves) + 2 * self.waves + self.classes


def new_parameters(shape: PlaneShape, generator: torch.Generator) -> dict[str, Tensor]:
    """Untrained weights: normal of deviation √(2/in), zero biases, and a small last layer."""
    sizes = [shape.inputs, *[shape.width] * shape.hidden, 2]
    parameters = {}
    for number, (inputs, outputs) in enumerate(pairwise(sizes)):
        gain = (2.0 / inputs) ** 0.5 if number < shape.hidden else 0.01
        parameters[f"layers.{number}.weight"] = gain * torch.randn(outputs, inputs, generator=generator)
        parameters[f"layers.{number}.bias"] = torch.zeros(outputs)
    return parameters


def features(shape: PlaneShape, x: Tensor, sigma: Tensor, classes: Tensor) -> Tensor:
    """[N, inputs] of points [N, 2] at levels [N] for codes [N, classes]."""
    octaves = [x * 2.0**k for k in range(1, shape.octaves + 1)]
    level = sigma.sqrt()[:, None] * torch.arange(1, shape.waves + 1) * (torch.pi / 2)
    return torch.cat([x, *(f(y) for y in [*octaves, level] for f in (torch.sin, torch.cos)), classes], dim=1)


def mlp_velocity(
    shape: PlaneShape, parameters: Mapping[str, Tensor], x: Tensor, sigma: Tensor, classes: Tensor
) -> Tensor:
    """V at [N, 2] points.

    Args:
        x: [N, 2].
        sigma: [N].
        classes: [N, classes] one-hot; zeros for the empty prompt.
    """
    hidden = features(shape, x, sigma, classes)
    for number in range(shape.hidden):
        hidden = silu(linear(hidden, parameters[f"layers.{number}.weight"], parameters[f"layers.{number}.bias"]))
    return linear(hidden, parameters[f"layers.{shape.hidden}.weight"], parameters[f"layers.{shape.hidden}.bias"])


def class_codes(texts: Sequence[str], classes: int) -> Tensor:
    """[N, classes] one-hot codes of `class 0`, `class 1`, …; zeros for the empty text.

    Raises:
        ConfigError: for any other text.
    """
    known = {f"class {number}": number for number in range(classes)}
    codes = torch.zeros(len(texts), classes)
    for row, text in enumerate(texts):
        if text and text not in known:
            raise ConfigError(f"the plane has no prompt {text!r}", hint=f"the prompts are {', '.join(known)}")
        if text:
            codes[row, known[text]] = 1.0
    return codes


def points_to_images(points: Tensor) -> Tensor:
    """[N, 2] finite points to [N, 1, 2, 3] uint8 images."""
    scaled = ((points.double() + EXTENT) * (_LEVELS / (2 * EXTENT))).round().clamp(0, _LEVELS - 1).long()
    return torch.stack([scaled >> 16, scaled >> 8 & 255, scaled & 255], dim=-1).to(torch.uint8)[:, None]


def images_to_points(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """[…, 1, 2, 3] uint8 images to […, 2] points; the inverse of `points_to_images` up to half a step."""
    scaled = images[..., 0, :, :].astype(np.float64) @ np.array([65536.0, 256.0, 1.0])
    found: npt.NDArray[np.float64] = scaled * (2 * EXTENT / _LEVELS) - EXTENT
    return found


@dataclass(frozen=True)
class PlaneBackbone:
    """The MLP with one-hot class codes."""

    parameters: Mapping[str, Tensor]
    shape: PlaneShape

    @staticmethod
    def open(folder: Path) -> PlaneBackbone:
        """Load `model.safetensors` and `config.json`.

        Raises:
            ConfigError: when one of them is missing.
        """
        for name in (WEIGHTS_FILE, CONFIG_FILE):
            if not (folder / name).is_file():
                raise ConfigError(
                    f"`{folder}` holds no {name}, expected a network of the world plane",
                    hint=f"train one with `tdm-r1 pretrain --world plane --out {folder}`",
                )
        shape = PlaneShape(**json.loads((folder / CONFIG_FILE).read_text()))
        return PlaneBackbone(load_file(folder / WEIGHTS_FILE), shape)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        return 2, 1, 1

    def base(self) -> dict[str, Tensor]:
        return dict(self.parameters)

    def velocity(self, x: Tensor, sigma: Tensor, condition: Condition, weights: Weights) -> Tensor:
        parameters = {**self.parameters, **{name: weight.to(x) for name, weight in weights.items()}}
        return mlp_velocity(self.shape, parameters, x.flatten(1), sigma, condition.pooled).view_as(x)

    def encode_prompts(self, texts: Sequence[str]) -> Condition:
        """One-hot codes as pooled embeddings; there are no tokens, so `sequence` is [N, 1, 1] zeros."""
        return Condition(torch.zeros(len(texts), 1, 1), class_codes(texts, self.shape.classes))

    def decode(self, latents: Tensor) -> Tensor:
        """[N, 2, 1, 1] points to [N, 1, 2, 3] uint8 images."""
        return points_to_images(latents.flatten(1))
