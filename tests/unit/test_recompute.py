"""Claims about gradient checkpointing and autocast: a role's gradients for less memory, or in another precision."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tdm_r1.config import AdapterConfig
from tdm_r1.models.adapters import Adapter
from tdm_r1.rng import Keys
from tests.tiny import TINY_PIPELINES
from tests.unit.tiny_roles import LORA, asked, gradients, opened


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: make(tmp_path_factory.mktemp(name)) for name, make in TINY_PIPELINES.items()}


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
