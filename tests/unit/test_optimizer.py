"""Claims about the optimizer of a role: an interruption changes nothing, and nothing infinite passes."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

from tdm_r1.config import AdamConfig
from tdm_r1.errors import NumericalError
from tdm_r1.models.optimizer import AdamW, RoleOptimizer

FORGETFUL = AdamConfig(learning_rate=0.1, betas=(0.0, 0.99), weight_decay=0.01, clip_norm=1.0)
CONFIG = AdamConfig(learning_rate=0.1, betas=(0.9, 0.99), weight_decay=0.01, clip_norm=1.0)


def start() -> dict[str, Tensor]:
    return {"b": torch.tensor([1.0, -2.0]), "a": torch.tensor([[0.5, 0.25]])}


def train(optimizer: RoleOptimizer, steps: range) -> list[float]:
    norms = []
    for step in steps:
        sum((p * (step + 1) - 3).square().sum() for p in optimizer.params.values()).backward()  # type: ignore[union-attr]
        norms.append(optimizer.step(step))
    return norms


@pytest.mark.parametrize("config", [CONFIG, FORGETFUL])
@pytest.mark.parametrize("pause", [0, 1, 3])
def test_stopping_and_going_on_equals_never_having_stopped(pause: int, config: AdamConfig) -> None:
    unbroken = RoleOptimizer("r", start(), config, {})
    train(unbroken, range(6))
    before = RoleOptimizer("r", start(), config, {})
    train(before, range(pause))
    tensors, state = load(save(before.tensors())), load(save(before.state()))
    after = RoleOptimizer("r", tensors, config, state)
    train(after, range(pause, 6))
    assert all(torch.equal(after.tensors()[name], tensor) for name, tensor in unbroken.tensors().items())
    assert all(torch.equal(after.state()[name], tensor) for name, tensor in unbroken.state().items())


def test_forgetting_the_moments_is_noticed() -> None:
    unbroken, broken = RoleOptimizer("r", start(), CONFIG, {}), RoleOptimizer("r", start(), CONFIG, {})
    train(unbroken, range(4))
    train(broken, range(2))
    fresh = RoleOptimizer("r", broken.tensors(), CONFIG, {})
    train(fresh, range(2, 4))
    assert not torch.equal(fresh.tensors()["b"], unbroken.tensors()["b"])


def test_it_is_adamw_with_a_clipped_norm() -> None:
    ours = RoleOptimizer("r", start(), CONFIG, {})
    reference = [torch.nn.Parameter(tensor) for _, tensor in sorted(start().items())]
    adamw = torch.optim.AdamW(reference, lr=0.1, betas=(0.9, 0.99), weight_decay=0.01, eps=1e-8)
    norms = train(ours, range(3))
    for step in range(3):
        adamw.zero_grad()
        torch.stack([(p * (step + 1) - 3).square().sum() for p in reference]).sum().backward()
        norm = torch.nn.utils.clip_grad_norm_(reference, 1.0)
        assert norms[step] == pytest.approx(norm.item())
        assert norm > 1
        adamw.step()
    for mine, theirs in zip(ours.tensors().values(), reference, strict=True):
        torch.testing.assert_close(mine, theirs.detach())


@pytest.mark.parametrize("config", [CONFIG, FORGETFUL])
def test_its_steps_are_those_of_torch_s_class_to_the_last_bit(config: AdamConfig) -> None:
    """Also where a parameter has a gradient in some steps only."""
    sizes, rates = ((3, 5), (7,), (2, 2)), {"lr": config.learning_rate, "betas": config.betas, "eps": config.epsilon}
    ours, theirs = ([torch.ones(size, requires_grad=True) for size in sizes] for _ in range(2))
    mine, torchs = AdamW(ours, config), torch.optim.AdamW(theirs, weight_decay=config.weight_decay, **rates)  # type: ignore[arg-type]
    for step in range(5):
        for number, pair in enumerate(zip(ours, theirs, strict=True)):
            gradient = torch.randn(sizes[number], generator=torch.Generator().manual_seed(10 * step + number))
            for parameter in pair if (step + number) % 3 else ():
                parameter.grad = gradient.clone()
        mine.step()
        torchs.step()
        mine.forget_gradients()
        torchs.zero_grad()
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    for a, b in zip(ours, theirs, strict=True):
        assert mine.state[a].keys() == torchs.state[b].keys()
        assert all(torch.equal(value, torchs.state[b][key]) for key, value in mine.state[a].items())


def test_the_caller_s_tensors_are_never_written_to() -> None:
    given = start()
    optimizer = RoleOptimizer("r", given, CONFIG, {})
    taken = optimizer.tensors()
    train(optimizer, range(1))
    assert all(
        torch.equal(given[name], tensor) and torch.equal(taken[name], tensor) for name, tensor in start().items()
    )


def test_before_the_first_step_there_is_no_state_to_store() -> None:
    assert RoleOptimizer("r", start(), CONFIG, {}).state() == {}


def test_a_gradient_that_is_not_finite_stops_before_the_weights_change() -> None:
    optimizer = RoleOptimizer("fake", start(), CONFIG, {})
    (optimizer.params["a"].sum() * float("nan")).backward()
    optimizer.params["b"].grad = torch.zeros(2)
    with pytest.raises(NumericalError, match="`fake/gradient` is not finite at step 4") as caught:
        optimizer.step(4)
    assert caught.value.hint
    assert all(torch.equal(optimizer.tensors()[name], tensor) for name, tensor in start().items())


def test_a_step_into_infinity_is_noticed_at_once() -> None:
    huge = AdamConfig(learning_rate=3e38, weight_decay=1.0)
    optimizer = RoleOptimizer("fake", {"a": torch.tensor([-3e38])}, huge, {})
    (-optimizer.params["a"] * 1e-30).sum().backward()
    with pytest.raises(NumericalError, match="`fake/weights` is not finite at step 0"):
        optimizer.step(0)


def test_a_first_moment_that_is_forgotten_at_once_is_not_stored() -> None:
    optimizer = RoleOptimizer("r", start(), FORGETFUL, {})
    train(optimizer, range(1))
    assert {name.partition("/")[0] for name in optimizer.state()} == {"exp_avg_sq", "step"}
