"""Checkpoints of other programs: the one place that opens a pickle, by PyTorch's reader that executes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tdm_r1.errors import ConfigError


def read_checkpoint(path: Path) -> Any:
    """What a `.pt`, `.pth` or `.ckpt` holds: tensors and plain containers.

    Raises:
        ConfigError: when it holds anything that would have to be executed, or cannot be read.
    """
    if not path.is_file():
        raise ConfigError(f"`{path}` is no file", hint="name the checkpoint that was downloaded")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ConfigError(
            f"`{path}` cannot be read as tensors without executing code in it: {type(error).__name__}",
            hint="convert it where you trust it, and give the safetensors or the tensors alone",
        ) from error
