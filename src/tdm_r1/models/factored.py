"""LoRA beside the frozen weights: y = W x + (α/r) B (A x), each row of a batch with the role it belongs to.

Nothing is merged and nothing switched: a call names the role of every row, and hooks on the adapted layers add each
role's product to the rows that are its own. So one pass over the base serves several roles at once, and no product of
the size of the base is formed, forwards or backwards.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear


class Factors(dict[str, Tensor]):
    """The tensors of a role as they are, to be applied beside the base; a role that equals the base is empty."""

    def __init__(self, tensors: Mapping[str, Tensor], scale: float) -> None:
        super().__init__(tensors)
        self.scale = scale


@dataclass(frozen=True)
class Share:
    """Consecutive rows of a batch and their role."""

    count: int
    role: Factors | None
    """None for the base itself."""


class Rows(dict[str, Tensor]):
    """Roles of a batch by rows, in order: what a call over several roles takes for its weights."""

    def __init__(self, shares: Sequence[Share]) -> None:
        super().__init__()
        self.shares = tuple(shares)

    def __bool__(self) -> bool:
        return True


def shares_of(weights: Mapping[str, Tensor], count: int) -> tuple[Share, ...] | None:
    """The roles of `count` rows; None when the weights are to take the place of the base's."""
    if isinstance(weights, Rows):
        return weights.shares
    return (Share(count, weights),) if isinstance(weights, Factors) else None


@contextmanager
def applied(
    network: torch.nn.Module, shares: Sequence[Share], prefix: str = "", without: tuple[str, ...] = ()
) -> Iterator[None]:
    """Inside, every adapted layer adds its roles' products, row by row.

    A forward pass that autograd would repeat later must be repeated inside as well (`models/recompute.py`).

    Args:
        prefix: name of `network` in the base, with a dot, when it is a part of it.
        without: how the names of layers begin that take care of themselves.
    """
    names = {key.removesuffix(".lora_A") for s in shares for key in s.role or () if key.endswith(".lora_A")}
    handles = []
    try:
        for name in sorted(name for name in names if name.startswith(prefix) and not name.startswith(without)):
            layer = network.get_submodule(name.removeprefix(prefix))
            handles.append(layer.register_forward_hook(_Beside(name, shares)))
        yield
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True)
class _Beside:
    """What happens at one layer."""

    name: str
    shares: Sequence[Share]

    def __call__(self, module: torch.nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        del module
        x: Tensor = inputs[0]
        sizes = [share.count for share in self.shares]
        if len(x) != sum(sizes):
            raise ValueError(f"`{self.name}` sees {len(x)} rows, but roles of {sum(sizes)} rows were given")
        parts = zip(self.shares, x.split(sizes), output.split(sizes), strict=True)
        return torch.cat([self._add(share.role, rows, answer) for share, rows, answer in parts])

    def _add(self, role: Factors | None, x: Tensor, answer: Tensor) -> Tensor:
        if role is None or f"{self.name}.lora_A" not in role:
            return answer
        down, up = role[f"{self.name}.lora_A"].to(x), role[f"{self.name}.lora_B"].to(x)
        return answer + role.scale * linear(linear(x, down), up)
