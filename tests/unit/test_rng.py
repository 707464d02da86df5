from __future__ import annotations

import time

import pytest
import torch

from tdm_r1.rng import Keys, encode

KEYS = Keys(root=7, iteration=3)


def test_a_draw_depends_on_its_key_only_and_not_on_the_draws_before() -> None:
    first = KEYS.normal("init", 5, shape=(2, 3))
    torch.manual_seed(0)
    KEYS.normal("init", 6, shape=(9,))
    torch.testing.assert_close(Keys(7, 3).normal("init", 5, shape=(2, 3)), first, rtol=0, atol=0)
    torch.testing.assert_close(Keys(7, 0).at(3).normal("init", 5, shape=(2, 3)), first, rtol=0, atol=0)


def test_drawing_leaves_the_global_stream_alone() -> None:
    before = torch.get_rng_state()
    KEYS.normals("init", range(3), shape=(4,))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("shape", [(2, 1, 1), (4, 8, 8)])
def test_a_row_is_independent_of_which_other_ids_are_in_the_call(shape: tuple[int, ...]) -> None:
    ids = ["p0/0", "p0/1", "p3/7"]
    rows = KEYS.normals("init", ids, 2, shape=shape)
    assert rows.shape == (3, *shape)
    assert rows.dtype == torch.float32
    for row, name in zip(rows, ids, strict=True):
        assert torch.equal(row, KEYS.normal("init", name, 2, shape=shape))
    assert torch.equal(KEYS.normals("init", ids[::-1], 2, shape=shape).flip(0), rows)
    assert KEYS.uniforms("level", ids, 1).tolist() == [KEYS.uniform("level", name, 1) for name in ids]


def test_every_part_of_the_key_changes_the_seed() -> None:
    seeds = [
        KEYS.seed("a", "bc"), KEYS.seed("ab", "c"), KEYS.seed("abc"), KEYS.seed("a", 1), KEYS.seed("a", "1"),
        KEYS.seed("a", 1, 2), KEYS.seed("a", 12), KEYS.seed("a", -1), KEYS.at(4).seed("abc"), Keys(8, 3).seed("abc"),
        Keys(73, 0).seed("abc"), KEYS.seed("a", "i1:1"), KEYS.seed("a", ""), KEYS.seed("a"),
    ]  # fmt: skip
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert max(KEYS.seed("range", i) for i in range(100)) > 2**62


def test_a_counter_that_is_neither_int_nor_str_is_refused() -> None:
    for wrong in (1.0, True, None):
        with pytest.raises(TypeError, match="counter of a random key"):
            encode(wrong)  # type: ignore[arg-type]


def test_the_seed_is_fixed_for_ever() -> None:
    """A change here silently changes every run: it must be a decision, not an accident."""
    assert KEYS.seed("init", 0, "p0") == 6752550273090185407


def test_normals_are_standard_and_uncorrelated_between_neighbouring_ids() -> None:
    x = KEYS.normals("init", range(64), shape=(4096,)).double()
    assert abs(x.mean()) < 0.01
    assert abs(x.std() - 1) < 0.01
    correlation = x @ x.T / 4096 - torch.diag(x.square().mean(1))
    assert correlation.abs().max() < 5.5 / 4096**0.5


def test_uniforms_fill_the_unit_interval_evenly() -> None:
    u = KEYS.uniforms("level", range(4000))
    assert u.min() >= 0
    assert u.max() < 1
    assert (torch.histc(u, 10, 0, 1) / 4000 - 0.1).abs().max() < 0.02


def test_a_permutation_is_one_and_each_order_is_as_likely() -> None:
    orders = [tuple(KEYS.permutation("shuffle", i, count=3)) for i in range(1800)]
    assert len(set(orders)) == 6
    assert all(sorted(order) == [0, 1, 2] for order in orders)
    assert all(230 < orders.count(order) < 370 for order in set(orders))


def test_a_weighted_choice_follows_its_weights_and_never_takes_a_zero() -> None:
    picks = [KEYS.weighted_choice("step", i, weights=[1, 0, 2, 3, 4, 0]) for i in range(4000)]
    shares = [picks.count(k) / 4000 for k in range(6)]
    assert shares[1] == shares[5] == 0
    assert shares == pytest.approx([0.1, 0, 0.2, 0.3, 0.4, 0], abs=0.03)
    for wrong in ([], [0.0, 0.0], [-1.0, 2.0]):
        with pytest.raises(ValueError, match="weights must be"):
            KEYS.weighted_choice("step", weights=wrong)


def test_a_thousand_draws_of_512_floats_are_fast() -> None:
    def seconds() -> float:
        start = time.process_time()
        KEYS.normals("init", range(1000), shape=(512,))
        return time.process_time() - start

    assert min(seconds() for _ in range(5)) < 0.05
