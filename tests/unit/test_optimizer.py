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

EIGHT, FORGETFUL_EIGHT = (each.model_copy(update={"kind": "adamw8bit"}) for each in (CONFIG, FORGETFUL))


def start() -> dict[str, Tensor]:
    large = torch.linspace(-1, 1, 5001)  # of these an 8-bit optimizer has 8-bit moments, the last block is short
    return {"b": torch.tensor([1.0, -2.0]), "a": torch.tensor([[0.5, 0.25]]), "large": large}


def train(optimizer: RoleOptimizer, steps: range) -> list[float]:
    norms = []
    for step in steps:
        sum((p * (step + 1) - 3).square().sum() for p in optimizer.params.values()).backward()  # type: ignore[union-attr]
        norms.append(optimizer.step(step))
    return norms


@pytest.mark.parametrize("config", [CONFIG, FORGETFUL, EIGHT, FORGETFUL_EIGHT])
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


def by_hand(values: Tensor, gradients: list[Tensor], config: AdamConfig) -> Tensor:
    """AdamW with moments that are rounded after every step, block by block, to the nearest of 256 values."""
    from bitsandbytes.functional import create_dynamic_map

    first, second = (torch.zeros_like(values) for _ in range(2))
    beta1, beta2 = config.betas
    for number, gradient in enumerate(gradients, start=1):
        first, second = beta1 * first + (1 - beta1) * gradient, beta2 * second + (1 - beta2) * gradient**2
        values = values * (1 - config.learning_rate * config.weight_decay)
        root = (second / (1 - beta2**number)).sqrt() + config.epsilon
        values = values - config.learning_rate * first / (1 - beta1**number) / root
        first, second = (
            rounded(moment, create_dynamic_map(signed=signed)) for moment, signed in ((first, True), (second, False))
        )
    return values


def rounded(moment: Tensor, table: Tensor) -> Tensor:
    blocks = []
    for block in moment.split(256):
        largest = block.abs().max()
        nearest = (block[:, None] / largest - table).abs().argmin(1)
        blocks.append(table[nearest] * largest)
    return torch.cat(blocks)


def test_eight_bits_are_adamw_with_moments_rounded_to_256_values() -> None:
    config = EIGHT.model_copy(update={"clip_norm": 1e9, "learning_rate": 1e-2})
    gradients = [torch.randn(4608, generator=torch.Generator().manual_seed(n)) for n in range(3)]
    optimizer = RoleOptimizer("r", {"w": torch.ones(4608)}, config, {})
    for step, gradient in enumerate(gradients):
        optimizer.backward((optimizer.params["w"] * gradient).sum())
        optimizer.step(step)
    expected = by_hand(torch.ones(4608), gradients, config)
    apart = (optimizer.tensors()["w"] - expected).abs()
    # between two values that are nearly as close the library does not always take the closer one
    assert float((apart < 1e-6).float().mean()) > 0.95
    assert float(apart.max()) < 1e-2
    unrounded = CONFIG.model_copy(update={"clip_norm": 1e9, "learning_rate": 1e-2})
    whole = RoleOptimizer("r", {"w": torch.ones(4608)}, unrounded, {})
    for step, gradient in enumerate(gradients):
        whole.backward((whole.params["w"] * gradient).sum())
        whole.step(step)
    unlike = (whole.tensors()["w"] - expected).abs()
    assert float(apart.mean()) < 0.1 * float(unlike.mean())


def test_moments_of_eight_bits_take_a_quarter_and_small_parameters_keep_theirs_whole() -> None:
    optimizer, whole = (RoleOptimizer("r", start(), config, {}) for config in (EIGHT, CONFIG))
    train(optimizer, range(1))
    train(whole, range(1))
    state = optimizer.state()
    assert {key: value.dtype for key, value in state.items() if key.endswith("/large")} == {
        "exp_avg/large": torch.uint8,
        "exp_avg.scale/large": torch.float32,
        "exp_avg_sq/large": torch.uint8,
        "exp_avg_sq.scale/large": torch.float32,
    }
    assert torch.equal(state["exp_avg_sq/a"], whole.state()["exp_avg_sq/a"])
    sizes = [sum(v.nbytes for k, v in each.items() if k.endswith("/large")) for each in (state, whole.state())]
    assert sizes[0] < 0.26 * sizes[1]
