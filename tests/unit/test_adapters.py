"""Claims about adapters: a new role equals the base, and gradients reach the role's tensors only."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tdm_r1.config import AdapterConfig
from tdm_r1.errors import ConfigError
from tdm_r1.models.adapters import Adapter
from tdm_r1.rng import Keys

KEYS = Keys(0, 0)
BASE = {
    "block.attn.to_q.weight": torch.randn(6, 4, generator=torch.Generator().manual_seed(0)),
    "block.attn.to_q.bias": torch.zeros(6),
    "block.ff.weight": torch.ones(5, 6),
    "block.norm.weight": torch.ones(4),
}


def adapter(**change: object) -> Adapter:
    values: dict[str, object] = {"rank": 3, "alpha": 6.0, "targets": ("attn.to_q",), **change}
    return Adapter(BASE, AdapterConfig.model_validate(values))


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_a_new_role_equals_the_base_bit_for_bit(kind: str) -> None:
    found = adapter(kind=kind)
    effective = found.apply(found.new(KEYS, "generator"))
    assert set(effective) == ({"block.attn.to_q.weight"} if kind == "lora" else set(BASE))
    assert all(torch.equal(tensor, BASE[name]) for name, tensor in effective.items())


def test_the_effective_weight_is_the_base_plus_the_scaled_product() -> None:
    a, b = torch.randn(3, 4), torch.randn(6, 3)
    effective = adapter().apply({"block.attn.to_q.lora_A": a, "block.attn.to_q.lora_B": b})
    torch.testing.assert_close(effective["block.attn.to_q.weight"], BASE["block.attn.to_q.weight"] + 6 / 3 * (b @ a))


def test_a_narrow_role_is_not_copied_when_it_is_whole_and_summed_in_float32_when_it_is_a_product() -> None:
    whole = {name: tensor.bfloat16() for name, tensor in BASE.items()}
    assert all(found is whole[name] for name, found in adapter(kind="full").apply(whole).items())
    a, b = torch.randn(3, 4).bfloat16(), 1e-4 * torch.randn(6, 3).bfloat16()
    merged = adapter().apply({"block.attn.to_q.lora_A": a, "block.attn.to_q.lora_B": b})["block.attn.to_q.weight"]
    torch.testing.assert_close(
        merged, BASE["block.attn.to_q.weight"] + 6 / 3 * (b.float() @ a.float()), rtol=0, atol=1e-6
    )


def test_factors_go_to_the_device_of_the_base_once_for_a_call_and_nowhere_else() -> None:
    far = {name: tensor.to("meta") for name, tensor in BASE.items()}
    config = AdapterConfig(rank=3, alpha=6.0, targets=("attn.to_q",), application="factored")
    role = adapter().new(KEYS, "generator")
    assert {tensor.device.type for tensor in Adapter(far, config).apply(role).values()} == {"meta"}
    beside = Adapter(BASE, config).apply(role)
    assert all(beside[name] is tensor for name, tensor in role.items()), "no copy where they lie there already"


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_gradients_flow_into_the_role_and_not_into_the_base(kind: str) -> None:
    found = adapter(kind=kind)
    role = {name: (t + 0.1).requires_grad_() for name, t in found.new(KEYS, "generator").items()}
    x = torch.randn(2, 4, generator=torch.Generator().manual_seed(1))

    def loss(tensors: dict[str, Tensor]) -> Tensor:
        return (x @ found.apply(tensors)["block.attn.to_q.weight"].T).square().sum()

    used = [name for name in role if "to_q" in name and "bias" not in name]
    gradients = torch.autograd.grad(loss(role), [role[name] for name in used])
    for name, gradient in zip(used, gradients, strict=True):
        step = torch.zeros_like(role[name])
        step.view(-1)[0] = 1e-2
        up, down = loss({**role, name: role[name] + step}), loss({**role, name: role[name] - step})
        assert gradient.view(-1)[0].item() == pytest.approx(((up - down) / 2e-2).item(), rel=1e-2)
    assert not any(tensor.requires_grad for tensor in BASE.values())


def test_training_a_full_role_leaves_the_base_alone() -> None:
    found = adapter(kind="full")
    before = {name: tensor.clone() for name, tensor in BASE.items()}
    for tensor in found.new(KEYS, "fake").values():
        tensor.add_(1)
    assert all(torch.equal(BASE[name], before[name]) for name in BASE)


def test_two_roles_start_from_different_projections_and_one_role_always_from_the_same() -> None:
    found = adapter()
    first, again, other = found.new(KEYS, "fake"), found.new(KEYS, "fake"), found.new(KEYS, "generator")
    name = "block.attn.to_q.lora_A"
    assert torch.equal(first[name], again[name])
    assert not torch.equal(first[name], other[name])


def test_a_target_that_matches_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'attn\.to_z'.*no linear layer") as caught:
        adapter(targets=("attn.to_q", "attn.to_z")).check()
    assert "block.attn.to_q" in (caught.value.hint or "")
    adapter(targets=("attn.to_z",), kind="full").check()  # nothing is looked for


def test_only_linear_layers_are_targets() -> None:
    assert adapter(targets=("attn.to_q", "ff")).targets() == ["block.attn.to_q", "block.ff"]
    with pytest.raises(ConfigError, match="'norm'"):
        adapter(targets=("norm",)).targets()
