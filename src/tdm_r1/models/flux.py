"""FLUX.1 through diffusers: any `FluxPipeline` folder. The worked example of docs/backbones.md."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tdm_r1.models.backbone import Condition
from tdm_r1.models.pipeline import PipelineBackbone

NATIVE_PIXELS = 1024
DISTILLED_GUIDANCE = 3.5
"""What FLUX.1-dev is told its guidance is; FLUX.1-schnell is not told."""


class FluxBackbone(PipelineBackbone):
    """The transformer sees 2×2 patches as a sequence, is asked at σ, and answers with the velocity of the patches."""

    pipeline, transformer, max_tokens = "FluxPipeline", "FluxTransformer2DModel", 512
    no_guidance = DISTILLED_GUIDANCE

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        config: Any = self._transformer.config
        side = self._side(NATIVE_PIXELS // self._vae_scale)
        return int(config.in_channels) // 4, side, side

    def _arguments(self, x: Tensor, sigma: Tensor, condition: Condition) -> dict[str, Any]:
        config: Any = self._transformer.config
        count, _, height, width = x.shape
        rows, columns = torch.meshgrid(torch.arange(height // 2), torch.arange(width // 2), indexing="ij")
        place = torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).view(-1, 3)
        return {
            "hidden_states": _pack(x),
            "timestep": sigma,
            "guidance": x.new_full((count,), DISTILLED_GUIDANCE) if config.guidance_embeds else None,
            "pooled_projections": self._cast(condition.pooled),
            "encoder_hidden_states": condition.sequence,
            "txt_ids": x.new_zeros(condition.sequence.shape[1], 3),
            "img_ids": place.to(x),
            "return_dict": False,
        }

    def _velocity(self, output: Any, x: Tensor) -> Tensor:
        return _unpack(output, x.shape)

    def _encode(self, texts: list[str]) -> tuple[Sequence[Tensor], Tensor]:
        sequence, pooled, _ = self._text.encode_prompt(texts, None, max_sequence_length=self._tokens)
        return list(sequence), pooled


def _pack(x: Tensor) -> Tensor:
    """[N, C, H, W] to [N, H/2 · W/2, 4C]."""
    return torch.nn.functional.pixel_unshuffle(x, 2).flatten(2).transpose(1, 2)


def _unpack(patches: Tensor, shape: Sequence[int]) -> Tensor:
    """The inverse of `_pack`."""
    count, _, height, width = shape
    grid = patches.transpose(1, 2).reshape(count, -1, height // 2, width // 2)
    return torch.nn.functional.pixel_shuffle(grid, 2)
