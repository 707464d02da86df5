from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tdm_r1 import sampling as s

OLD_NUMPY = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning:diffusers")
SHAPES = [(3, 2, 1, 1), (3, 4, 8, 8)]


def gaussian(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def diffusers_scheduler(steps: int, order: int = 2) -> object:
    from diffusers import DPMSolverMultistepScheduler

    scheduler = DPMSolverMultistepScheduler(
        num_train_timesteps=1000, prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0,
        solver_order=order, solver_type="midpoint", lower_order_final=True, algorithm_type="dpmsolver++",
        final_sigmas_type="zero",
    )  # fmt: skip
    scheduler.set_timesteps(steps)
    return scheduler


def test_the_four_step_grid_truncates_to_the_published_timesteps() -> None:
    grid = s.sigma_grid(4, 3.0)
    assert [int(1000 * sigma) for sigma in grid] == [999, 899, 749, 499, 0]
    assert s.sigma_grid(4, 3.0, replicate=True) == (0.999, 0.899, 0.749, 0.499, 0.0)
    assert [s.unshift(sigma) for sigma in grid] == pytest.approx([0.999, 0.74925, 0.4995, 0.24975, 0])


@OLD_NUMPY
@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_the_grid_is_that_of_diffusers(steps: int) -> None:
    scheduler = diffusers_scheduler(steps)
    assert s.sigma_grid(steps) == pytest.approx(scheduler.sigmas.tolist(), abs=1e-6)  # type: ignore[attr-defined]
    integer = [1000 * sigma for sigma in s.sigma_grid(steps, replicate=True)[:-1]]
    assert integer == pytest.approx(scheduler.timesteps.tolist())  # type: ignore[attr-defined]


def test_unshift_inverts_shift_for_floats_and_tensors() -> None:
    u = torch.linspace(0, 1, 11, dtype=torch.float64)
    torch.testing.assert_close(s.unshift(s.shift(u, 3.0), 3.0), u)
    assert s.unshift(s.shift(0.3, 6.0), 6.0) == pytest.approx(0.3)
    assert (s.shift(0.0), s.shift(1.0), s.shift(0.5)) == (0.0, 1.0, 0.75)


@pytest.mark.parametrize("shape", SHAPES)
def test_predictions_recover_data_and_noise_of_the_path(shape: tuple[int, ...]) -> None:
    x0, noise, sigma = gaussian(shape, 0), gaussian(shape, 1), torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    x = torch.stack([(1 - sigma[i]) * x0[i] + sigma[i] * noise[i] for i in range(3)])
    torch.testing.assert_close(s.predict_x0(x, noise - x0, sigma), x0)
    torch.testing.assert_close(s.predict_noise(x, noise - x0, sigma), noise)


def test_one_level_per_sample_equals_a_loop_over_samples() -> None:
    x, v, noise = (gaussian((3, 4, 8, 8), i) for i in range(3))
    near, far = torch.tensor([0.0, 0.2, 0.5]).double(), torch.tensor([0.3, 0.4, 0.95]).double()
    for i in range(3):
        a, b = near[i].item(), far[i].item()
        torch.testing.assert_close(s.euler_step(x, v, far, near)[i], s.euler_step(x[i], v[i], b, a))
        torch.testing.assert_close(s.renoise(x, noise, near, far)[i], s.renoise(x[i], noise[i], a, b))
        expected = s.conditional_velocity(x[i], noise[i], a, b)
        torch.testing.assert_close(s.conditional_velocity(x, noise, near, far)[i], expected)


def test_levels_in_double_leave_latents_in_single_precision() -> None:
    x, level = torch.zeros(3, 2, 1, 1), torch.full((3,), 0.5, dtype=torch.float64)
    assert s.predict_x0(x, x, level).dtype == s.renoise(x, x, 0.1, level).dtype == torch.float32


@OLD_NUMPY
@pytest.mark.parametrize("order", [1, 2])
def test_a_rollout_equals_diffusers_scheduler(order: int) -> None:
    """Order 1 against Euler (1), order 2 against DPM-Solver++ 2M, on the nonlinear field v = tanh(x)·(1 + σ)."""
    scheduler, x = diffusers_scheduler(4, order), gaussian((2, 4, 8, 8), 0)
    theirs, grid, previous, before = x, scheduler.sigmas.tolist(), None, 1.0  # type: ignore[attr-defined]
    for sigma, ahead, t in zip(grid[:-1], grid[1:], scheduler.timesteps, strict=True):  # type: ignore[attr-defined]
        v_theirs, v = torch.tanh(theirs) * (1 + sigma), torch.tanh(x) * (1 + sigma)
        theirs = scheduler.step(v_theirs, t, theirs).prev_sample  # type: ignore[attr-defined]
        x0 = s.predict_x0(x, v, sigma)
        second = s.dpmpp2m_step(x, x0, sigma, ahead, x0_previous=previous, sigma_previous=before)
        x = s.euler_step(x, v, sigma, ahead) if order == 1 else second
        previous, before = x0, sigma
        torch.testing.assert_close(x, theirs.double(), rtol=1e-5, atol=1e-5)


def test_the_solvers_agree_on_a_single_step() -> None:
    x, v = gaussian((2, 2, 1, 1), 0), gaussian((2, 2, 1, 1), 1)
    for sigma, ahead in [(1.0, 0.9), (0.75, 0.5), (0.5, 0.0)]:
        first = s.dpmpp2m_step(x, s.predict_x0(x, v, sigma), sigma, ahead)
        torch.testing.assert_close(first, s.euler_step(x, v, sigma, ahead))
        mixed = (1 - ahead) * s.predict_x0(x, v, sigma) + ahead * s.predict_noise(x, v, sigma)
        torch.testing.assert_close(s.euler_step(x, v, sigma, ahead), mixed)


def test_guidance_of_weight_one_is_exactly_conditional() -> None:
    null, cond = torch.randn(5), torch.randn(5)
    assert torch.equal(s.guide(null, cond, 1.0), cond)
    torch.testing.assert_close(s.guide(null, cond, 4.5), null + 4.5 * (cond - null))


def test_a_level_is_drawn_from_the_stated_interval() -> None:
    assert s.sample_level(0.0, 0.5) == pytest.approx(s.shift(0.25 + 0.02))
    assert s.sample_level(1.0, 0.5) == pytest.approx(1.0)
    assert s.sample_level(0.0, 0.0, floor=0.55) == pytest.approx(s.shift(s.unshift(0.55) + 0.02))
    assert s.sample_level(0.0, 0.75, floor=0.55) == s.sample_level(0.0, 0.75)
    assert s.sample_level(1.0, 0.5, mode="separate", sigma_current=0.75) == pytest.approx(s.shift(0.5 - 0.01))
    assert s.sample_level(0.3, 0.5, floor=0.9, mode="separate", sigma_current=0.75) == pytest.approx(s.shift(0.49))
    assert s.sample_level(0.5, 0.0, shift=1.0) == pytest.approx((0.02 + 1) / 2)
    many = s.sample_level(torch.tensor([0.0, 0.5, 1.0]).double(), 0.5)
    assert torch.as_tensor(many).tolist() == pytest.approx([s.sample_level(u, 0.5) for u in (0.0, 0.5, 1.0)])
    with pytest.raises(ValueError, match="sigma_current"):
        s.sample_level(0.5, 0.5, mode="separate")


def test_at_least_clamps_floats_and_tensors() -> None:
    assert (s.at_least(0.2, 0.4), s.at_least(0.5, 0.4)) == (0.4, 0.5)
    assert torch.equal(torch.as_tensor(s.at_least(torch.tensor([0.2, 0.5]), 0.4)), torch.tensor([0.4, 0.5]))


def test_renoising_a_state_of_the_path_gives_a_state_of_the_path() -> None:
    """Mean (1−σ_τ) x₀ and standard deviation σ_τ, from 200,000 draws."""
    x0, near, far, draws = 1.7, 0.4, 0.8, 200_000
    x_near = (1 - near) * x0 + near * gaussian((draws, 1), 0)
    x_far = s.renoise(x_near, gaussian((draws, 1), 1), near, far)
    assert x_far.mean().item() == pytest.approx((1 - far) * x0, abs=0.01)
    assert x_far.std().item() == pytest.approx(far, abs=0.01)


def test_renoising_to_a_lower_level_is_refused() -> None:
    for near, far in [(0.5, 0.4), (1.0, 1.0)]:
        with pytest.raises(ValueError, match="cannot re-noise"):
            s.renoise_coefficients(near, far)
    with pytest.raises(ValueError, match="cannot re-noise"):
        s.renoise_coefficients(0.5, torch.tensor([0.6, 0.4]))


@pytest.mark.parametrize("sigma_next", [0.0, 0.49967, 0.89964])
def test_the_conditional_velocity_is_the_derivative_of_the_path(sigma_next: float) -> None:
    """Central differences of a(σ) x_n + b(σ) ε, with a and b written out here in plain Python."""
    x, noise, h = gaussian((2, 4, 3, 3), 0), gaussian((2, 4, 3, 3), 1), 1e-6

    def path(sigma: float) -> Tensor:
        a = (1 - sigma) / (1 - sigma_next)
        return a * x + math.sqrt(sigma**2 - (a * sigma_next) ** 2) * noise

    for level in (sigma_next + 0.02, (sigma_next + 1) / 2, 0.99):
        expected = (path(level + h) - path(level - h)) / (2 * h)
        actual = s.conditional_velocity(x, noise, sigma_next, level)
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(s.renoise(x, noise, sigma_next, level), path(level))


def test_from_clean_data_the_conditional_velocity_is_noise_minus_data() -> None:
    x, noise = gaussian((2, 2, 1, 1), 0), gaussian((2, 2, 1, 1), 1)
    torch.testing.assert_close(s.conditional_velocity(x, noise, 0.0, 0.6), noise - x)
