"""Claims about decoding in tiles: what diffusers does, in less memory, and seams that are no edges."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tdm_r1.config import ModelConfig
from tdm_r1.errors import ConfigError
from tdm_r1.models.open import pipeline_backbone
from tdm_r1.models.pipeline import PipelineBackbone
from tdm_r1.plan.passes import decode_cost
from tests.support import once
from tests.tiny import tiny_sd3

EDGE = 64


@pytest.fixture(scope="module")
def folder(shared: Path) -> Path:
    return once(shared / "tiny-sd3", tiny_sd3)


def told(folder: Path, tile: int) -> ModelConfig:
    return ModelConfig(source=str(folder), resolution=EDGE, decode_tile=tile)


def opened(folder: Path, tile: int) -> PipelineBackbone:
    return pipeline_backbone("sd3")(folder, told(folder, tile))


@pytest.fixture
def latents(folder: Path) -> Tensor:
    shape = opened(folder, 0).latent_shape
    return torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))


def test_tiles_are_those_of_diffusers(folder: Path, latents: Tensor) -> None:
    whole, tiled = opened(folder, 0), opened(folder, 32)
    stock = whole._vae
    stock.enable_tiling()
    stock.tile_sample_min_size, stock.tile_latent_min_size = 32, 16
    assert torch.equal(tiled.pixels(latents), whole.pixels(latents))
    stock.disable_tiling()
    assert (tiled.pixels(latents) - whole.pixels(latents)).abs().max() > 1e-3


def test_an_image_that_fits_one_tile_is_decoded_whole(folder: Path, latents: Tensor) -> None:
    assert torch.equal(opened(folder, EDGE).pixels(latents), opened(folder, 0).pixels(latents))


def test_the_plan_knows_that_tiles_take_a_third_of_the_memory(folder: Path) -> None:
    (_, whole, _), (_, tiled, _) = decode_cost(told(folder, 0)), decode_cost(told(folder, 16))
    assert tiled < whole / 3


def test_a_tile_whose_overlap_is_no_whole_latent_is_refused_before_anything_is_drawn(folder: Path) -> None:
    with pytest.raises(ConfigError, match="decode_tile=36") as caught:
        opened(folder, 36)
    assert "multiple of 8" in (caught.value.hint or "")
