"""AdamW of one role under ZeRO-3: each rank holds a part of the parameters, too, and fetches the rest for a use.

A role is used as effective weights outside of any module of its own. So the module of the role gives its tensors away:
its forward pass fetches them, hands out copies, and keeps its own part. The copies live as long as the graph of a loss;
their gradients come back through the same module, where DeepSpeed reduces them to the rank's part.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from tdm_r1.models.optimizer import FIRST, SECOND
from tdm_r1.models.sharded import ShardedOptimizer


class PartitionedOptimizer(ShardedOptimizer):
    """As `ShardedOptimizer`; reading `params` is a collective, too, once for each call of `backward`."""

    @property
    def params(self) -> Mapping[str, Tensor]:
        """Whole copies; whoever holds them holds the role."""
        return dict(zip(self._leaves, self._engine(), strict=True))

    def _returning(self, loss: Tensor) -> Tensor:
        return loss

    def _finite(self) -> bool:
        """Of this rank's part; a rank that raises takes the others with it."""
        return all(bool(part.isfinite().all()) for part in self._parts)

    @property
    def _parts(self) -> list[Tensor]:
        """The masters of this rank, flat, a few parameters in each."""
        found: list[Tensor] = self._zero.fp32_partitioned_groups_flat
        return found

    def _own(self, leaf: Tensor, whole: Tensor) -> Tensor:
        """Numbers of a tensor that are this rank's, padded with zeros as DeepSpeed does."""
        count = leaf.ds_tensor.numel()  # type: ignore[attr-defined]
        padded = torch.zeros(count * self._world.size)
        padded[: whole.numel()] = whole.detach().float().cpu().flatten()
        return padded[count * self._world.rank :][:count]

    def _begin(self, given: Mapping[str, Tensor]) -> None:
        """Set this rank's part of the masters; the library's setter of whole tensors fails where a part is padded."""
        from deepspeed.utils import safe_set_local_fp32_param

        for name, leaf in self._leaves.items():
            safe_set_local_fp32_param(leaf, self._own(leaf, given[name]))

    def _resume(self, state: Mapping[str, Tensor]) -> None:
        """Deal the whole moments out again; how many ranks there were before does not matter."""
        from deepspeed.utils import safe_set_local_optimizer_state

        self._steps = int(state["step"])
        for part in self._parts:
            zeros = {key: torch.zeros_like(part) for key in (FIRST, SECOND)}
            self._zero.optimizer.state[part] = {**zeros, "step": state["step"].clone().reshape(())}
        for name, leaf in self._leaves.items():
            for key in self._moments:
                safe_set_local_optimizer_state(leaf, self._own(leaf, state[f"{key}/{name}"]), key)
