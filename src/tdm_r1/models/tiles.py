"""Decoding an image in tiles: the decoder's memory is that of a tile, and the seams are blended."""

from __future__ import annotations

from typing import Any, Final

from tdm_r1.errors import ConfigError

OVERLAP: Final = 0.25
"""Share of a tile's edge that lies in the next one [diffusers]."""


def in_tiles(autoencoder: Any, edge: int) -> Any:
    """Let diffusers' AutoencoderKL decode images larger than `edge` pixels tile by tile; 0 leaves it as it is.

    Raises:
        ConfigError: as `require_tile`.
    """
    if edge == 0:
        return autoencoder
    scale = require_tile(len(autoencoder.config.block_out_channels), edge)
    autoencoder.enable_tiling()
    autoencoder.tile_sample_min_size, autoencoder.tile_latent_min_size = edge, edge // scale
    autoencoder.tile_overlap_factor = OVERLAP
    return autoencoder


def require_tile(levels: int, edge: int) -> int:
    """Pixels on an edge of a latent of an autoencoder with so many blocks.

    Raises:
        ConfigError: for a tile whose overlap is no whole number of latents.
    """
    scale = 1 << (levels - 1)
    unit = int(scale / OVERLAP)
    if edge % unit:
        raise ConfigError(
            f"model.decode_tile={edge} but a quarter of a tile must be whole latents of {scale} pixels",
            hint=f"set it to a multiple of {unit}, or to 0 to decode images whole",
        )
    return scale
