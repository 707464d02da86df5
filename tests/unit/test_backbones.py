"""Every backbone draws what diffusers' own pipeline draws: same prompts, same noise, same steps, same guidance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tdm_r1.config import AdapterConfig, ModelConfig, SamplerConfig
from tdm_r1.errors import ConfigError
from tdm_r1.models.adapters import Adapter
from tdm_r1.models.backbone import Condition
from tdm_r1.models.open import BACKBONES, pipeline_backbone
from tdm_r1.models.pipeline import PipelineBackbone
from tdm_r1.models.sampler import guided_sample, trajectory
from tdm_r1.rng import Keys
from tests.support import once
from tests.tiny import EIGHT, TINY_PIPELINES

PROMPTS = ["a red circle", "two blue squares and a red circle on navy"]
STEPS = [0.999, 0.74925, 0.4995, 0.24975]
"""The grid before the scheduler's shift."""
GUIDANCE = {"sd3": ("guidance_scale", 0.0), "z_image": ("guidance_scale", 1.0), "flux": ("true_cfg_scale", 0.0)}
"""The pipeline's name of guidance, and what is to be subtracted from w."""


@dataclass(frozen=True)
class Pair:
    """Ours and diffusers', of one folder."""

    name: str
    backbone: PipelineBackbone
    pipeline: Any

    @property
    def noise(self) -> Tensor:
        return Keys(5, 0).normals("noise", PROMPTS, shape=self.backbone.latent_shape)

    def stock(self, guidance: float, output: str) -> Tensor:
        """What diffusers draws, as latents or as pixels in [0, 1]."""
        name, less = GUIDANCE[self.name]
        latents = self.noise if self.name != "flux" else self.pipeline._pack_latents(self.noise, 2, 4, 8, 8)
        given: dict[str, Any] = {"negative_prompt": ["", ""]} if guidance != 1 else {}
        images: Tensor = self.pipeline(
            list(PROMPTS), height=EIGHT, width=EIGHT, num_inference_steps=4, sigmas=STEPS, latents=latents,
            max_sequence_length=8, output_type=output, **{name: guidance - less}, **given,
        ).images  # fmt: skip
        if output == "latent" and self.name == "flux":
            images = self.pipeline._unpack_latents(images, EIGHT, EIGHT, self.pipeline.vae_scale_factor)
        return torch.as_tensor(images)

    def ours(self, guidance: float) -> Tensor:
        found = self.backbone.encode_prompts([*PROMPTS, ""])
        condition, empty = found.take(slice(0, 2)), found.take(slice(2, 3))
        if guidance == 1:
            return trajectory(self.backbone, self.noise, condition, {}, SamplerConfig(), 8)[:, -1]
        return guided_sample(
            self.backbone, self.noise, condition, empty, {}, steps=4, shift=3.0, guidance=guidance, microbatch=8
        )


@pytest.fixture(scope="module", params=sorted(BACKBONES))
def pair(request: pytest.FixtureRequest, shared: Path) -> Pair:
    import diffusers

    name: str = request.param
    folder = once(shared / f"tiny-{name}", TINY_PIPELINES[name])
    backbone = pipeline_backbone(name)(
        folder, ModelConfig.model_validate({"backbone": name, "resolution": EIGHT, "max_tokens": 8})
    )
    pipeline = getattr(diffusers, backbone.pipeline).from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return Pair(name, backbone, pipeline)


@pytest.mark.parametrize("guidance", [1.0, 3.5])
def test_the_same_noise_and_steps_end_in_the_image_of_diffusers(pair: Pair, guidance: float) -> None:
    latents = pair.ours(guidance)
    torch.testing.assert_close(latents, pair.stock(guidance, "latent"), rtol=0, atol=1e-5)
    pixels = pair.backbone.pixels(latents) / 2 + 0.5
    torch.testing.assert_close(pixels, pair.stock(guidance, "pt"), rtol=0, atol=1e-5)


def test_the_comparison_can_fail(pair: Pair) -> None:
    """Guidance, the prompt and the level all change the image by far more than the tolerance."""
    plain, guided = pair.ours(1.0), pair.ours(3.5)
    assert (plain - guided).abs().max() > 0.1
    assert (plain[0] - plain[1]).abs().max() > 0.1
    condition = pair.backbone.encode_prompts(PROMPTS)
    near, far = (pair.backbone.velocity(pair.noise, torch.full((2,), s), condition, {}) for s in (0.2, 0.9))
    assert (near - far).abs().max() > 0.1
    other = pair.backbone.encode_prompts(PROMPTS[::-1])
    changed = pair.backbone.velocity(pair.noise, torch.full((2,), 0.9), other, {})
    assert (changed - far).abs().max() > 0.01


