"""Lagged and averaged copies of weights.

A decay d is the weight of the OLD value: new copy = d · copy + (1−d) · live. So d = 0 follows the live weights
exactly, and the lag copy of the surrogate starts almost equal to them (d = 0.001) and later keeps 30% of its past.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def lag_decay(iteration: int) -> float:
    """Decay d = min(0.3, 0.001 + 0.001 n), of φ_old, the anchor of the PPO clip."""
    return min(0.3, 0.001 + 0.001 * iteration)


def reference_decay(iteration: int) -> float:
    """Decay d = min(0.3, 0.001 n), of φ_ref when `reference: ema`; at n = 0 the reference is the live surrogate."""
    return min(0.3, 0.001 * iteration)


def average_decay(iteration: int) -> float:
    """Decay d = min((1+n)/(10+n), 0.9), of the generator that is evaluated and released."""
    return min((1 + iteration) / (10 + iteration), 0.9)


def mean_decay(count: int, limit: float) -> float:
    """Decay d = min(c/(c+1), limit) after c earlier values: their plain mean at first, a moving one in the end."""
    return min(count / (count + 1), limit)


def over(decay: float, steps: int, *, scaled: bool) -> float:
    """A decay per iteration, or, scaled, that of as many optimizer steps as the iteration has."""
    return decay**steps if scaled else decay


@torch.no_grad()
def blend(old: Mapping[str, Tensor], new: Mapping[str, Tensor], decay: float) -> dict[str, Tensor]:
    """Form d · old + (1−d) · new for every tensor, matched by name, as fresh detached tensors in the dtype of `old`.

    Both ends are exact: d = 0 gives `new`, d = 1 gives `old`, and equal tensors stay equal bit for bit.
    """
    if old.keys() != new.keys():
        raise ValueError(f"cannot blend: only one of the two has {sorted(old.keys() ^ new.keys())[:5]}")
    for name, tensor in old.items():
        if tensor.shape != new[name].shape:
            raise ValueError(f"cannot blend `{name}`: {list(tensor.shape)} with {list(new[name].shape)}")
    return {name: torch.lerp(new[name].to(tensor), tensor, decay) for name, tensor in old.items()}
