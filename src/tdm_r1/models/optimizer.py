"""AdamW over the tensors of one role, with its state as a flat dictionary that can be stored."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from tdm_r1.config import AdamConfig
from tdm_r1.errors import NumericalError
from tdm_r1.models.adapters import RoleTensors
from tdm_r1.models.world import ALONE, World

FIRST, SECOND = "exp_avg", "exp_avg_sq"
SCALE = ".scale"
"""Behind the name of a moment of eight bits: the largest number of each of its blocks."""


class AdamW:
    """`torch.optim.AdamW` to the last bit, by torch's function of it: the class imports TorchDynamo, as much as torch
    itself again, in every process that trains.
    """

    def __init__(self, parameters: Iterable[Tensor], config: AdamConfig) -> None:
        self._parameters, self._config = list(parameters), config
        self.state: dict[Tensor, dict[str, Tensor]] = {}
        """As torch's: of each parameter that ever had a gradient `step`, `exp_avg` and `exp_avg_sq`."""

    @torch.no_grad()
    def step(self) -> None:
        """Move every parameter that has a gradient."""
        moved = [parameter for parameter in self._parameters if parameter.grad is not None]
        for parameter in moved:
            if parameter not in self.state:
                self.state[parameter] = self._fresh(parameter)
        if moved:
            self._move(moved)

    def _fresh(self, parameter: Tensor) -> dict[str, Tensor]:
        return {"step": torch.tensor(0.0), FIRST: torch.zeros_like(parameter), SECOND: torch.zeros_like(parameter)}

    def restore(self, parameter: Tensor, stored: Mapping[str, Tensor]) -> None:
        """Go on from the state of a parameter; a moment that was not stored is zero."""
        self.state[parameter] = {**self._fresh(parameter), **stored}

    def _move(self, moved: list[Tensor]) -> None:
        states = [self.state[parameter] for parameter in moved]
        adamw(
            moved,
            [parameter.grad for parameter in moved if parameter.grad is not None],
            [state[FIRST] for state in states],
            [state[SECOND] for state in states],
            [],
            [state["step"] for state in states],
            amsgrad=False,
            beta1=self._config.betas[0],
            beta2=self._config.betas[1],
            lr=self._config.learning_rate,
            weight_decay=self._config.weight_decay,
            eps=self._config.epsilon,
            maximize=False,
        )

    def forget_gradients(self) -> None:
        """Free them."""
        for parameter in self._parameters:
            parameter.grad = None


def moments_of(config: AdamConfig) -> tuple[str, ...]:
    """Which moments are stored: with β₁ = 0 the first is the last gradient."""
    return (FIRST, SECOND) if config.betas[0] else (SECOND,)


def _opened(config: AdamConfig) -> type[AdamW]:
    """The class of a kind; the library of the other is not touched."""
    if config.kind == "adamw":
        return AdamW
    from tdm_r1.models.adam8bit import AdamW8bit

    return AdamW8bit


class RoleOptimizer:
    """Trains one role; `params` are leaves that require grad, the same on every rank."""

    def __init__(
        self,
        role: str,
        tensors: Mapping[str, Tensor],
        config: AdamConfig,
        state: Mapping[str, Tensor],
        world: World = ALONE,
    ) -> None:
        """
        Args:
            state: what `state()` returned at the end of the stage before; empty for a fresh start.
        """
        self.role, self._world = role, world
        leaves = {name: tensor.detach().clone().requires_grad_(True) for name, tensor in sorted(tensors.items())}
        self._leaves: dict[str, Tensor] = leaves
        self._clip_norm, self._moments = config.clip_norm, moments_of(config)
        self._adam = _opened(config)(leaves.values(), config)
        self._restore(state)

    @property
    def params(self) -> Mapping[str, Tensor]:
        """The role's tensors, for a loss."""
        return self._leaves

    def _restore(self, state: Mapping[str, Tensor]) -> None:
        for name, parameter in self.params.items() if state else ():
            keys = [key for moment in self._moments for key in (moment, moment + SCALE) if f"{key}/{name}" in state]
            stored = {key: state[f"{key}/{name}"].clone() for key in keys}
            self._adam.restore(parameter, {**stored, "step": state["step"].clone().reshape(())})

    def expect(self, backwards: int) -> None:
        """Say how often `backward` will be called before `step`, at most, on the rank that calls it most."""
        del backwards

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of this rank's part of the loss."""
        loss.backward()

    def _add_gradients(self) -> None:
        """Sum over ranks; a parameter without gradient anywhere stays so."""
        params = list(self.params.values())
        holders = torch.tensor([float(parameter.grad is not None) for parameter in params])
        self._world.add([holders])
        gradients = []
        for parameter in (p for p, count in zip(params, holders.tolist(), strict=True) if count):
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            gradients.append(parameter.grad)
        self._world.add(gradients)

    def step(self, step: int) -> float:
        """Sum the gradient over ranks, clip its norm, update, forget it.

        Returns:
            The norm before clipping.

        Raises:
            NumericalError: when the norm or a weight is not finite; for the norm the weights are untouched.
        """
        if self._world.size > 1:
            self._add_gradients()
        norm = torch.nn.utils.clip_grad_norm_(list(self.params.values()), self._clip_norm)
        if not bool(norm.isfinite()):
            raise NumericalError(
                f"{self.role}/gradient", step, hint="lower its learning rate, or inspect the loss terms"
            )
        self._adam.step()
        if not all(bool(parameter.isfinite().all()) for parameter in self.params.values()):
            raise NumericalError(f"{self.role}/weights", step, hint="lower its learning rate")
        self._adam.forget_gradients()
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
            keys = [key for moment in self._moments for key in (moment, moment + SCALE) if key in entry]
            stored |= {f"{key}/{name}": entry[key].detach().clone() for key in keys}
            stored["step"] = entry["step"].detach().clone().reshape(1)
        return stored
