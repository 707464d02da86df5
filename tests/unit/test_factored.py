"""Roles beside the base: the same velocities and gradients as effective weights, several roles in one pass."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from tdm_r1.config import AdapterConfig, ModelConfig
from tdm_r1.models.adapters import LARGE, Adapter, RoleTensors
from tdm_r1.models.backbone import Condition
from tdm_r1.models.factored import Factors, Rows, Share
from tdm_r1.models.open import pipeline_backbone
from tdm_r1.models.pipeline import PipelineBackbone
from tdm_r1.models.sampler import Query, answers, velocity_at
from tdm_r1.rng import Keys
from tests.support import once
from tests.tiny import EIGHT, TINY_PIPELINES

KEYS = Keys(2, 0)
PROMPTS = ["a red circle", "two blue squares and a red circle", "a circle"]


@dataclass
class Setting:
    """A backbone with roles of two ranks, and how often its network was called."""

    backbone: PipelineBackbone
    roles: dict[str, RoleTensors] = field(default_factory=dict)
    calls: list[int] = field(default_factory=list)

    def adapter(self, application: str, rank: int = 2) -> Adapter:
        values = {"rank": rank, "alpha": 2.0 * rank, "targets": ["to_q", "to_out.0"], "application": application}
        return Adapter(self.backbone.base(), AdapterConfig.model_validate(values))

    def role(self, application: str, name: str) -> dict[str, Tensor]:
        rank = 4 if name == "surrogate" else 2
        if name not in self.roles:
            shapes = self.adapter("merged", rank).new(KEYS, name)
            self.roles[name] = {n: 0.3 * KEYS.normal("role", name, n, shape=tuple(t.shape)) for n, t in shapes.items()}
        return self.adapter(application, rank).apply(self.roles[name])

    def batch(self) -> tuple[Tensor, Tensor, Condition, Condition]:
        x = KEYS.normals("x", PROMPTS, shape=self.backbone.latent_shape)
        found = self.backbone.encode_prompts([*PROMPTS, ""])
        condition = found.take(slice(0, 3))
        return x, torch.tensor([0.2, 0.5, 0.9]), condition, condition.null(found.take(slice(3, 4)))

    def six(self, application: str) -> list[Query]:
        """Teacher with and without the prompt, fake, surrogate with and without, frozen reference."""
        x, sigma, text, empty = self.batch()
        fake, surrogate, base = self.role(application, "fake"), self.role(application, "surrogate"), dict[str, Tensor]()
        near = [Query(x, sigma, text, base), Query(x, sigma, empty, base), Query(x, sigma, text, fake)]
        far = [Query(-x, sigma / 2, text, surrogate), Query(-x, sigma / 2, empty, surrogate)]
        return [*near, *far, Query(-x, sigma / 2, text, base)]


@pytest.fixture(scope="module", params=sorted(TINY_PIPELINES))
def setting(request: pytest.FixtureRequest, shared: Path) -> Setting:
    name: str = request.param
    folder = once(shared / f"tiny-{name}", TINY_PIPELINES[name])
    config = ModelConfig.model_validate({"backbone": name, "resolution": EIGHT, "max_tokens": 8})
    found = Setting(pipeline_backbone(name)(folder, config))
    found.backbone._transformer.register_forward_hook(lambda *_: found.calls.append(1))
    return found


def test_six_roles_in_one_pass_equal_six_passes_of_effective_weights(setting: Setting) -> None:
    setting.calls.clear()
    with torch.no_grad():
        together = answers(setting.backbone, setting.six("factored"))
        assert len(setting.calls) == 1
        for found, query in zip(together, setting.six("merged"), strict=True):
            alone = velocity_at(setting.backbone, query.x, query.sigma, query.condition, query.weights)
            assert (found - alone).norm() / alone.norm() < 1e-6
    assert (together[0] - together[2]).abs().max() > 0.01  # the roles differ
    assert (together[3] - together[5]).abs().max() > 0.01


def test_merged_roles_are_asked_one_after_the_other_and_a_pair_shares_its_call(setting: Setting) -> None:
    setting.calls.clear()
    with torch.no_grad():
        answers(setting.backbone, setting.six("merged"))
    assert len(setting.calls) == 4


def test_gradients_of_the_factors_are_those_of_the_effective_weights(setting: Setting) -> None:
    x, sigma, condition, _ = setting.batch()
    setting.role("merged", "fake")
    gradients: list[dict[str, Tensor]] = []
    for application in ("merged", "factored"):
        leaves = {name: tensor.clone().requires_grad_() for name, tensor in setting.roles["fake"].items()}
        velocity = velocity_at(setting.backbone, x, sigma, condition, setting.adapter(application).apply(leaves))
        velocity.square().mean().backward()
        gradients.append({n: t.grad for n, t in leaves.items() if t.grad is not None})
    merged, factored = gradients
    scale = max(float(g.abs().max()) for g in merged.values())
    for name, gradient in merged.items():
        if name in factored:
            torch.testing.assert_close(factored[name], gradient, rtol=0, atol=1e-5 * scale)
        else:
            assert gradient.abs().max() == 0


def test_no_role_stays_behind_after_a_call_or_an_error(setting: Setting) -> None:
    x, sigma, condition, _ = setting.batch()
    with torch.no_grad():
        before = velocity_at(setting.backbone, x, sigma, condition, {})
        role = setting.role("factored", "fake")
        velocity_at(setting.backbone, x, sigma, condition, role)
        assert isinstance(role, Factors)
        with pytest.raises(ValueError, match="sees 3 rows, but roles of 2 rows"):
            velocity_at(setting.backbone, x, sigma, condition, Rows([Share(2, role)]))
        assert torch.equal(velocity_at(setting.backbone, x, sigma, condition, {}), before)


def test_large_bases_are_factored_and_small_ones_merged_unless_told_otherwise() -> None:
    large = {"a.to_q.weight": torch.empty(LARGE // 1000 + 1, 1000, device="meta")}
    small = {"a.to_q.weight": torch.empty(10, 10, device="meta")}
    expected: list[tuple[Any, str, bool]] = [
        (large, "auto", True), (small, "auto", False), (large, "merged", False), (small, "factored", True),
    ]  # fmt: skip
    for base, application, factored in expected:
        config = AdapterConfig.model_validate({"application": application, "targets": ["to_q"]})
        assert Adapter(base, config).factored is factored
    assert not Adapter(large, AdapterConfig(kind="full")).factored


def test_the_plane_has_no_modules_and_refuses_factors() -> None:
    with pytest.raises(ValidationError, match="no modules to adapt"):
        ModelConfig(backbone="plane", adapter=AdapterConfig(application="factored"))
