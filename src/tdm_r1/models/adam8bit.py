"""AdamW with moments of eight bits, by bitsandbytes: a quarter of their memory, on the CPU as on a GPU.

A moment is one byte per number and one float32 per 256 numbers, the largest of them; a byte is a place in a fixed table
of 256 values. Weights, gradients and the sum of a step stay in float32. Source: arXiv 2110.02861.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import Any, Final

import torch
from torch import Tensor

from tdm_r1.config import AdamConfig
from tdm_r1.errors import ConfigError
from tdm_r1.models.optimizer import FIRST, SCALE, SECOND, AdamW

BLOCK: Final = 256
"""Numbers that share a scale."""
SMALLEST: Final = 4096
"""Numbers of a parameter below which its moments stay in float32, as the library's own optimizer has it."""


class AdamW8bit(AdamW):
    """As `AdamW`; `state` holds `exp_avg` and `exp_avg_sq` in uint8, with `….scale` [blocks] beside each."""

    def __init__(self, parameters: Iterable[Tensor], config: AdamConfig) -> None:
        """
        Raises:
            ConfigError: when bitsandbytes is not installed.
        """
        super().__init__(parameters, config)
        self._library = open_bitsandbytes()

    @cached_property
    def _tables(self) -> tuple[Tensor, Tensor]:
        """The values of a byte of the first moment, and of the second, which has no sign."""
        made = self._library.create_dynamic_map
        return made(signed=True), made(signed=False)

    def _fresh(self, parameter: Tensor) -> dict[str, Tensor]:
        if parameter.numel() < SMALLEST:
            return super()._fresh(parameter)
        state = {"step": torch.tensor(0.0)}
        for key in (FIRST, SECOND):
            state[key] = torch.zeros_like(parameter, dtype=torch.uint8)
            state[key + SCALE] = torch.zeros(-(-parameter.numel() // BLOCK), device=parameter.device)
        return state

    def _move(self, moved: list[Tensor]) -> None:
        if small := [parameter for parameter in moved if parameter.numel() < SMALLEST]:
            super()._move(small)
        for parameter in moved:
            if parameter.numel() >= SMALLEST:
                self._move_one(parameter, self.state[parameter])

    def _move_one(self, parameter: Tensor, state: dict[str, Tensor]) -> None:
        state["step"] += 1
        signed, unsigned = (table.to(parameter.device) for table in self._tables)
        self._library.optimizer_update_8bit_blockwise(
            "adam",
            parameter.grad,
            parameter,
            state[FIRST],
            state[SECOND],
            *self._config.betas,
            0.0,
            0.0,
            self._config.epsilon,
            int(state["step"]),
            self._config.learning_rate,
            signed,
            unsigned,
            state[FIRST + SCALE],
            state[SECOND + SCALE],
            self._config.weight_decay,
            gnorm_scale=1.0,
            skip_zeros=False,
        )


def open_bitsandbytes() -> Any:
    """Its functions.

    Raises:
        ConfigError: when it is not installed.
    """
    try:
        import bitsandbytes.functional as library
    except ImportError as error:
        raise ConfigError(
            "an optimizer has kind=adamw8bit, but bitsandbytes is not installed",
            hint="pip install 'tdm-r1[adam8bit]', or set its kind to adamw",
        ) from error
    return library
