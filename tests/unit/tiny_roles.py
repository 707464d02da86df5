"""Tiny pipelines asked with LoRA roles: what tests of checkpointing and of compilation have in common."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from tdm_r1.config import AdapterConfig, ModelConfig
from tdm_r1.models.adapters import Adapter
from tdm_r1.models.backbone import Condition
from tdm_r1.models.open import pipeline_backbone
from tdm_r1.models.pipeline import PipelineBackbone
from tdm_r1.models.sampler import paired_velocity
from tdm_r1.rng import Keys
from tests.tiny import WIDTH

LORA = {"sd3": ("attn.to_q", "attn.to_out.0"), "z_image": ("to_q", "to_out.0"), "flux": ("attn.to_q", "attn.to_out.0")}
ROWS = 3


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
