"""The committed autoencoder is no ceiling: what it decodes is still right in the verifier's eyes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tdm_r1.models.sources import ASSETS
from tdm_r1.pretrain.autoencoder import to_pixels
from tdm_r1.rewards.ask import Question, ask, make_ready
from tdm_r1.rewards.registry import open_scorer
from tdm_r1.worlds import words
from tdm_r1.worlds.shapes.grammar import TAGS, split
from tdm_r1.worlds.shapes.render import render
from tdm_r1.worlds.shapes.verifier import verify

pytestmark = pytest.mark.slow

IMAGES = 200


def round_trip(world: str, pictures: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """What the committed autoencoder of a world makes of its pictures [N, 64, 64, 3]."""
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(ASSETS / world / "vae", use_safetensors=True).eval()
    with torch.no_grad():
        parts = to_pixels(np.stack(pictures)).split(50)
        decoded = torch.cat([vae.decode(vae.encode(part).latent_dist.mean).sample for part in parts])
    images: NDArray[np.uint8] = ((decoded.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return images


@pytest.mark.parametrize("tag", TAGS)
def test_the_round_trip_keeps_98_of_100_images_right(tag: str) -> None:
    rng, (training, _) = np.random.default_rng(11), split()
    prompts = [training[tag][rng.integers(len(training[tag]))] for _ in range(IMAGES)]
    images = round_trip("shapes", [render(prompt, rng) for prompt in prompts])
    right = [verify(image, prompt.metadata()).strict for image, prompt in zip(images, prompts, strict=True)]
    assert np.mean(right) >= 0.98


@pytest.mark.parametrize("tag", words.TAGS)
def test_the_round_trip_keeps_98_of_100_strings_readable(tag: str) -> None:
    scorer = open_scorer("words", {"kind": "correct"})
    make_ready(scorer)
    rng, (training, _) = np.random.default_rng(11), words.split()
    prompts = [training[tag][rng.integers(len(training[tag]))] for _ in range(IMAGES)]
    images = round_trip("words", [words.render(prompt, rng) for prompt in prompts])
    asked = [Question(image, "", {"text": prompt.text}) for image, prompt in zip(images, prompts, strict=True)]
    assert np.mean([score.value for score in ask(scorer, asked)]) >= 0.98
