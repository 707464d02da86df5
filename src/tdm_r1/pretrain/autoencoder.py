"""Train the autoencoder of an embedded world: 64×64 RGB to 8×8 latents of 8 channels."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from tdm_r1.pretrain.resume import Checkpoints, Trained
from tdm_r1.pretrain.scenes import Scenes

LATENT_CHANNELS: Final = 8
KL_WEIGHT: Final = 1e-6


def new_autoencoder() -> Any:
    """An untrained `diffusers.AutoencoderKL` of 0.66 M parameters."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 16, 32, 64),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=1,  # groups of one channel would wipe out flat colours
        sample_size=64,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
    )


def to_pixels(images: np.ndarray[Any, np.dtype[np.uint8]]) -> Tensor:
    """[N, H, W, 3] uint8 to [N, 3, H, W] float32 in −1..1, channels last in memory."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def figure_weight(pixels: Tensor) -> Tensor:
    """[N, 1, H, W]: 1 on the ground, 5 on figures, which cover only a tenth of the pixels."""
    ground = pixels[:, :, :1, :1]
    return 1.0 + 4.0 * ((pixels - ground).abs().amax(1, keepdim=True) > 0.15).float()


def _reconstruction(pixels: Tensor, decoded: Tensor) -> Tensor:
    """[] L1 + L2, figures weighted."""
    error, weight = decoded - pixels, figure_weight(pixels)
    return (weight * (error.abs() + error.square())).sum() / weight.sum() / 3


def _rate(step: int, steps: int) -> float:
    """Warm up over 50 steps, then a cosine to zero; a share of the peak."""
    return min(1.0, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * step / steps))


def _fit(
    module: torch.nn.Module, loss: Callable[[Tensor], Tensor], part: _Part, scenes: Scenes, kept: Checkpoints
) -> None:
    named = dict(module.named_parameters())
    parameters = list(named.values())
    optimizer = torch.optim.AdamW(parameters, lr=part.peak, betas=(0.9, 0.99), weight_decay=1e-4)
    trained = Trained(named, optimizer)
    done, start = kept.resume(part.name, trained), time.monotonic()
    pictures = islice(scenes.pictures(part.seed), done * part.batch, None)
    for step in range(done, part.steps):
        optimizer.param_groups[0]["lr"] = part.peak * _rate(step, part.steps) + 1e-6
        value = loss(to_pixels(np.stack([next(pictures) for _ in range(part.batch)])))
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if step % 50 == 0 or step == part.steps - 1:
            kept.log(
                f"{part.name} step {step} of {part.steps} loss {value.item():.4f} {time.monotonic() - start:.0f} s"
            )
        kept.keep(part.name, step + 1, part.steps, trained)


@dataclass(frozen=True)
class _Part:
    """A stretch of training."""

    name: str
    steps: int
    batch: int
    seed: int
    peak: float


def train_autoencoder(scenes: Scenes, *, steps: int, batch: int, seed: int, kept: Checkpoints) -> Any:
    """Train by L1 + L2 reconstruction and a weak KL term; cosine learning rate.

    Returns:
        The autoencoder, its `scaling_factor` and `shift_factor` set so that latents have mean 0, deviation 1.
    """
    torch.manual_seed(seed)
    vae = new_autoencoder().to(memory_format=torch.channels_last)

    def loss(pixels: Tensor) -> Tensor:
        posterior = vae.encode(pixels).latent_dist
        kl: Tensor = posterior.kl().mean()
        return _reconstruction(pixels, vae.decode(posterior.sample()).sample) + KL_WEIGHT * kl

    _fit(vae, loss, _Part("autoencoder", steps, batch, seed, 2e-3), scenes, kept)
    return standardise(scenes, vae.to(memory_format=torch.contiguous_format).eval(), seed=seed + 1)


def polish_decoder(scenes: Scenes, vae: Any, *, steps: int, batch: int, seed: int, kept: Checkpoints) -> None:
    """Train the decoder alone, in place: sharper corners, while every latent stays what it was."""
    vae.to(memory_format=torch.channels_last)

    def loss(pixels: Tensor) -> Tensor:
        with torch.no_grad():
            latents = vae.encode(pixels).latent_dist.mean
        return _reconstruction(pixels, vae.decode(latents).sample)

    _fit(vae.decoder, loss, _Part("decoder", steps, batch, seed, 1e-3), scenes, kept)
    vae.to(memory_format=torch.contiguous_format)


@torch.no_grad()
def standardise(scenes: Scenes, vae: Any, *, seed: int, count: int = 512) -> Any:
    """Record the latents' mean and deviation in the autoencoder's own configuration."""
    pictures = scenes.pictures(seed)
    pixels = to_pixels(np.stack([next(pictures) for _ in range(count)]))
    latents = torch.cat([vae.encode(chunk).latent_dist.mean for chunk in pixels.split(64)])
    vae.register_to_config(shift_factor=float(latents.mean()), scaling_factor=float(1 / latents.std()))
    return vae