def test_a_row_of_a_batch_is_that_of_a_call_of_its_own(pair: Pair) -> None:
    """Prompts of different lengths share a batch."""
    condition, sigma = pair.backbone.encode_prompts(PROMPTS), torch.tensor([0.3, 0.8])
    both = pair.backbone.velocity(pair.noise, sigma, condition, {})
    for row in (slice(0, 1), slice(1, 2)):
        alone = pair.backbone.velocity(pair.noise[row], sigma[row], condition.take(row), {})
        torch.testing.assert_close(both[row], alone, rtol=0, atol=1e-5)


def test_gradients_reach_an_adapter_and_never_the_base(pair: Pair) -> None:
    adapter = Adapter(pair.backbone.base(), AdapterConfig(rank=2, targets=("to_q", "to_out.0")))
    role = {name: tensor.requires_grad_() for name, tensor in adapter.new(Keys(0, 0), "generator").items()}
    condition = pair.backbone.encode_prompts(PROMPTS)
    velocity = pair.backbone.velocity(pair.noise, torch.tensor([0.3, 0.8]), condition, adapter.apply(role))
    velocity.square().sum().backward()
    assert any(tensor.grad is not None and tensor.grad.abs().max() > 0 for tensor in role.values())
    assert not any(tensor.requires_grad for tensor in pair.backbone.base().values())


def test_half_precision_of_the_base_changes_little_and_leaves_float32_outside(pair: Pair) -> None:
    config = pair.backbone._config.model_copy(update={"dtype": "bfloat16"})
    half = type(pair.backbone)(pair.backbone._folder, config)
    assert {tensor.dtype for tensor in half.base().values()} == {torch.bfloat16}
    condition, sigma = pair.backbone.encode_prompts(PROMPTS), torch.tensor([0.3, 0.8])
    adapter = Adapter(half.base(), AdapterConfig(rank=2, targets=("to_q",)))
    role = adapter.new(Keys(0, 0), "generator")
    assert {tensor.dtype for tensor in role.values()} == {torch.float32}
    found = half.velocity(pair.noise, sigma, condition, adapter.apply(role))
    exact = pair.backbone.velocity(pair.noise, sigma, condition, {})
    assert found.dtype == torch.float32
    assert 0 < (found - exact).norm() / exact.norm() < 0.05
    assert half.decode(pair.noise).dtype == torch.uint8


@pytest.mark.parametrize(("dtype", "trains"), [("bfloat16", True), ("float16", False)])
def test_gradients_of_a_step_of_a_published_size_vanish_in_float16_alone(pair: Pair, dtype: str, trains: bool) -> None:
    """Which is why a run in float16 is refused: 1,152 trajectories of 16 × 64 × 64 numbers share one loss."""
    config = pair.backbone._config.model_copy(update={"dtype": dtype})
    backbone = type(pair.backbone)(pair.backbone._folder, config)
    adapter = Adapter(backbone.base(), AdapterConfig(rank=2, targets=("to_q", "to_v", "to_out.0")))
    condition, sigma = pair.backbone.encode_prompts(PROMPTS), torch.tensor([0.3, 0.8])

    def gradients(step: int) -> Tensor:
        role = {name: tensor.requires_grad_() for name, tensor in adapter.new(Keys(0, 0), "generator").items()}
        backbone.velocity(pair.noise, sigma, condition, adapter.apply(role)).square().sum().div(step).backward()
        return torch.cat([tensor.grad.flatten() for name, tensor in sorted(role.items()) if tensor.grad is not None])

    one, published = gradients(100), gradients(1152 * 16 * 64 * 64)
    lost = float((published[one != 0] == 0).double().mean())
    assert lost < 0.01 if trains else lost > 0.5, lost


def test_a_pipeline_of_another_class_is_refused_with_what_to_set(shared: Path) -> None:
    folder = once(shared / "tiny-flux", TINY_PIPELINES["flux"])
    with pytest.raises(ConfigError, match=r"FluxPipeline, but model\.backbone is `sd3`[\s\S]*model\.backbone"):
        pipeline_backbone("sd3")(folder, ModelConfig())


def test_a_resolution_that_the_patches_do_not_divide_is_refused(pair: Pair) -> None:
    config = pair.backbone._config.model_copy(update={"resolution": 18})
    with pytest.raises(ConfigError, match=r"multiple of 4[\s\S]*model\.resolution=16"):
        _ = type(pair.backbone)(pair.backbone._folder, config).latent_shape


def test_prompt_embeddings_survive_the_condition_s_operations(pair: Pair) -> None:
    found = pair.backbone.encode_prompts(["", *PROMPTS])
    pick: Callable[[Condition], Tensor] = lambda condition: condition.sequence  # noqa: E731
    assert torch.equal(pick(found.take(slice(1, 3)).null(found.take(slice(0, 1)))), found.sequence[[0, 0]])
