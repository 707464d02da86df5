"""The only module that sets global state of the tensor library."""

from __future__ import annotations

import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version

import torch

from tdm_r1.config import NumericsConfig
from tdm_r1.errors import ConfigError

LIBRARIES = ("torch", "diffusers", "transformers", "safetensors", "pyarrow", "numpy", "opencv-python-headless")


def apply(config: NumericsConfig) -> None:
    """Fix the thread count and ask for deterministic kernels.

    Raises:
        ConfigError: when the configured device is not there.
    """
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "numerics.device is `cuda` but this machine has no CUDA device", hint="set numerics.device=cpu"
        )
    torch.set_num_threads(config.threads)
    torch.use_deterministic_algorithms(True)


@cache
def library_versions() -> dict[str, str]:
    """Installed version by distribution name, for provenance."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
