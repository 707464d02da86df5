"""A velocity network small enough to check by hand, and prompts for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tdm_r1.models.backbone import Condition, Weights

SHAPE = (2, 2, 2)


def _draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) / 3


@dataclass
class Affine:
    """v = tanh(x Wᵀ + σ s + pooled): one linear layer called `layer`, over flattened latents."""

    weight: Tensor = field(default_factory=lambda: _draw(0, 8, 8))
    scale: Tensor = field(default_factory=lambda: _draw(1, 8))
    calls: list[int] = field(default_factory=list)
    """Batch size of every call."""

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        return SHAPE

    def base(self) -> dict[str, Tensor]:
        return {"layer.weight": self.weight, "scale": self.scale}

    def velocity(self, x: Tensor, sigma: Tensor, condition: Condition, weights: Weights) -> Tensor:
        self.calls.append(len(x))
        own = {**self.base(), **weights}
        flat = x.flatten(1) @ own["layer.weight"].T + sigma[:, None] * own["scale"] + condition.pooled
        return torch.tanh(flat).view_as(x)

    def encode_prompts(self, texts: Sequence[str]) -> Condition:
        return condition(len(texts))

    def decode(self, latents: Tensor) -> Tensor:
        return (latents.clamp(-1, 1) * 127 + 128).to(torch.uint8).flatten(1)[:, :3].view(-1, 1, 1, 3)


def condition(count: int) -> Condition:
    """A different prompt for each row."""
    return Condition(torch.zeros(count, 1, 1), _draw(2, count, 8))


def noise(count: int, seed: int = 3) -> Tensor:
    return 3 * _draw(seed, count, *SHAPE)
