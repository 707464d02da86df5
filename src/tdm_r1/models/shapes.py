"""The layers of a base by name and shape, without a byte of its weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

import torch
from torch import Tensor

from tdm_r1.config import ModelConfig
from tdm_r1.errors import ConfigError
from tdm_r1.models.open import open_backbone, pipeline_backbone
from tdm_r1.models.quiet import quiet_loading
from tdm_r1.models.sources import source_folder

PUBLISHED: Final[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
    {
        "hub:stabilityai/stable-diffusion-3.5-medium": {
            "sample_size": 128,
            "num_layers": 24,
            "attention_head_dim": 64,
            "num_attention_heads": 24,
            "caption_projection_dim": 1536,
            "pooled_projection_dim": 2048,
            "pos_embed_max_size": 384,
            "dual_attention_layers": tuple(range(13)),
            "qk_norm": "rms_norm",
        },
        "hub:Tongyi-MAI/Z-Image-Turbo": {},
        "hub:Tongyi-MAI/Z-Image": {},
    }
)
"""`transformer/config.json` of published bases, where it differs from the class's own defaults."""


def skeleton(config: ModelConfig) -> dict[str, Tensor]:
    """The parameters of a base in its own order, on the meta device: names and shapes. Nothing is fetched.

    Raises:
        ConfigError: when the base is not here and its shapes are not known either.
    """
    if config.backbone == "plane":
        return open_backbone(config).base()
    import diffusers

    kind = getattr(diffusers, pipeline_backbone(config.backbone).transformer)
    with torch.device("meta"), quiet_loading():
        network = kind.from_config(_transformer_config(config))
    return {name: parameter.detach() for name, parameter in network.named_parameters()}


def _transformer_config(config: ModelConfig) -> dict[str, Any]:
    try:
        folder = source_folder(config, fetch=False)
    except ConfigError:
        if config.source not in PUBLISHED:
            raise
        return dict(PUBLISHED[config.source])
    found: dict[str, Any] = json.loads((folder / "transformer" / "config.json").read_text())
    return found
