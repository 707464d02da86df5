"""AdamW of one role under DeepSpeed's ZeRO: each rank holds a part of moments and masters, stage 2 of gradients too.

The role's tensors are the parameters of a module that computes nothing. A loss is made from them as everywhere else,
and passes through that module on its way back, which is where DeepSpeed begins to reduce.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Mapping
from contextlib import redirect_stdout
from io import StringIO
from typing import Any, Final

import torch
from torch import Tensor

from tdm_r1.config import AdamConfig, DistributedConfig
from tdm_r1.errors import ConfigError, NumericalError
from tdm_r1.models.adapters import RoleTensors
from tdm_r1.models.optimizer import FIRST, RoleOptimizer, moments_of
from tdm_r1.models.world import World

BUCKET: Final = 1 << 27
"""Numbers that are reduced at once, at most."""


def _adamw(module: torch.nn.Module, config: AdamConfig) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        list(module.parameters()),
        lr=config.learning_rate,
        betas=config.betas,
        eps=config.epsilon,
        weight_decay=config.weight_decay,
    )


class _Role(torch.nn.Module):
    """Owns the role's tensors."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.leaves = [torch.nn.Parameter(tensor) for tensor in tensors.values()]
        for number, leaf in enumerate(self.leaves):  # its own, for stage 3 fetches what a module itself holds
            self.register_parameter(f"leaf{number}", leaf)

    def forward(self, loss: Tensor | None = None) -> Tensor | tuple[Tensor, ...]:
        """A loss on its way back; without one the tensors as they are now, which stage 3 fetches for it."""
        return tuple(leaf.clone() for leaf in self.leaves) if loss is None else loss * 1.0


class ShardedOptimizer(RoleOptimizer):
    """As `RoleOptimizer`; every method is a collective of all ranks."""

    def __init__(
        self,
        role: str,
        tensors: Mapping[str, Tensor],
        config: AdamConfig,
        state: Mapping[str, Tensor],
        world: World,
        sharding: DistributedConfig,
    ) -> None:
        library = open_deepspeed()
        given = {name: tensor.detach().clone().float() for name, tensor in sorted(tensors.items())}
        module = _Role({name: tensor.clone() for name, tensor in given.items()})
        self.role, self._world = role, world
        self._leaves = dict(zip(given, module.leaves, strict=True))
        self._moments, self._steps, self._calls, self._expected = moments_of(config), 0, 0, 0
        with redirect_stdout(StringIO()):  # stage 1 reports its memory there
            self._engine, self._zero, _, _ = library.initialize(
                model=module,
                optimizer=_adamw(module, config),
                config=settings(config, sharding, sum(tensor.numel() for tensor in given.values())),
                dist_init_required=False,
            )
        self._begin(given)
        if state:
            self._resume(state)

    def _begin(self, given: Mapping[str, Tensor]) -> None:
        """Set the masters: the engine made its own from rounded parameters."""
        from deepspeed.utils import safe_set_full_fp32_param

        for name, parameter in self._leaves.items():
            safe_set_full_fp32_param(parameter, given[name].to(parameter.device))

    def _resume(self, state: Mapping[str, Tensor]) -> None:
        """Deal the whole moments out again; how many ranks there were before does not matter."""
        from deepspeed.utils import lazy_init_hp_params_optimizer_state, safe_set_full_optimizer_state

        (flat,) = self._zero.optimizer.param_groups[0]["params"]
        self._steps = int(state["step"])
        zeros = {key: torch.zeros_like(flat) for key in (FIRST, "exp_avg_sq")}
        self._zero.optimizer.state[flat] = {**zeros, "step": state["step"].clone().reshape(())}
        lazy_init_hp_params_optimizer_state(list(self._leaves.values()), flat, self._zero.optimizer.state)
        for name, parameter in self._leaves.items():
            for key in self._moments:
                safe_set_full_optimizer_state(parameter, state[f"{key}/{name}"].to(parameter.device), key)

    @property
    def params(self) -> Mapping[str, Tensor]:
        """As DeepSpeed holds them: a copy in float32 of a whole base would be 4 bytes a number."""
        return self._leaves

    def expect(self, backwards: int) -> None:
        self._calls, self._expected = 0, backwards

    def backward(self, loss: Tensor) -> None:
        """The last of the expected calls reduces; DeepSpeed divides by the number of ranks, which is undone here."""
        self._calls += 1
        self._engine.set_gradient_accumulation_boundary(self._calls == self._expected)
        self._engine.backward(self._returning(loss * self._world.size), scale_wrt_gas=False)

    def _returning(self, loss: Tensor) -> Tensor:
        """The loss, on a way back where DeepSpeed sees it."""
        found: Tensor = self._engine(loss)
        return found

    def _finite(self) -> bool:
        return all(bool(leaf.isfinite().all()) for leaf in self._leaves.values())

    def step(self, step: int) -> float:
        while self._calls < self._expected:  # a rank with fewer microbatches takes part with nothing
            zero = torch.stack([leaf.float().sum() for leaf in self.params.values()]).sum() * 0.0
            self.backward(zero)
        self._engine.step()
        self._steps += 1
        norm = float(self._engine.get_global_grad_norm())
        if not 0 <= norm < float("inf"):
            raise NumericalError(
                f"{self.role}/gradient", step, hint="lower its learning rate, or inspect the loss terms"
            )
        if not self._finite():
            raise NumericalError(f"{self.role}/weights", step, hint="lower its learning rate")
        return norm

    def tensors(self) -> RoleTensors:
        """The fp32 masters, whole, on every rank."""
        from deepspeed.utils import safe_get_full_fp32_param

        return {name: safe_get_full_fp32_param(leaf).detach().cpu().clone() for name, leaf in self._leaves.items()}

    def state(self) -> RoleTensors:
        from deepspeed.utils import safe_get_full_optimizer_state

        if not self._steps:
            return {}
        stored = {
            f"{key}/{name}": safe_get_full_optimizer_state(leaf, key).detach().cpu().clone()
            for name, leaf in self._leaves.items()
            for key in self._moments
        }
        return {**stored, "step": torch.tensor([float(self._steps)])}


