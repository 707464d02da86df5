"""Stable Diffusion 3 and 3.5 through diffusers: any `StableDiffusion3Pipeline` folder, large or tiny."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from tdm_r1.config import ModelConfig
from tdm_r1.models.backbone import Condition
from tdm_r1.models.pipeline import PipelineBackbone


class SD3Backbone(PipelineBackbone):
    """The transformer is asked at t = 1000σ and answers with the velocity itself."""

    pipeline, transformer, max_tokens = "StableDiffusion3Pipeline", "SD3Transformer2DModel", 256

    @classmethod
    def stock_call(cls, folder: Path, config: ModelConfig) -> dict[str, Any]:
        """Without T5 no token of it: else the pipeline appends zeros for it."""
        found = super().stock_call(folder, config)
        return {**found, "max_sequence_length": 0} if "text_encoder_3" in cls.absent(folder) else found

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        config: Any = self._transformer.config
        side = self._side(int(config.sample_size))
        return int(config.in_channels), side, side

    def _arguments(self, x: Tensor, sigma: Tensor, condition: Condition) -> dict[str, Any]:
        return {
            "hidden_states": x,
            "timestep": 1000 * sigma,
            "encoder_hidden_states": condition.sequence,
            "pooled_projections": self._cast(condition.pooled),
            "return_dict": False,
        }

    def _velocity(self, output: Any, x: Tensor) -> Tensor:
        del x
        velocity: Tensor = output
        return velocity

    def _encode(self, texts: list[str]) -> tuple[Sequence[Tensor], Tensor]:
        """Without T5 there is nothing to pad; with it the pipeline pads to `max_tokens`."""
        length = self._tokens if self._text.text_encoder_3 is not None else 0
        sequence, _, pooled, _ = self._text.encode_prompt(
            texts, None, None, do_classifier_free_guidance=False, max_sequence_length=length
        )
        return list(sequence), pooled
