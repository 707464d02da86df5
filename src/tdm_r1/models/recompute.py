"""Gradient checkpointing of a network whose weights are a role's: blocks run again in the backward pass, as they ran.

diffusers' own would run them again with the base's weights, for a role is only there during the call. So each block
takes what it needs of its role with it: its own weights, or the factors beside them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from tdm_r1.models.compiled import CompiledBlocks
from tdm_r1.models.factored import Share, applied


class Recompute:
    """Of one network; `role` must be told before each call."""

    def __init__(self, network: Any, compiled: CompiledBlocks | None = None) -> None:
        network.enable_gradient_checkpointing(self._block)
        self._names = {id(module): name for name, module in network.named_modules()}
        self._weights: Mapping[str, Tensor] = {}
        self._shares: Sequence[Share] | None = None
        self._compiled = compiled

    def role(self, weights: Mapping[str, Tensor], shares: Sequence[Share] | None) -> None:
        """What the next call runs with: weights in place of the base's, or roles beside it."""
        self._weights, self._shares = ({}, shares) if shares is not None else (weights, None)

    def _block(self, block: torch.nn.Module, *args: Any) -> Any:
        name = self._names[id(block)]
        run = self._compiled.bound(name) if self._compiled is not None else self._bound(block, f"{name}.")
        return checkpoint(run, *args, use_reentrant=False, preserve_rng_state=False)

    def _bound(self, block: torch.nn.Module, prefix: str) -> Callable[..., Any]:
        """The block with what it takes of the role of this call."""
        own = {name.removeprefix(prefix): w for name, w in self._weights.items() if name.startswith(prefix)}
        shares, first = self._shares, True

        def again() -> AbstractContextManager[None]:
            """In the forward pass the whole network has its hooks already."""
            nonlocal first
            within, first = first, False
            return nullcontext() if within or shares is None else applied(block, shares, prefix)

        def run(*inputs: Any) -> Any:
            with again():
                return functional_call(block, own, inputs) if own else block(*inputs)

        return run
