"""Z-Image through diffusers: any `ZImagePipeline` folder, such as Tongyi-MAI/Z-Image-Turbo."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tdm_r1.models.backbone import Condition
from tdm_r1.models.pipeline import PipelineBackbone

NATIVE_PIXELS = 1024


class ZImageBackbone(PipelineBackbone):
    """The transformer is asked at (1000 − t)/1000, t = 1000σ, and answers with minus the velocity.

    A prompt has as many tokens as it needs; `pooled` [N, 1] holds how many, for the network has no pooled embedding.
    The pipeline's `guidance_scale` is w − 1 of ours: it computes v_c + g (v_c − v_∅).
    """

    pipeline, transformer, max_tokens = "ZImagePipeline", "ZImageTransformer2DModel", 512
    no_guidance = 0.0

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        config: Any = self._transformer.config
        side = self._side(NATIVE_PIXELS // self._vae_scale)
        return int(config.in_channels), side, side

    def _arguments(self, x: Tensor, sigma: Tensor, condition: Condition) -> dict[str, Any]:
        counts = condition.pooled[:, 0].long().tolist()
        return {
            "x": list(x.unsqueeze(2).unbind()),
            "t": (1000 - 1000 * sigma) / 1000,
            "cap_feats": [tokens[:count] for tokens, count in zip(condition.sequence, counts, strict=True)],
            "return_dict": False,
        }

    def _velocity(self, output: Any, x: Tensor) -> Tensor:
        del x
        return -torch.stack(list(output)).squeeze(2)

    def _encode(self, texts: list[str]) -> tuple[Sequence[Tensor], Tensor]:
        sequences, _ = self._text.encode_prompt(
            texts, do_classifier_free_guidance=False, max_sequence_length=self._tokens
        )
        return sequences, torch.tensor([[float(len(sequence))] for sequence in sequences])
