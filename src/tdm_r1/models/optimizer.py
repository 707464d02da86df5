"""AdamW over the tensors of one role, with its state as a flat dictionary that can be stored."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from tdm_r1.config import AdamConfig
from tdm_r1.errors import NumericalError
from tdm_r1.models.adapters import RoleTensors

FIRST, SECOND = "exp_avg", "exp_avg_sq"


class RoleOptimizer:
    """Trains one role; `params` are leaves that require grad."""

    def __init__(
        self, role: str, tensors: Mapping[str, Tensor], config: AdamConfig, state: Mapping[str, Tensor]
    ) -> None:
        """
        Args:
            state: what `state()` returned at the end of the stage before; empty for a fresh start.
        """
        self.role = role
        self.params = {name: tensor.detach().clone().requires_grad_(True) for name, tensor in sorted(tensors.items())}
        self._clip_norm = config.clip_norm
        self._moments = (FIRST, SECOND) if config.betas[0] else (SECOND,)  # with β₁ = 0 the first is the last gradient
        self._adam = torch.optim.AdamW(
            list(self.params.values()),
            lr=config.learning_rate,
            betas=config.betas,
            eps=config.epsilon,
            weight_decay=config.weight_decay,
        )
        self._restore(state)

    def _restore(self, state: Mapping[str, Tensor]) -> None:
        for name, parameter in self.params.items() if state else ():
            moments = {key: state[f"{key}/{name}"].clone() for key in self._moments}
            step = state["step"].clone().reshape(())
            self._adam.state[parameter] = {FIRST: torch.zeros_like(parameter), **moments, "step": step}

    def step(self, step: int) -> float:
        """Clip the gradient's norm, update, forget the gradient.

        Returns:
            The norm before clipping.

        Raises:
            NumericalError: when the norm or a weight is not finite; for the norm the weights are untouched.
        """
        norm = torch.nn.utils.clip_grad_norm_(list(self.params.values()), self._clip_norm)
        if not bool(norm.isfinite()):
            raise NumericalError(
                f"{self.role}/gradient", step, hint="lower its learning rate, or inspect the loss terms"
            )
        self._adam.step()
        if not all(bool(parameter.isfinite().all()) for parameter in self.params.values()):
            raise NumericalError(f"{self.role}/weights", step, hint="lower its learning rate")
        self._adam.zero_grad(set_to_none=True)
        return float(norm)

    def tensors(self) -> RoleTensors:
        return {name: parameter.detach().clone() for name, parameter in self.params.items()}

    def state(self) -> RoleTensors:
        """Moments per parameter and the step count, as `exp_avg/NAME`, `exp_avg_sq/NAME`, `step`; what β₁ = 0 forgets
        at once is not stored.
        """
        stored: RoleTensors = {}
        for name, parameter in self.params.items():
            entry = self._adam.state.get(parameter)
            if not entry:
                return {}
            stored |= {f"{key}/{name}": entry[key].detach().clone() for key in self._moments}
            stored["step"] = entry["step"].detach().clone().reshape(1)
        return stored
