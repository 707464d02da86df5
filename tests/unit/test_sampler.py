"""Claims about trajectories: cutting them into batches changes nothing, and training replays what was rolled out."""

from __future__ import annotations

import pytest
import torch

from tdm_r1.config import SamplerConfig
from tdm_r1.models.backbone import Condition
from tdm_r1.models.distiller import Batch, replay, replay_path
from tdm_r1.models.levels import steps
from tdm_r1.models.sampler import guided_sample, paired_velocity, trajectory, velocity_at
from tdm_r1.sampling import sigma_grid
from tests.unit.networks import SHAPE, Affine, condition, noise

SOLVERS = ["euler", "dpmpp2m"]


def sampler(solver: str = "euler") -> SamplerConfig:
    return SamplerConfig.model_validate({"solver": solver})


def batch_of(path: torch.Tensor, j: int) -> Batch:
    ids = [f"sample {n}" for n in range(len(path))]
    return Batch(steps(sampler())[j], path[:, j], path[:, j + 1], path[:, 0], condition(len(path)), ids)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("microbatch", [1, 3, 7, 100])
def test_a_trajectory_does_not_depend_on_the_microbatch(solver: str, microbatch: int) -> None:
    network = Affine()
    whole = trajectory(network, noise(7), condition(7), {}, sampler(solver), 7)
    network.calls.clear()
    parts = trajectory(network, noise(7), condition(7), {}, sampler(solver), microbatch)
    assert max(network.calls) == min(microbatch, 7)
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_trajectory_goes_from_the_noise_through_every_level(solver: str) -> None:
    network = Affine()
    path = trajectory(network, noise(3), condition(3), {}, sampler(solver), 8)
    assert path.shape == (3, 5, *SHAPE)
    assert torch.equal(path[:, 0], noise(3))
    assert network.calls == [3] * 4
    assert not torch.equal(path[0], path[1])


def test_the_path_is_euler_written_out() -> None:
    network, x, grid = Affine(), noise(3), sigma_grid(4, 3.0)
    path = trajectory(network, x, condition(3), {}, sampler(), 8)
    for j in range(4):
        x = x + (grid[j + 1] - grid[j]) * network.velocity(x, torch.full((3,), grid[j]), condition(3), {})
        torch.testing.assert_close(path[:, j + 1], x, rtol=0, atol=1e-5)


@pytest.mark.parametrize("j", range(4))
def test_the_replayed_step_equals_the_rollout_s_and_carries_gradient(j: int) -> None:
    network = Affine()
    path = trajectory(network, noise(5), condition(5), {}, sampler(), 8)
    batch = batch_of(path, j)
    weights = {"layer.weight": network.weight.clone().requires_grad_()}
    student = replay(network, batch, weights)
    torch.testing.assert_close(student.x_next, path[:, j + 1], rtol=0, atol=1e-5)
    torch.testing.assert_close(student.x0, batch.x0, rtol=0, atol=1e-4)
    (gradient,) = torch.autograd.grad(student.x_next.sum(), weights["layer.weight"])
    assert gradient.abs().max() > 0


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_replayed_path_ends_in_the_rollout_s_image_bit_for_bit(solver: str) -> None:
    network = Affine()
    path = trajectory(network, noise(5), condition(5), {}, sampler(solver), 8)
    student = replay_path(network, batch_of(path, 3), {}, sampler(solver))
    assert torch.equal(student.x0, path[:, -1])
    assert torch.equal(student.x_next, path[:, -1])


def test_the_gradient_of_the_replayed_path_is_that_of_every_step_together() -> None:
    """The image is a function of the weights at each of the K steps: its derivative is the sum of K derivatives."""
    network, grid = Affine(), sigma_grid(4, 3.0)
    path = trajectory(network, noise(5), condition(5), {}, sampler(), 8)
    weight = network.weight.clone().requires_grad_()
    student = replay_path(network, batch_of(path, 3), {"layer.weight": weight}, sampler())
    (found,) = torch.autograd.grad(student.x0.square().sum(), weight)

    def image(own: list[torch.Tensor]) -> torch.Tensor:
        x = noise(5)
        for j, w in enumerate(own):
            levels = torch.full((5,), grid[j])
            x = x + (grid[j + 1] - grid[j]) * network.velocity(x, levels, condition(5), {"layer.weight": w})
        return x.square().sum()

    own = [network.weight.clone().requires_grad_() for _ in range(4)]
    shares = torch.autograd.grad(image(own), own)
    torch.testing.assert_close(found, torch.stack(shares).sum(0), rtol=1e-5, atol=1e-5)
    assert all(share.abs().max() > 1e-3 * found.abs().max() for share in shares)


def test_one_call_of_twice_the_batch_equals_two_calls() -> None:
    network, x, empty = Affine(), noise(4), condition(1)
    levels = torch.tensor([0.1, 0.3, 0.7, 1.0], dtype=torch.float64)
    both = paired_velocity(network, x, levels, condition(4), empty, {})
    assert network.calls == [8]
    null = Condition(empty.sequence.expand(4, -1, -1), empty.pooled.expand(4, -1))
    for found, prompt in zip(both, (condition(4), null), strict=True):
        torch.testing.assert_close(found, velocity_at(network, x, levels, prompt, {}))


def test_guidance_of_one_is_the_conditional_path_and_of_zero_the_unconditional() -> None:
    network, empty = Affine(), condition(1)

    def sample(prompt: Condition, guidance: float) -> torch.Tensor:
        return guided_sample(network, noise(3), prompt, empty, {}, steps=4, shift=3.0, guidance=guidance, microbatch=2)

    plain = trajectory(network, noise(3), condition(3), {}, sampler(), 8)[:, -1]
    torch.testing.assert_close(sample(condition(3), 1.0), plain, rtol=0, atol=1e-5)
    null = condition(3).null(empty)
    torch.testing.assert_close(sample(condition(3), 0.0), sample(null, 1.0), rtol=0, atol=1e-5)
    assert not torch.allclose(sample(condition(3), 4.0), plain)
