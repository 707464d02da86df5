"""Claims about `model.compile`: the eager network's answers and gradients, of the role that was asked, whichever it is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch._dynamo
from torch import Tensor
from torch._dynamo.utils import counters

from tdm_r1.config import AdapterConfig
from tdm_r1.models.adapters import Adapter
from tdm_r1.models.factored import Factors, Rows, Share
from tdm_r1.models.pipeline import PipelineBackbone
from tdm_r1.rng import Keys
from tests.tiny import TINY_PIPELINES
from tests.unit.tiny_roles import LORA, ROWS, asked, gradients, opened

pytestmark = [  # the compiler hides some of its own warnings, but not from a test run where they are errors
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning"),
]
NEAR = 1e-5
"""Of the largest number."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: make(tmp_path_factory.mktemp(name)) for name, make in TINY_PIPELINES.items()}


def adapter_of(name: str, application: str) -> AdapterConfig:
    return AdapterConfig.model_validate({"application": application, "rank": 4, "targets": LORA[name]})


def drawn(fitted: Adapter, seed: int) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return {key: tensor + 0.1 * torch.randn_like(tensor) for key, tensor in fitted.new(Keys(0, 0), "a").items()}


@torch.no_grad()
def answers(backbone: PipelineBackbone, name: str, application: str, seeds: range) -> list[Tensor]:
    fitted = Adapter(backbone.base(), adapter_of(name, application))
    x, sigma, condition, _ = asked(backbone, name)
    return [backbone.velocity(x, sigma, condition, fitted.apply(drawn(fitted, seed))) for seed in seeds]


def assert_near(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=NEAR * float(expected.abs().max()))


@pytest.mark.parametrize("application", ["merged", "factored"])
@pytest.mark.parametrize("name", list(TINY_PIPELINES))
def test_gradients_of_a_role_are_those_of_the_network_that_is_not_compiled(
    name: str, application: str, folders: dict[str, Path]
) -> None:
    adapter = adapter_of(name, application)
    plain_loss, plain = gradients(opened(folders[name], name), name, adapter)
    loss, found = gradients(opened(folders[name], name, compile=True), name, adapter)
    assert_near(loss, plain_loss)
    assert len(plain) > 4
    assert plain.keys() == found.keys()
    largest = max(float(gradient.abs().max()) for gradient in plain.values())
    for key, gradient in plain.items():
        assert float((gradient - found[key]).abs().max()) < NEAR * largest, key


@pytest.mark.parametrize("application", ["merged", "factored"])
def test_every_role_answers_for_itself_and_none_compiles_anew(application: str, folders: dict[str, Path]) -> None:
    """Two of the three blocks of Z-Image's kinds stand in lists of one layer more: a kind compiles once."""
    eager = answers(opened(folders["z_image"], "z_image"), "z_image", application, range(3))
    backbone = opened(folders["z_image"], "z_image", compile=True)
    first = answers(backbone, "z_image", application, range(1))
    with torch._dynamo.config.patch(error_on_recompile=True):
        others = answers(backbone, "z_image", application, range(1, 3))
    for found, expected in zip([*first, *others], eager, strict=True):
        assert_near(found, expected)
    assert float((eager[0] - eager[1]).abs().max()) > 0.01
