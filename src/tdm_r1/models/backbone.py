"""What the stages ask of a network, whichever network it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

Weights = Mapping[str, Tensor]
"""A role: its effective parameters by the network's own names, what is absent being the base's; or, for networks with
modules, its factors (`models/factored.py`)."""


@dataclass(frozen=True)
class Condition:
    """Prompt embeddings of a batch, one row per sample."""

    sequence: Tensor
    """[N, T, D] float32, token embeddings."""
    pooled: Tensor
    """[N, P] float32."""

    def __len__(self) -> int:
        return len(self.pooled)

    def take(self, rows: Tensor | slice) -> Condition:
        return Condition(self.sequence[rows], self.pooled[rows])

    def null(self, empty: Condition) -> Condition:
        """The empty prompt, repeated for every row of this batch."""
        return empty.take(torch.zeros(len(self), dtype=torch.int64))


def concatenate(*parts: Condition) -> Condition:
    return Condition(torch.cat([p.sequence for p in parts]), torch.cat([p.pooled for p in parts]))


class Backbone(Protocol):
    """A velocity network with its prompt encoder and its decoder."""

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """C, H, W of a latent."""

    def base(self) -> dict[str, Tensor]:
        """The frozen base's parameters, by name."""

    def velocity(self, x: Tensor, sigma: Tensor, condition: Condition, weights: Weights) -> Tensor:
        """V ≈ ε − x_0 at level σ.

        Args:
            x: [N, C, H, W] float32.
            sigma: [N] float32 in (0, 1].
            weights: overrides of the base; gradients flow into them.
        """

    def encode_prompts(self, texts: Sequence[str]) -> Condition:
        """Embeddings of sentences, without gradient."""

    def decode(self, latents: Tensor) -> Tensor:
        """[N, C, H, W] latents to [N, height, width, 3] uint8 images, RGB."""
