from __future__ import annotations

import pytest
import torch

from tdm_r1.ema import average_decay, blend, lag_decay, mean_decay, reference_decay


def test_the_schedules_take_the_published_values() -> None:
    assert [lag_decay(n) for n in (0, 1, 99, 298, 299, 5000)] == pytest.approx([0.001, 0.002, 0.1, 0.299, 0.3, 0.3])
    assert [reference_decay(n) for n in (0, 1, 100, 300, 5000)] == pytest.approx([0.0, 0.001, 0.1, 0.3, 0.3])
    assert [average_decay(n) for n in (0, 8, 80, 81, 5000)] == pytest.approx([0.1, 0.5, 0.9, 0.9, 0.9])


def test_the_decay_weighs_the_old_copy_so_the_lag_starts_at_the_live_weights() -> None:
    old, live = {"w": torch.tensor([0.0, 10.0])}, {"w": torch.tensor([1.0, 20.0])}
    torch.testing.assert_close(blend(old, live, lag_decay(0))["w"], torch.tensor([0.999, 19.99]))
    torch.testing.assert_close(blend(old, live, 0.3)["w"], torch.tensor([0.7, 17.0]))


def test_the_ends_of_a_blend_are_exact_and_equal_tensors_stay_equal() -> None:
    old, new = {"w": torch.randn(100)}, {"w": torch.randn(100)}
    assert torch.equal(blend(old, new, 0.0)["w"], new["w"])
    assert torch.equal(blend(old, new, 1.0)["w"], old["w"])
    assert torch.equal(blend(old, old, 0.3)["w"], old["w"])


def test_a_blend_is_fresh_detached_and_keeps_the_dtype_of_the_copy() -> None:
    old, new = {"w": torch.zeros(2)}, {"w": torch.ones(2, dtype=torch.bfloat16, requires_grad=True)}
    result = blend(old, new, 0.0)["w"]
    assert result.dtype == torch.float32
    assert not result.requires_grad
    result += 5
    assert torch.equal(old["w"], torch.zeros(2))
    live = {"w": torch.ones(2)}
    blend(old, live, 0.0)["w"].add_(1)
    assert torch.equal(live["w"], torch.ones(2))


def test_copies_with_other_names_or_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="only one of the two has"):
        blend({"a": torch.zeros(1)}, {"b": torch.zeros(1)}, 0.5)
    with pytest.raises(ValueError, match="cannot blend `a`"):
        blend({"a": torch.zeros(1)}, {"a": torch.zeros(2)}, 0.5)


def test_the_mean_decay_gives_the_plain_mean_until_its_limit() -> None:
    values = [torch.tensor([float(v)]) for v in (3, 5, 10, 2)]
    mean = values[0]
    for count, value in enumerate(values):
        mean = blend({"w": mean}, {"w": value}, mean_decay(count, 0.99))["w"]
    torch.testing.assert_close(mean, torch.tensor([5.0]))
    assert mean_decay(500, 0.9) == 0.9