def settings(config: AdamConfig, sharding: DistributedConfig, count: int) -> dict[str, Any]:
    """What DeepSpeed is told; everything that changes a result comes from the run's configuration.

    Args:
        count: numbers of the role. Buckets are not larger: they are allocated at every backward pass, and where
            deterministic kernels are asked for also filled.
    """
    zero: dict[str, Any] = {"stage": sharding.zero_stage, "reduce_bucket_size": min(BUCKET, count)}
    if sharding.zero_stage == 3:  # everything is sharded, and given back after each use
        zero |= {"stage3_param_persistence_threshold": 0, "stage3_max_reuse_distance": 0}
    if sharding.offload:
        zero["offload_optimizer"] = {"device": "cpu"}
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.clip_norm,
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": sharding.dtype == "bfloat16"},
        "data_types": {"grad_accum_dtype": "fp32"},  # a sum in bfloat16 stops growing
        "communication_data_type": "fp32",
    }


def open_deepspeed() -> Any:
    """The library, quiet, without its compiled extensions where there is no accelerator.

    Raises:
        ConfigError: when it is not installed, or this process was not started as one of several ranks.
    """
    if not torch.distributed.is_initialized():
        raise ConfigError(
            "distributed.engine is `deepspeed`, but this process is no rank of torchrun",
            hint="start the stage with `tdm-r1 launch --nproc-per-node N stage …`, or set distributed.engine=none",
        )
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    try:
        import deepspeed
        import deepspeed.ops
    except ImportError as error:
        raise ConfigError(
            "distributed.engine is `deepspeed`, which is not installed", hint="pip install 'tdm-r1[deepspeed]'"
        ) from error
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")  # of what DeepSpeed calls
    if not torch.cuda.is_available():
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # gloo does it; the other is built for minutes
    return deepspeed
