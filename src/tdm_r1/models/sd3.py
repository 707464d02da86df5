"""Stable Diffusion 3 through diffusers: any `StableDiffusion3Pipeline` folder, large or tiny."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from tdm_r1.errors import ConfigError
from tdm_r1.models.backbone import Condition, Weights
from tdm_r1.models.quiet import quiet_loading

DECODE_BATCH = 64
"""Images per decoder call; a fixed partition, so part of the last bits."""


def lacks_t5(folder: Path) -> bool:
    """Whether the pipeline folder comes without its third text encoder."""
    index = json.loads((folder / "model_index.json").read_text())
    return index.get("text_encoder_3", [None])[0] is None


class SD3Backbone:
    """Transformer, text encoders and autoencoder of one pipeline folder, all frozen; each is read when first asked for.

    Only `encode_prompts` and `decode` need more than the transformer, and T5 alone is larger than it.
    """

    def __init__(self, folder: Path) -> None:
        if not (folder / "model_index.json").is_file():
            raise ConfigError(
                f"`{folder}` holds no model_index.json, expected a diffusers StableDiffusion3Pipeline folder",
                hint="check model.source",
            )
        self._folder = folder
        with quiet_loading():
            from diffusers import SD3Transformer2DModel

            transformer = SD3Transformer2DModel.from_pretrained(folder, subfolder="transformer", use_safetensors=True)
        config = transformer.config
        self._latent_shape = (int(config.in_channels), int(config.sample_size), int(config.sample_size))
        self._transformer: torch.nn.Module = transformer.requires_grad_(False).eval()
        self._base = {name: parameter.detach() for name, parameter in self._transformer.named_parameters()}

    @cached_property
    def _vae(self) -> Any:
        with quiet_loading():
            from diffusers import AutoencoderKL

            vae = AutoencoderKL.from_pretrained(self._folder, subfolder="vae", use_safetensors=True)
        return vae.requires_grad_(False).eval().to(memory_format=torch.channels_last)

    @cached_property
    def _text(self) -> Any:
        """The pipeline without its autoencoder; diffusers wants to be told which parts are absent."""
        with quiet_loading():
            from diffusers import StableDiffusion3Pipeline

            absent = ["vae", *(("text_encoder_3", "tokenizer_3") if lacks_t5(self._folder) else ())]
            return StableDiffusion3Pipeline.from_pretrained(self._folder, use_safetensors=True, **dict.fromkeys(absent))

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        return self._latent_shape

    def base(self) -> dict[str, Tensor]:
        return dict(self._base)

    def velocity(self, x: Tensor, sigma: Tensor, condition: Condition, weights: Weights) -> Tensor:
        call = {
            "hidden_states": x,
            "timestep": 1000 * sigma,
            "encoder_hidden_states": condition.sequence,
            "pooled_projections": condition.pooled,
            "return_dict": False,
        }
        if not weights:
            output: Tensor = self._transformer(**call)[0]
        else:
            output = functional_call(self._transformer, dict(weights), (), call)[0]
        return output

    @torch.no_grad()
    def encode_prompts(self, texts: Sequence[str]) -> Condition:
        rows = [self._encode(list(texts[start : start + 64])) for start in range(0, len(texts), 64)]
        return Condition(torch.cat([r[0] for r in rows]), torch.cat([r[1] for r in rows]))

    def _encode(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        length = 256 if self._text.text_encoder_3 is not None else 0
        sequence, _, pooled, _ = self._text.encode_prompt(
            texts, None, None, do_classifier_free_guidance=False, max_sequence_length=length
        )
        return sequence.float(), pooled.float()

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        config = self._vae.config
        scaled = latents / config.scaling_factor + config.shift_factor
        parts = []
        for chunk in scaled.split(DECODE_BATCH):
            pixels = self._vae.decode(chunk.contiguous(memory_format=torch.channels_last), return_dict=False)[0]
            parts.append(((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1))
        return torch.cat(parts)
