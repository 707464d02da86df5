"""What is known of a base without a byte of its weights: its layers by name and shape, its latents, its prompts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import torch
from torch import Tensor

from tdm_r1.config import ModelConfig
from tdm_r1.errors import ConfigError
from tdm_r1.models.open import open_backbone, pipeline_backbone
from tdm_r1.models.quiet import quiet_loading
from tdm_r1.models.sources import source_folder
from tdm_r1.models.tiles import in_tiles

SD35_MEDIUM, Z_IMAGE_TURBO = "hub:stabilityai/stable-diffusion-3.5-medium", "hub:Tongyi-MAI/Z-Image-Turbo"
Z_IMAGE = "hub:Tongyi-MAI/Z-Image"
PUBLISHED: Final[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
    {
        SD35_MEDIUM: {
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
        Z_IMAGE_TURBO: {},
        Z_IMAGE: {},
    }
)
"""`transformer/config.json` of published bases, where it differs from the class's own defaults."""
PUBLISHED_VAE: Final[Mapping[str, Any]] = MappingProxyType(
    {
        "latent_channels": 16,
        "block_out_channels": (128, 256, 512, 512),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": 2,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
    }
)
"""`vae/config.json` of SD3, FLUX.1 and Z-Image, what shapes follow from."""
DOWNLOAD_BYTES: Final[Mapping[str, int]] = MappingProxyType(
    {SD35_MEDIUM: 16_300_000_000, Z_IMAGE_TURBO: 32_800_000_000, Z_IMAGE: 20_500_000_000}
)
"""About what fetching them takes: sizes that their repositories showed, not asked again."""
CLIP_TOKENS: Final = 77
WIDTHS: Final = {
    "sd3": ("context_embedder.weight", "time_text_embed.text_embedder.linear_1.weight"),
    "flux": ("context_embedder.weight", "time_text_embed.text_embedder.linear_1.weight"),
    "z_image": ("cap_embedder.1.weight", None),
}
"""Layers whose inputs are a token's embedding, and the pooled one."""


@dataclass(frozen=True)
class Shapes:
    """Sizes of a base."""

    base: dict[str, Tensor]
    """Parameters in the network's own order; only names and shapes mean something."""
    latent: tuple[int, int, int]
    image: tuple[int, int, int]
    """Height, width, 3."""
    prompt_floats: int
    """Of one prompt's embeddings; the most, where prompts have different lengths."""


def skeleton(config: ModelConfig) -> dict[str, Tensor]:
    """The parameters of a base, as `Shapes.base`. Nothing is fetched.

    Raises:
        ConfigError: when the base is not here and its shapes are not known either.
    """
    return open_backbone(config).base() if config.backbone == "plane" else _parameters(_network(config, _local(config)))


def shapes_of(config: ModelConfig) -> Shapes:
    """All sizes of a base. Nothing is fetched.

    Raises:
        ConfigError: as `skeleton`.
    """
    if config.backbone == "plane":
        backbone = open_backbone(config)
        prompt = backbone.encode_prompts([""])
        return Shapes(
            backbone.base(), backbone.latent_shape, (1, 2, 3), prompt.sequence.numel() + prompt.pooled.numel()
        )
    folder = _local(config)
    network = _network(config, folder)
    base, scale = _parameters(network), _vae_scale(folder)
    native = int(network.config.get("sample_size", 0)) * scale or 1024
    pixels = config.resolution or native
    channels = int(network.config["in_channels"]) // (4 if config.backbone == "flux" else 1)
    side = pixels // scale
    return Shapes(base, (channels, side, side), (pixels, pixels, 3), _prompt_floats(config, folder, base))


def prompt_shapes(config: ModelConfig) -> tuple[int, int, int]:
    """Tokens of the longest prompt, the width of one, and that of the pooled embedding. Nothing is fetched."""
    folder = _local(config)
    return _prompt_shapes(config, folder, _parameters(_network(config, folder)))


def _prompt_floats(config: ModelConfig, folder: Path | None, base: Mapping[str, Tensor]) -> int:
    tokens, width, pooled = _prompt_shapes(config, folder, base)
    return tokens * width + pooled


def _prompt_shapes(config: ModelConfig, folder: Path | None, base: Mapping[str, Tensor]) -> tuple[int, int, int]:
    """SD3 joins CLIP's tokens and T5's; without T5 there are none of the latter."""
    kind = pipeline_backbone(config.backbone)
    token, pooled = WIDTHS[config.backbone]
    tokens = config.max_tokens or kind.max_tokens
    if config.backbone == "sd3":
        t5 = folder is None or "text_encoder_3" not in kind.absent(folder)
        tokens = _clip_tokens(folder) + (tokens if t5 else 0)
    return tokens, base[token].shape[1], base[pooled].shape[1] if pooled else 1


def _clip_tokens(folder: Path | None) -> int:
    if folder is None:
        return CLIP_TOKENS
    found: int = json.loads((folder / "tokenizer" / "tokenizer_config.json").read_text())["model_max_length"]
    return found


def _local(config: ModelConfig) -> Path | None:
    """The folder of a base that is here; None for a published one that is not."""
    try:
        return source_folder(config, fetch=False)
    except ConfigError:
        if config.source not in PUBLISHED:
            raise
        return None


def _vae_scale(folder: Path | None) -> int:
    """Pixels per latent; every published autoencoder of these families has 8."""
    if folder is None:
        return 8
    scale: int = 2 ** (len(json.loads((folder / "vae" / "config.json").read_text())["block_out_channels"]) - 1)
    return scale


def _network(config: ModelConfig, folder: Path | None) -> Any:
    return network_of(config, _stated(config, folder))


def _stated(config: ModelConfig, folder: Path | None) -> Mapping[str, Any]:
    return PUBLISHED[config.source] if folder is None else _read(folder / "transformer" / "config.json")


def network_of(config: ModelConfig, stated: Mapping[str, Any]) -> Any:
    """The transformer of a `transformer/config.json`, on the meta device: shapes, no data."""
    import diffusers

    kind = getattr(diffusers, pipeline_backbone(config.backbone).transformer)
    with torch.device("meta"), quiet_loading():
        return kind.from_config(dict(stated))


def stated_network(config: ModelConfig) -> dict[str, Any]:
    """`transformer/config.json` of a base, where it differs from its class. Nothing is fetched.

    Raises:
        ConfigError: as `skeleton`.
    """
    return dict(_stated(config, _local(config)))


def decoder_of(config: ModelConfig) -> Any:
    """The autoencoder of a base, on the meta device; published ones of these families share one shape."""
    import diffusers

    folder = _local(config)
    stated = PUBLISHED_VAE if folder is None else _read(folder / "vae" / "config.json")
    with torch.device("meta"), quiet_loading():
        return in_tiles(diffusers.AutoencoderKL.from_config(dict(stated)), config.decode_tile)


def _read(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def _parameters(network: Any) -> dict[str, Tensor]:
    return {name: parameter.detach() for name, parameter in network.named_parameters()}
