"""The only module that sets global state of the tensor library."""

from __future__ import annotations

import os
import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version

import torch

from tdm_r1.config import NumericsConfig
from tdm_r1.errors import ConfigError

LIBRARIES = ("torch", "diffusers", "transformers", "safetensors", "pyarrow", "numpy", "opencv-python-headless")


def require_device(config: NumericsConfig, dtype: str) -> None:
    """Refuse a machine that cannot compute the networks; what only scores, reads or decides needs no device.

    Args:
        dtype: in which the base will be computed.

    Raises:
        ConfigError: when the configured device is not there, or lacks this dtype.
    """
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "numerics.device is `cuda` but this machine has no CUDA device",
            hint="start it on a machine with one, or begin a run with numerics.device=cpu",
        )
    require_dtype(config.device, dtype)


def require_trainable(dtype: str) -> None:
    """Refuse a precision in which gradients vanish.

    A loss is a mean over every number of a latent and every trajectory of a step, some 1e8 of them at 512²: its
    gradient for one of them is below the smallest float16, so a role would learn from what is left, and nobody see.

    Raises:
        ConfigError: for float16, which samples well.
    """
    if dtype == "float16":
        raise ConfigError(
            "model.dtype is `float16`, in which the gradients of a training stage round to 0",
            hint="set model.dtype=bfloat16, or float32 on a GPU before Ampere; float16 is for `tdm-r1 evaluate`",
        )


def apply(config: NumericsConfig) -> None:
    """Fix the thread count and ask for deterministic kernels."""
    _fix_workspace(config.device)
    torch.set_num_threads(config.threads)
    torch.set_deterministic_debug_mode("error")  # `use_deterministic_algorithms` imports the compiler: 3 s a process


def _fix_workspace(device: str) -> None:
    """What cuBLAS is told is read at a process's first product; 2.9 refuses deterministic products without it."""
    if device == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@cache
def require_dtype(device: str, dtype: str) -> None:
    """Try what a transformer and a decoder do, on a handful of numbers.

    Raises:
        ConfigError: when the device cannot compute so, or would only emulate it.
    """
    kind = getattr(torch, dtype)
    _fix_workspace(device)
    try:
        x = torch.ones(1, 1, 8, 8, device=device).to(kind)
        torch.nn.functional.scaled_dot_product_attention(x @ x, x, torch.nn.functional.conv2d(x, x[..., :1, :1]))
        emulated = device == "cuda" and kind == torch.bfloat16 and not torch.cuda.is_bf16_supported(False)
    except (RuntimeError, NotImplementedError) as error:
        raise _lacks(device, dtype) from error
    if emulated:
        raise _lacks(device, dtype)


def _lacks(device: str, dtype: str) -> ConfigError:
    return ConfigError(
        f"model.dtype is `{dtype}`, but the device `{device}` of this machine cannot compute in it",
        hint="set model.dtype=float32; to sample only, float16 goes on a GPU before Ampere",
    )


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
