"""Claims about gradient checkpointing and autocast: a role's gradients for less memory, or in another precision."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tdm_r1.config import AdapterConfig, ModelConfig
from tdm_r1.models.adapters import Adapter
from tdm_r1.models.backbone import Condition
from tdm_r1.models.open import pipeline_backbone
from tdm_r1.models.pipeline import PipelineBackbone
from tdm_r1.models.sampler import paired_velocity
from tdm_r1.rng import Keys
from tests.tiny import TINY_PIPELINES, WIDTH

LORA = {"sd3": ("attn.to_q", "attn.to_out.0"), "z_image": ("to_q", "to_out.0"), "flux": ("attn.to_q", "attn.to_out.0")}
ROWS = 3


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: make(tmp_path_factory.mktemp(name)) for name, make in TINY_PIPELINES.items()}


def opened(folder: Path, name: str, **more: object) -> PipelineBackbone:
    values = {"backbone": name, "source": str(folder), "resolution": 16, **more}
    return pipeline_backbone(name)(folder, ModelConfig.model_validate(values))


def asked(backbone: PipelineBackbone, name: str) -> tuple[Tensor, Tensor, Condition, Condition]:
    torch.manual_seed(0)
    width, pooled = {"sd3": (2 * WIDTH, 2 * WIDTH), "z_image": (WIDTH, 1), "flux": (2 * WIDTH, WIDTH)}[name]
    counts = torch.full((ROWS, 1), 5.0) if name == "z_image" else torch.randn(ROWS, pooled)
    given = Condition(torch.randn(ROWS, 5, width), counts)
    x = torch.randn(ROWS, *backbone.latent_shape)
    return x, torch.tensor([0.3, 0.6, 0.9]), given, Condition(torch.zeros_like(given.sequence[:1]), counts[:1])


def gradients(backbone: PipelineBackbone, name: str, adapter: AdapterConfig) -> tuple[Tensor, dict[str, Tensor]]:
    """Of a loss of two answers of one role, made after both calls and with another role asked in between."""
    fitted = Adapter(backbone.base(), adapter)
    torch.manual_seed(1)
    role, other = (
        {key: tensor + 0.1 * torch.randn_like(tensor) for key, tensor in fitted.new(Keys(0, 0), "a").items()}
        for _ in range(2)
    )
    leaves = {key: tensor.requires_grad_() for key, tensor in role.items()}
    x, sigma, condition, empty = asked(backbone, name)
    v_c, v_null = paired_velocity(backbone, x, sigma, condition, empty, fitted.apply(leaves))
    with torch.no_grad():
        backbone.velocity(x, sigma, condition, fitted.apply(other))
    loss = (v_c - 2 * v_null).square().mean()
    torch.autograd.backward(loss)
    return loss.detach(), {key: leaf.grad for key, leaf in leaves.items() if leaf.grad is not None}


@pytest.mark.parametrize("application", ["merged", "factored", "full"])
@pytest.mark.parametrize("name", list(TINY_PIPELINES))
def test_gradients_with_checkpointing_are_the_same_bits(name: str, application: str, folders: dict[str, Path]) -> None:
    kind = {"kind": "full"} if application == "full" else {"application": application, "rank": 4}
    adapter = AdapterConfig.model_validate({**kind, "targets": LORA[name]})
    plain_loss, plain = gradients(opened(folders[name], name), name, adapter)
    loss, found = gradients(opened(folders[name], name, checkpointing=True), name, adapter)
    assert torch.equal(loss, plain_loss)
    assert len(plain) > 4
    assert plain.keys() == found.keys()
    for key, gradient in plain.items():
        assert torch.equal(gradient, found[key]), key


@pytest.mark.parametrize("application", ["merged", "factored"])
def test_autocast_is_near_float32_and_its_gradients_are_float32(application: str, folders: dict[str, Path]) -> None:
    adapter = AdapterConfig.model_validate({"application": application, "rank": 4, "targets": LORA["sd3"]})
    _, plain = gradients(opened(folders["sd3"], "sd3"), "sd3", adapter)
    _, found = gradients(opened(folders["sd3"], "sd3", autocast="bfloat16"), "sd3", adapter)
    whole, near = (torch.cat([g.flatten() for g in grads.values()]) for grads in (plain, found))
    assert {gradient.dtype for gradient in found.values()} == {torch.float32}
    difference = float((whole - near).norm() / whole.norm())
    assert 1e-5 < difference < 0.05


def test_checkpointing_saves_less_for_the_backward_pass(folders: dict[str, Path]) -> None:
    def saved(checkpointing: bool) -> int:
        sizes: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
            return tensor

        backbone = opened(folders["sd3"], "sd3", checkpointing=checkpointing)
        adapter = AdapterConfig(rank=4, application="factored", targets=LORA["sd3"])
        role = Adapter(backbone.base(), adapter)
        leaves = {key: tensor.requires_grad_() for key, tensor in role.new(Keys(0, 0), "a").items()}
        x, sigma, condition, _ = asked(backbone, "sd3")
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            backbone.velocity(x, sigma, condition, role.apply(leaves))
        return sum(sizes.values())

    assert saved(True) < 0.5 * saved(False)
