"""One frozen base, one small set of tensors per role.

A role (generator, fake score, surrogate, lagged copies) is a flat dictionary of tensors. For
`lora` it holds `MODULE.lora_A` [r, in] and `MODULE.lora_B` [out, r]; for `full` it holds every
parameter of the base. `apply` turns it into effective weights W + (α/r)·B·A, differentiably, so
that the same network call serves every role and no role ever overwrites the base. At the sizes of
the embedded worlds the product B·A costs less than one per cent of a forward pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tdm_r1.config import AdapterConfig
from tdm_r1.errors import ConfigError
from tdm_r1.models.factored import Factors
from tdm_r1.rng import Keys

RoleTensors = dict[str, Tensor]
LARGE = 100_000_000
"""Parameters of a base above which roles are applied beside it, unless the configuration says otherwise."""


@dataclass(frozen=True)
class Adapter:
    """How the tensors of a role change a base."""

    base: Mapping[str, Tensor]
    config: AdapterConfig

    def check(self) -> None:
        """Refuse a configuration that does not fit the base.

        Raises:
            ConfigError: when a configured target matches no layer of the base.
        """
        if self.config.kind == "lora":
            self.targets()

    def targets(self) -> list[str]:
        """Names of the adapted weights, sorted.

        Raises:
            ConfigError: when a configured target matches no layer of the base.
        """
        return sorted(self.modules())

    def modules(self) -> list[str]:
        """The same in the network's own order."""
        names = [
            name.removesuffix(".weight") for name, w in self.base.items() if name.endswith(".weight") and w.ndim == 2
        ]
        for target in self.config.targets:
            if not any(name.endswith(target) for name in names):
                raise ConfigError(
                    f"model.adapter.targets holds {target!r}, but no linear layer of the base ends so",
                    hint=f"the base has e.g. {', '.join(sorted(names)[:4])}",
                )
        return [name for name in names if name.endswith(self.config.targets)]

    def new(self, keys: Keys, role: str) -> RoleTensors:
        """Tensors of a role that equals the base: Gaussian A of deviation 1/r and zero B, or a copy."""
        if self.config.kind == "full":
            return {name: tensor.detach().to("cpu", torch.float32, copy=True) for name, tensor in self.base.items()}
        rank = self.config.rank
        tensors: RoleTensors = {}
        for name in self.targets():
            out_features, in_features = self.base[f"{name}.weight"].shape
            draw = keys.normal("adapter", role, name, shape=(rank, in_features))
            tensors[f"{name}.lora_A"] = draw / rank
            tensors[f"{name}.lora_B"] = torch.zeros(out_features, rank)
        return tensors

    @property
    def factored(self) -> bool:
        """Whether roles are applied beside the base, not as effective weights (ADR 0010)."""
        if self.config.application == "auto":
            return self.config.kind == "lora" and sum(tensor.numel() for tensor in self.base.values()) > LARGE
        return self.config.kind == "lora" and self.config.application == "factored"

    def apply(self, role: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What a backbone takes for a role: effective weights, or its factors; gradients flow into its tensors."""
        if self.config.kind == "full":
            return dict(role)
        if self.factored:  # all at once: a copy to a GPU in every layer would have the GPU wait in every layer
            device = next(iter(self.base.values())).device
            near = {name: tensor.to(device) for name, tensor in role.items()}
            return Factors(near, self.config.alpha / self.config.rank)
        names = [key.removesuffix(".lora_A") for key in role if key.endswith(".lora_A")]
        return {f"{name}.weight": self._weight(name, role) for name in names}

    def _weight(self, name: str, role: Mapping[str, Tensor]) -> Tensor:
        """W + (α/r) B A where the base lies, in float32 at least: a narrower sum would lose the product."""
        base, down, up = self.base[f"{name}.weight"], role[f"{name}.lora_A"], role[f"{name}.lora_B"]
        kind, scale = torch.promote_types(up.dtype, torch.float32), self.config.alpha / self.config.rank
        return torch.addmm(base.to(kind), up.to(base.device, kind), down.to(base.device, kind), alpha=scale)
