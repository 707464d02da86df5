"""Checkpoints of a pretraining: killed and started again, it writes the bytes of one that was not."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import Parameter

from tdm_r1.errors import ConfigError
from tdm_r1.pretrain.scenes import Log


@dataclass(frozen=True)
class Trained:
    """What a part of the training changes at each step, beside torch's generator."""

    parameters: dict[str, Parameter]
    optimizer: torch.optim.Optimizer
    average: dict[str, Tensor] = field(default_factory=dict)
    """Moving average by parameter, where one is kept."""

    def tensors(self) -> dict[str, Tensor]:
        """Contiguous copies by name, the state of torch's generator among them."""
        found = {f"parameter/{name}": p.detach() for name, p in self.parameters.items()}
        found |= {f"average/{name}": mean for name, mean in self.average.items()}
        for name, parameter in self.parameters.items():
            found |= {f"optimizer/{key}/{name}": value for key, value in self.optimizer.state[parameter].items()}
        copies = {name: tensor.contiguous() for name, tensor in found.items()}
        return copies | {"generator": torch.get_rng_state()}

    @torch.no_grad()
    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Put them back; memory formats stay those of the parameters."""
        torch.set_rng_state(tensors.pop("generator"))
        for name, tensor in tensors.items():
            kind, key = name.split("/", 1)
            if kind == "parameter":
                self.parameters[key].copy_(tensor)
            elif kind == "average":
                self.average[key].copy_(tensor)
            else:
                key, owner = key.split("/", 1)
                parameter = self.parameters[owner]
                like = torch.empty_like(parameter) if tensor.shape == parameter.shape else torch.empty_like(tensor)
                self.optimizer.state[parameter][key] = like.copy_(tensor)


@dataclass(frozen=True)
class Checkpoints:
    """One file for each part of a pretraining, beside the folder it will write."""

    folder: Path
    plan: str
    """Names every number that the bytes depend on; a checkpoint of another plan is refused."""
    log: Log
    every: int = 250
    """Steps between two checkpoints of a part."""

    def keep(self, part: str, step: int, steps: int, trained: Trained) -> None:
        """After `step` of `steps` steps: write, if it is time, in place of the part's last checkpoint."""
        if step % self.every and step != steps:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        written = self._path(part).with_suffix(".writing")
        save_file(trained.tensors(), written, metadata={"plan": self.plan, "step": str(step)})
        written.replace(self._path(part))
        self.log(f"{part} kept at step {step} of {steps}")

    def resume(self, part: str, trained: Trained) -> int:
        """Restore the part's last checkpoint, if there is one.

        Returns:
            Number of steps already done.

        Raises:
            ConfigError: if the checkpoint is of another plan.
        """
        if not self._path(part).exists():
            return 0
        with safe_open(self._path(part), framework="pt") as file:
            facts = file.metadata()
            self._check(facts["plan"])
            trained.restore({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
        self.log(f"{part} goes on after step {facts['step']}")
        return int(facts["step"])

    def remove(self) -> None:
        """The pretraining is complete."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, part: str) -> Path:
        return self.folder / f"{part.replace(' ', '-')}.safetensors"

    def _check(self, plan: str) -> None:
        if plan != self.plan:
            raise ConfigError(
                f"`{self.folder}` holds checkpoints of another pretraining: {plan}; expected {self.plan}",
                hint="choose another --out, or delete that folder to begin anew",
            )


def checkpoints_of(out: Path, plan: object, log: Log, every: int = 250) -> Checkpoints:
    """Those of the pretraining that will write `out`: in `OUT.unfinished`."""
    return Checkpoints(out.with_name(f"{out.name}.unfinished"), repr(plan), log, every)
