"""The committed autoencoder is no ceiling: what it decodes is still right in the verifier's eyes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tdm_r1.models.sources import ASSETS
from tdm_r1.pretrain.autoencoder import to_pixels
from tdm_r1.worlds.shapes.grammar import TAGS, split
from tdm_r1.worlds.shapes.render import render
from tdm_r1.worlds.shapes.verifier import verify

pytestmark = pytest.mark.slow

IMAGES = 200


@pytest.mark.parametrize("tag", TAGS)
def test_the_round_trip_keeps_98_of_100_images_right(tag: str) -> None:
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(ASSETS / "shapes" / "vae", use_safetensors=True).eval()
    rng, (training, _) = np.random.default_rng(11), split()
    prompts = [training[tag][rng.integers(len(training[tag]))] for _ in range(IMAGES)]
    pixels = to_pixels(np.stack([render(prompt, rng) for prompt in prompts]))
    with torch.no_grad():
        decoded = torch.cat([vae.decode(vae.encode(part).latent_dist.mean).sample for part in pixels.split(50)])
    images = ((decoded.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    right = [verify(image, prompt.metadata()).strict for image, prompt in zip(images, prompts, strict=True)]
    assert np.mean(right) >= 0.98
