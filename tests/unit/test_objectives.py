from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from tdm_r1.objectives import distillation as d
from tdm_r1.objectives import generator as g
from tdm_r1.objectives import surrogate as r

SHAPE = (3, 4, 5, 5)


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def three(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    return gaussian(*SHAPE, seed=seed), gaussian(*SHAPE, seed=seed + 1), gaussian(*SHAPE, seed=seed + 2)


def gradient(loss: Tensor, of: Tensor) -> Tensor:
    return torch.autograd.grad(loss, of)[0]


@dataclass(frozen=True)
class Batch:
    error: Tensor
    reference: Tensor
    advantage: Tensor
    group: Tensor

    def loss(
        self,
        beta: float = 10.0,
        *,
        gates: r.Gates | None = None,
        negative_weight: float = 1.0,
        valid_N: Tensor | None = None,
    ) -> r.GroupPreference:
        loss = partial(r.group_preference_loss, gates=gates, negative_weight=negative_weight, valid_N=valid_N)
        return loss(self.error, self.reference, self.advantage, self.group, beta=beta)


def batch(groups: int = 3, size: int = 4) -> Batch:
    advantage = gaussian(groups, size, seed=1)
    return Batch(
        error=gaussian(groups * size, seed=2).abs().requires_grad_(),
        reference=gaussian(groups * size, seed=3).abs(),
        advantage=(advantage - advantage.mean(1, keepdim=True)).flatten(),
        group=torch.arange(groups).repeat_interleave(size),
    )


def logits_by_loop(b: Batch, beta: float) -> list[float]:
    logits = []
    for name in sorted(set(b.group.tolist())):
        rows = [i for i, own in enumerate(b.group.tolist()) if own == name]
        gains = [b.advantage[i].item() * (b.error[i].item() - b.reference[i].item()) for i in rows]
        logits.append(beta / len(rows) * sum(gains))
    return logits


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


# --- surrogate ---------------------------------------------------------------------------------------------------


def test_the_group_loss_and_its_logits_equal_a_plain_loop() -> None:
    b, beta = batch(), 10.0
    logits = logits_by_loop(b, beta)
    result = b.loss(beta)
    assert result.logits.tolist() == pytest.approx(logits)
    terms = [sigmoid(logits[i // 4]) * b.advantage[i].item() * b.error[i].item() for i in range(12)]
    assert result.loss.item() == pytest.approx(sum(terms) / 12)


def test_the_gradient_is_that_of_the_group_likelihood() -> None:
    b, beta = batch(), 10.0
    delta = b.error - b.reference
    z_G = beta * (b.advantage * delta).view(3, 4).mean(1)
    expected = gradient(-logsigmoid(-z_G).mean(), b.error)
    torch.testing.assert_close(gradient(b.loss(beta).loss, b.error), expected / beta)


def test_the_gradient_is_that_of_the_bradley_terry_model_of_the_two_halves() -> None:
    """−log σ(Σ_{G⁺} w r − Σ_{G⁻} w r), r = −β(ℓ − ℓ_ref)/|g| and w = |A|, by finite differences."""
    b, beta, h = batch(2, 6), 3.0, 1e-6

    def likelihood(error: Tensor) -> float:
        total = 0.0
        for name in range(2):
            margin = 0.0
            for i in range(12):
                if b.group[i] == name:
                    reward = -beta * (error[i] - b.reference[i]).item() / 6
                    margin += (1 if b.advantage[i] > 0 else -1) * abs(b.advantage[i].item()) * reward
            total += math.log1p(math.exp(-margin)) / 2
        return total

    with torch.no_grad():
        steps = [h * torch.eye(12, dtype=torch.float64)[i] for i in range(12)]
        expected = [(likelihood(b.error + e) - likelihood(b.error - e)) / (2 * h) / beta for e in steps]
    assert gradient(b.loss(beta).loss, b.error).tolist() == pytest.approx(expected, rel=1e-5, abs=1e-9)


def test_the_two_halves_of_a_group_pull_with_equal_force() -> None:
    b = batch()
    force = gradient(b.loss().loss, b.error).view(3, 4)
    assert force.sum(1).tolist() == pytest.approx([0, 0, 0], abs=1e-12)
    assert (force.abs().sum(1) > 0).all()
    assert torch.equal(force.sign(), b.advantage.view(3, 4).sign())


def test_the_logit_ignores_a_constant_added_to_the_rewards_of_a_group() -> None:
    """r = −β(ℓ − ℓ_ref): this is what removes log Z(c)."""
    b = batch()
    shifted = Batch(b.error + torch.tensor([0.3, -0.2, 5.0]).repeat_interleave(4), b.reference, b.advantage, b.group)
    torch.testing.assert_close(shifted.loss().logits, b.loss().logits)


def test_a_pair_gives_the_gradient_of_diffusion_dpo() -> None:
    """−log σ(−β' [(ℓ_w − ℓ_w,ref) − (ℓ_l − ℓ_l,ref)]) with β' = β a / 2 for advantages ±a."""
    a, beta = 0.9, 8.0
    error = torch.tensor([0.5, 0.7], dtype=torch.float64, requires_grad=True)
    b = Batch(error, torch.tensor([0.6, 0.55]).double(), torch.tensor([-a, a]).double(), torch.tensor([4, 4]))
    lose, win = (error - b.reference).unbind()
    expected = gradient(-logsigmoid(-(beta * a / 2) * (win - lose)), error)
    torch.testing.assert_close(gradient(b.loss(beta).loss, error), expected / beta)


def test_two_ranks_with_whole_groups_average_to_one_rank_also_when_samples_failed() -> None:
    b = batch(4, 3)
    valid = torch.ones(12, dtype=torch.bool)
    valid[[1, 6, 7, 8]] = False  # one sample of group 0; all of group 2
    whole = gradient(b.loss(valid_N=valid).loss, b.error)
    halves = []
    for rows in (slice(0, 6), slice(6, 12)):
        rank = Batch(b.error[rows], b.reference[rows], b.advantage[rows], b.group[rows])
        halves.append(gradient(rank.loss(valid_N=valid[rows]).loss, b.error))
    torch.testing.assert_close((halves[0] + halves[1]) / 2, whole)


def test_a_failed_sample_is_as_if_it_were_not_in_its_group() -> None:
    b, keep = batch(1, 5), torch.tensor([0, 1, 3, 4])
    valid = torch.tensor([True, True, False, True, True])
    masked = b.loss(valid_N=valid)
    short = Batch(b.error[keep], b.reference[keep], b.advantage[keep], b.group[keep]).loss()
    torch.testing.assert_close(masked.logits, short.logits)
    force = gradient(masked.loss, b.error)
    torch.testing.assert_close(force, gradient(short.loss, b.error))
    assert force[2] == 0


def test_the_order_and_names_of_the_groups_do_not_matter() -> None:
    b = batch()
    order = torch.tensor([7, 2, 9, 0, 4, 11, 5, 1, 10, 3, 8, 6])
    mixed = Batch(b.error[order], b.reference[order], b.advantage[order], 50 - 9 * b.group[order])
    torch.testing.assert_close(gradient(mixed.loss().loss, b.error), gradient(b.loss().loss, b.error))


def test_the_ratio_gate_closes_exactly_the_samples_that_moved_far_enough() -> None:
    c = 1e-3
    error = torch.full((6,), 0.5, dtype=torch.float64, requires_grad=True)
    ratio = [1 + 2 * c, 1 - 2 * c, 1 + 2 * c, 1 - 2 * c, 1 + c / 2, 1 - c / 2]
    advantage = torch.tensor([1.0, 1.0, -1.0, -1.0, 1.0, -1.0]).double()
    b = Batch(error, torch.zeros(6).double(), advantage, torch.zeros(6, dtype=torch.int64))
    gates = r.Gates(old_error=0.5 + torch.tensor(ratio).double().log(), clip=c)
    gated, free = b.loss(gates=gates), b.loss()
    expected = gradient(free.loss, error).clone()
    expected[[0, 3]] = 0  # good ones already more likely; bad ones already less likely
    assert torch.equal(gradient(gated.loss, error), expected)
    assert gated.clipped_fraction == pytest.approx(2 / 6)
    assert torch.equal(gated.logits, free.logits)


def test_the_drift_gate_zeroes_the_gradient_and_reports_the_share_it_closed() -> None:
    b = batch(1, 4)
    gated = b.loss(gates=r.Gates(drift=torch.tensor([0.01, 0.06, 0.05, 0.9])))
    force, free = gradient(gated.loss, b.error), gradient(b.loss().loss, b.error)
    assert force[[1, 3]].tolist() == [0, 0]
    assert torch.equal(force[[0, 2]], free[[0, 2]])
    assert gated.drifted_fraction == 0.5
    assert gated.clipped_fraction == 0


def test_gates_reach_the_parameters_and_not_only_the_metrics() -> None:
    weight = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    target, base = gaussian(2, 3, 1, 1), gaussian(2, 3, 1, 1, seed=5)
    prediction = weight * base
    error = r.velocity_error(prediction, target)
    b = Batch(error, error.detach() + 0.1, torch.tensor([1.0, -1.0]).double(), torch.zeros(2, dtype=torch.int64))
    assert gradient(b.loss().loss, weight) != 0
    prediction = weight * base
    b = Batch(r.velocity_error(prediction, target), b.reference, b.advantage, b.group)
    closed = b.loss(gates=r.Gates(drift=torch.ones(2)))
    assert closed.drifted_fraction == 1
    assert gradient(closed.loss, weight) == 0


def test_the_negative_weight_scales_only_the_gradient_of_worse_samples() -> None:
    b = batch()
    full, half = b.loss(), b.loss(negative_weight=0.25)
    expected = gradient(full.loss, b.error)
    expected = torch.where(b.advantage < 0, 0.25 * expected, expected)
    torch.testing.assert_close(gradient(half.loss, b.error), expected)
    assert torch.equal(full.logits, half.logits)


def test_the_surrogate_loss_weighs_late_steps_and_draws_drifted_samples_back() -> None:
    b = batch(1, 4)
    drift = torch.tensor([0.01, 0.02, 0.9, 0.0], dtype=torch.float64, requires_grad=True)
    for step in range(4):
        preference = b.loss(gates=r.Gates(drift=drift))
        total = r.surrogate_loss(preference, drift, step=step, steps=4, kl_weight=1e-3)
        assert total.loss.item() == pytest.approx((step + 1) / 4 * (preference.loss.item() + 1e-3 * 0.93 / 4))
        assert gradient(total.loss, drift).tolist() == pytest.approx([(step + 1) / 4 * 1e-3 / 4] * 4)


def test_errors_and_drift_are_means_over_all_but_the_sample() -> None:
    a, b = gaussian(*SHAPE), gaussian(*SHAPE, seed=1)
    expected = [((a[i] - b[i]).flatten() ** 2).sum().item() / 100 for i in range(3)]
    assert r.velocity_error(a, b).tolist() == pytest.approx(expected)
    assert r.drift(a, b).tolist() == pytest.approx(expected)
    for distance in (r.velocity_error, r.drift):
        v, other = a.clone().requires_grad_(), b.clone().requires_grad_()
        distance(v, other).sum().backward()
        assert v.grad is not None
        torch.testing.assert_close(v.grad, (a - b) / 50)
        assert other.grad is None


# --- distillation ------------------------------------------------------------------------------------------------


def test_the_fake_score_learns_the_velocity_from_the_estimate_to_the_level() -> None:
    """With x_τ on the path from x̂₀ the target is ε − x̂₀; the loss is checked by a loop over samples."""
    x0, noise, teacher = gaussian(*SHAPE), gaussian(*SHAPE, seed=1), gaussian(*SHAPE, seed=2)
    sigma = torch.tensor([0.2, 0.5, 0.9]).double()
    s = sigma.view(3, 1, 1, 1)
    level = (1 - s) * x0 + s * noise
    guess = gaussian(*SHAPE, seed=3).requires_grad_()
    result = d.fake_score_loss(guess, teacher, x0, level, sigma)
    scores = [((noise[i] - x0[i] - guess[i]) ** 2).mean().item() for i in range(3)]
    pulls = [((teacher[i] - guess[i]) ** 2).mean().item() for i in range(3)]
    assert result.loss.item() == pytest.approx(sum(scores) / 3 + 0.02 * sum(pulls) / 3)
    assert result.score_error.item() == pytest.approx(sum(scores) / 3)
    assert result.teacher_error.item() == pytest.approx(sum(pulls) / 3)
    perfect = (noise - x0).requires_grad_()
    alone = d.fake_score_loss(perfect, teacher, x0, level, sigma, teacher_weight=0.0)
    assert gradient(alone.loss, perfect).abs().max() < 1e-12


def test_min_snr_on_a_velocity_is_min_snr_on_the_estimate_of_x0() -> None:
    x0, level, teacher, guess = (gaussian(*SHAPE, seed=i) for i in range(4))
    sigma = torch.tensor([0.1, 0.3, 0.8]).double()
    expected = 0.0
    for i, s in enumerate(sigma.tolist()):
        x0_error = ((level[i] - s * guess[i] - x0[i]) ** 2).mean().item()
        expected += min(((1 - s) / s) ** 2, 5.0) * x0_error / 3
    result = d.fake_score_loss(guess, teacher, x0, level, sigma, teacher_weight=0.0, min_snr=5.0)
    assert result.loss.item() == pytest.approx(expected)
    single = d.fake_score_loss(guess, teacher, x0, level, 0.3, teacher_weight=0.0, min_snr=5.0)
    repeated = d.fake_score_loss(guess, teacher, x0, level, torch.full((3,), 0.3), teacher_weight=0.0, min_snr=5.0)
    torch.testing.assert_close(single.loss, repeated.loss, rtol=1e-6, atol=0)


def test_importance_is_clipped_at_twenty_and_spares_the_teacher_term() -> None:
    x0, level, teacher, guess = (gaussian(*SHAPE, seed=i) for i in range(4))
    run = partial(d.fake_score_loss, guess, teacher, x0, level, 0.5)
    scores = [(((level - x0) / 0.5 - guess)[i] ** 2).mean().item() for i in range(3)]
    pull = 0.02 * ((teacher - guess) ** 2).mean().item()
    result = run(importance_N=torch.tensor([0.5, 19.0, 1e6]))
    assert result.loss.item() == pytest.approx((0.5 * scores[0] + 19 * scores[1] + 20 * scores[2]) / 3 + pull)


def test_the_two_directions_add_up_to_the_guided_teacher_minus_the_fake() -> None:
    real, null, fake = (gaussian(*SHAPE, seed=i) for i in range(3))
    directions = d.distillation_directions(real, null, fake, 4.5)
    torch.testing.assert_close(directions.guided, null + 4.5 * (real - null))
    torch.testing.assert_close(directions.kl + directions.cfg, directions.guided - fake)
    torch.testing.assert_close(directions.cfg, 3.5 * (real - null))
    assert d.distillation_directions(real, null, fake, 1.0).cfg.abs().max() == 0


def test_a_descent_step_on_the_directed_loss_moves_along_the_directions() -> None:
    """−∇ = 2 (δ_KL + δ_CFG) / (W · CHW · N), written out per sample."""
    x0 = gaussian(*SHAPE, seed=9).requires_grad_()
    directions = d.distillation_directions(*three(0), 4.5)
    w = d.normaliser(x0, directions.guided)
    result = d.directed_loss(x0, directions, w)
    force = gradient(result.loss, x0)
    for i in range(3):
        w_i = (x0[i] - directions.guided[i]).abs().sum().item() / 100
        torch.testing.assert_close(-force[i], 2 * (directions.kl + directions.cfg)[i] / (w_i * 100 * 3))
    values = [((directions.kl[i] ** 2).mean() + (directions.cfg[i] ** 2).mean()).item() / w[i].item() for i in range(3)]
    assert result.loss.item() == pytest.approx(sum(values) / 3)
    assert result.loss.item() == pytest.approx((result.kl_error + result.cfg_error).item())


def test_the_pseudo_huber_form_is_the_square_for_small_and_the_modulus_for_large_errors() -> None:
    x0 = torch.zeros(2, 1, 1, 1, dtype=torch.float64)
    small = d.direction_error(x0, torch.full_like(x0, 1e-5), huber=1e-3)
    large = d.direction_error(x0, torch.full_like(x0, 10.0), huber=1e-3)
    assert small.tolist() == pytest.approx([1e-10 / 2e-3] * 2, rel=1e-3)
    assert large.tolist() == pytest.approx([10.0] * 2, rel=1e-3)


def test_a_student_at_its_target_gives_a_finite_loss() -> None:
    x0 = gaussian(*SHAPE).requires_grad_()
    directions = d.distillation_directions(x0, x0, x0, 4.5)
    loss = d.directed_loss(x0, directions, d.normaliser(x0, directions.guided)).loss
    assert gradient(loss, x0).abs().max() == 0


# --- generator ---------------------------------------------------------------------------------------------------


def test_a_surrogate_equal_to_the_base_without_guidance_gives_no_reward_direction() -> None:
    base, null = gaussian(*SHAPE), gaussian(*SHAPE, seed=1)
    assert g.reward_direction(base.clone(), null, base, rl_cfg=1.0).direction.abs().max() == 0
    guided = g.reward_direction(base.clone(), null, base, rl_cfg=2.5)
    torch.testing.assert_close(guided.direction, 1.5 * (base - null))


def generator_parts() -> tuple[Tensor, d.Directions, g.Reward]:
    x0 = gaussian(*SHAPE, seed=9).requires_grad_()
    directions = d.distillation_directions(*three(0), 4.5)
    return x0, directions, g.reward_direction(*three(3), rl_cfg=3.5)


@pytest.mark.parametrize(
    ("step", "weight", "tie"),
    [(0, 1.0, 1.0), (1, 1.0, 1.0), (1, 0.5, 1.0), (1, 1.0, 0.2), (2, 1.0, 0.2), (3, 1.0, 1.0)],
)
def test_the_generator_loss_equals_a_loop_and_drops_the_reward_from_trunc_steps_on(
    step: int, weight: float, tie: float
) -> None:
    x0, directions, reward = generator_parts()
    expected, force = 0.0, torch.zeros_like(x0)
    for i in range(3):
        w1 = (x0[i] - directions.guided[i]).abs().mean().item()
        w2 = (x0[i] - reward.guided[i]).abs().mean().item()
        scale_cfg, scale_kl, scale_reward = 0.3 / w1, tie / w1, weight * 0.7 / w2
        if step >= 2:
            scale_kl, scale_reward = 0.3 / w1, 0.0
        terms = [(scale_cfg, directions.cfg[i]), (scale_kl, directions.kl[i]), (scale_reward, reward.direction[i])]
        expected += sum(scale * (delta**2).mean().item() for scale, delta in terms) / 3
        for scale, delta in terms:
            force[i] -= scale * 2 * delta / (100 * 3)
    result = g.generator_loss(x0, directions, reward, step=step, trunc_steps=2, reward_weight=weight, kl_weight=tie)
    assert result.loss.item() == pytest.approx(expected)
    torch.testing.assert_close(gradient(result.loss, x0), force)


def test_a_step_before_trunc_steps_needs_a_reward_and_one_after_does_not() -> None:
    x0, directions, reward = generator_parts()
    with pytest.raises(ValueError, match="needs a reward direction"):
        g.generator_loss(x0, directions, None, step=1, trunc_steps=2)
    without = g.generator_loss(x0, directions, None, step=2, trunc_steps=2)
    torch.testing.assert_close(
        without.loss, g.generator_loss(x0, directions, reward, step=2, trunc_steps=2).loss, rtol=0, atol=0
    )
    assert without.reward_error == 0


def test_no_gradient_flows_into_teacher_fake_or_surrogate() -> None:
    x0 = gaussian(*SHAPE, seed=9).requires_grad_()
    real, null, fake = (other.requires_grad_() for other in three(0))
    conditional, unconditional, base = (other.requires_grad_() for other in three(3))
    directions = d.distillation_directions(real, null, fake, 4.5)
    reward = g.reward_direction(conditional, unconditional, base, rl_cfg=3.5)
    g.generator_loss(x0, directions, reward, step=0, trunc_steps=4).loss.backward()
    assert all(other.grad is None for other in (real, null, fake, conditional, unconditional, base))
    assert x0.grad is not None
    constants = (directions.kl, directions.cfg, directions.guided, reward.direction, reward.guided)
    assert not any(constant.requires_grad for constant in constants)
