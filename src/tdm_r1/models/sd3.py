"""Stable Diffusion 3 through diffusers: any `StableDiffusion3Pipeline` folder, large or tiny."""

from __future__ import annotations

import json
from collections.abc import Sequence
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


def _load(folder: Path) -> Any:
    """The pipeline; diffusers wants to be told which parts are absent."""
    with quiet_loading():
        from diffusers import StableDiffusion3Pipeline

        absent = dict.fromkeys(("text_encoder_3", "tokenizer_3")) if lacks_t5(folder) else {}
        return StableDiffusion3Pipeline.from_pretrained(folder, use_safetensors=True, **absent)


class SD3Backbone:
    """Transformer, text encoders and autoencoder of one pipeline folder, all frozen."""

    def __init__(self, folder: Path) -> None:
        if not (folder / "model_index.json").is_file():
            raise ConfigError(
                f"`{folder}` holds no model_index.json, expected a diffusers StableDiffusion3Pipeline folder",
                hint="check model.source",
            )
        pipeline = _load(folder)
        self._pipeline = pipeline
        self._transformer: torch.nn.Module = pipeline.transformer.requires_grad_(False).eval()
        self._vae: Any = pipeline.vae.requires_grad_(False).eval()
        config = pipeline.transformer.config
        self._latent_shape = (int(config.in_channels), int(config.sample_size), int(config.sample_size))
        self._base = {name: parameter.detach() for name, parameter in self._transformer.named_parameters()}

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
        length = 256 if self._pipeline.text_encoder_3 is not None else 0
        sequence, _, pooled, _ = self._pipeline.encode_prompt(
            texts, None, None, do_classifier_free_guidance=False, max_sequence_length=length
        )
        return sequence.float(), pooled.float()

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        config = self._vae.config
        scaled = latents / config.scaling_factor + config.shift_factor
        parts = []
        for chunk in scaled.split(DECODE_BATCH):
            pixels = self._vae.decode(chunk, return_dict=False)[0]
            parts.append(((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1))
        return torch.cat(parts)
