"""A block without weights, as one function of its weights, its roles' factors and its inputs.

What is compiled must not look anywhere for the role it runs with: hooks and swapped parameters are nothing that a
compiler's guards would notice. So a skeleton holds no number, and a role is an argument like any other.
"""

from __future__ import annotations

import copy
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn.functional import linear

PLACE: Final = frozenset({"layer_id"})
"""Attributes that tell where among its like a block stands, and that it does not compute with."""


@dataclass(frozen=True)
class Part:
    """Consecutive rows of a batch, at one layer."""

    count: int
    slot: int | None
    """Which factors are added to them; None is none."""
    scale: float


Layers = tuple[tuple[str, tuple[Part, ...]], ...]
"""Parts of every adapted layer of a block, by its name, sorted."""


class Beside(torch.nn.Linear):
    """y = W x + (α/r) B (A x), each part of the rows with its own factors: the same operations as `models/factored.py`.

    Factors are parameters `lora_A0`, `lora_B0`, ... without a shape; whoever calls gives them.
    """

    def __init__(self, layer: torch.nn.Linear, parts: Sequence[Part]) -> None:
        super().__init__(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
        self.parts = tuple(parts)
        for slot in {part.slot for part in parts} - {None}:
            for side in "AB":
                self.register_parameter(f"lora_{side}{slot}", torch.nn.Parameter(torch.empty(0, device="meta")))

    def forward(self, x: Tensor) -> Tensor:
        answers = super().forward(x).split([part.count for part in self.parts])
        rows = x.split([part.count for part in self.parts])
        return torch.cat([self._add(part, *pair) for part, *pair in zip(self.parts, rows, answers, strict=True)])

    def _add(self, part: Part, x: Tensor, answer: Tensor) -> Tensor:
        if part.slot is None:
            return answer
        down, up = getattr(self, f"lora_A{part.slot}").to(x), getattr(self, f"lora_B{part.slot}").to(x)
        return answer + part.scale * linear(linear(x, down), up)


def bare(block: torch.nn.Module) -> torch.nn.Module:
    """A copy that has shapes and no numbers."""
    found = copy.deepcopy(block)
    found.__dict__.pop("forward", None)
    return found.to("meta").requires_grad_(False)


def with_factors(skeleton: torch.nn.Module, layers: Layers) -> torch.nn.Module:
    """A copy whose adapted layers take factors.

    Raises:
        TypeError: when a layer is not linear; its factors would be left out.
    """
    found = copy.deepcopy(skeleton)
    for name, parts in layers:
        layer = found.get_submodule(name)
        if type(layer) is not torch.nn.Linear:
            kind = type(layer).__name__
            raise TypeError(f"`{name}` is a {kind}, expected a Linear: factors cannot be added beside it")
        found.set_submodule(name, Beside(layer, parts))
    return found


def likeness(value: Any) -> Hashable:
    """Equal for blocks that compute the same function of their weights: types, shapes and settings, not numbers.

    What is unknown is like nothing else, so that a doubt costs a compilation and no error.
    """
    if isinstance(value, torch.nn.Parameter):
        return tuple(value.shape), value.dtype
    if value is None or isinstance(value, (bool, int, float, str, type, torch.dtype, torch.device)):
        return type(value), value
    parts: Hashable = id(value)
    if isinstance(value, Mapping):
        parts = tuple((key, likeness(one)) for key, one in value.items() if key not in PLACE)
    elif isinstance(value, (tuple, list)):
        parts = tuple(likeness(one) for one in value)
    elif isinstance(value, (set, frozenset)):
        parts = frozenset(likeness(one) for one in value)
    elif isinstance(value, torch.nn.Module) or type(value).__module__.startswith("diffusers."):
        parts = likeness(vars(value))
    return type(value), parts


def weights_of(block: torch.nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, without gradient."""
    both = (*block.named_parameters(remove_duplicate=False), *block.named_buffers(remove_duplicate=False))
    return {name: tensor.detach() for name, tensor in both}
