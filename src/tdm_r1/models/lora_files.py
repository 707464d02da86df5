"""LoRA files of other programs, read by name where they have names, and made a role of ours or refused.

Two kinds are known. Files of diffusers and peft name their tensors, in a handful of dialects. The authors of TDM-R1
publish the list that their moving average keeps: `ema_parameters`, tensors without names in the order of the network's
modules, A before B. Names are given to it from the base's own modules in that order, and every shape is checked.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from safetensors import safe_open
from torch import Tensor

from tdm_r1.artifacts.restricted import read_checkpoint
from tdm_r1.config import AdapterConfig
from tdm_r1.errors import ConfigError
from tdm_r1.models.adapters import Adapter, RoleTensors

NAMED: Final = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")
"""Files that diffusers and peft write into a folder."""
LISTED: Final = (".ckpt", ".pt", ".pth")
LIST_KEY: Final = "ema_parameters"
_TENSOR: Final = re.compile(
    r"(base_model\.model\.)?(transformer\.)?(?P<module>.+)"
    r"\.(?P<side>lora_A|lora_B|lora\.down|lora\.up|lora_down|lora_up)(\.[^.]+)?\.weight"
)
_ALPHA: Final = re.compile(r"(transformer\.)?(?P<module>.+)\.alpha")
_DOWN: Final = ("lora_A", "lora.down", "lora_down")


@dataclass(frozen=True)
class Pair:
    """One adapted layer: W + (α/r) B A."""

    down: Tensor
    """A, [r, in]."""
    up: Tensor
    """B, [out, r]."""
    alpha: float | None
    """None when the file does not say."""


Pairs = Mapping[str, Pair]
"""By the name of the layer."""


def find_file(path: Path) -> Path:
    """The adapter file that a path means: itself, or the only one of a known kind in the folder.

    Raises:
        ConfigError: when there is none, or more than one.
    """
    if path.is_file():
        return path
    files = sorted(f for f in path.glob("*") if f.name in NAMED or f.suffix in LISTED) if path.is_dir() else []
    if len(files) != 1:
        names = ", ".join(file.name for file in files) or "none"
        raise ConfigError(
            f"expected one adapter file in `{path}`, found {names}",
            hint=f"give the file itself: {', '.join(NAMED)}, or a list of {', '.join(LISTED)}",
        )
    return files[0]


def read_pairs(file: Path, modules: Sequence[str]) -> Pairs:
    """Layers of an adapter file.

    Args:
        modules: names of the adapted layers in the network's own order, for a file without names.

    Raises:
        ConfigError: for a file of no known format.
    """
    return name_list(_read_list(file), modules, file.name) if file.suffix in LISTED else _read_named(file)


def _read_list(file: Path) -> list[Tensor]:
    """`ema_parameters` of a checkpoint, by torch's reader that executes nothing."""
    content = read_checkpoint(file)
    listed = content.get(LIST_KEY) if isinstance(content, dict) else None
    if not isinstance(listed, list) or not all(isinstance(tensor, Tensor) for tensor in listed):
        raise ConfigError(f"`{file}` holds no list `{LIST_KEY}`", hint="expected what EMAModuleWrapper.save wrote")
    return listed


def name_list(listed: Sequence[Tensor], modules: Sequence[str], label: str) -> Pairs:
    """Give a list A, B, A, B, … the names of these modules.

    Raises:
        ConfigError: when there are not two tensors for each module, of one rank.
    """
    if len(listed) != 2 * len(modules):
        raise ConfigError(
            f"`{label}` has {len(listed)} tensors, but this base has {len(modules)} adapted layers of two each",
            hint="it was made for another base or other model.adapter.targets",
        )
    pairs = {name: Pair(listed[2 * i], listed[2 * i + 1], None) for i, name in enumerate(modules)}
    if wrong := [name for name, pair in pairs.items() if pair.down.shape[0] != pair.up.shape[-1]]:
        raise ConfigError(
            f"`{label}` is no list of A [r, in] and B [out, r] in turn: see what would be `{wrong[0]}`",
            hint="it was made for another base or other model.adapter.targets",
        )
    return pairs


def list_of(role: RoleTensors, modules: Sequence[str]) -> list[Tensor]:
    """The inverse of `name_list`: A, B, A, B, … in the network's own order."""
    return [role[f"{name}.{side}"] for name in modules for side in ("lora_A", "lora_B")]


def _read_named(file: Path) -> Pairs:
    """A safetensors file in any dialect of diffusers and peft."""
    with safe_open(file, framework="pt") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        metadata = opened.metadata() or {}
    sides: dict[str, dict[bool, Tensor]] = {}
    alphas: dict[str, float] = {}
    for name, tensor in tensors.items():
        if match := _TENSOR.fullmatch(name):
            sides.setdefault(match["module"], {})[match["side"] in _DOWN] = tensor
        elif match := _ALPHA.fullmatch(name):
            alphas[match["module"]] = float(tensor)
        else:
            raise ConfigError(
                f"`{file.name}` holds `{name}`, which is no LoRA tensor in the names of diffusers or peft",
                hint="load it into its pipeline with diffusers, and import what save_lora_weights writes",
            )
    if half := [module for module, found in sides.items() if len(found) < 2]:
        raise ConfigError(f"`{file.name}` has only one side of `{half[0]}`", hint="the file is not whole")
    stated = _stated_alpha(file, metadata)
    return {m: Pair(found[True], found[False], alphas.get(m, stated)) for m, found in sides.items()}


def _stated_alpha(file: Path, metadata: Mapping[str, str]) -> float | None:
    """`lora_alpha` of peft's configuration: beside the file, or in diffusers' metadata."""
    beside = file.with_name("adapter_config.json")
    if beside.is_file():
        return float(json.loads(beside.read_text())["lora_alpha"])
    stated = json.loads(metadata.get("lora_adapter_metadata", "{}"))
    alpha = stated.get("transformer.lora_alpha", stated.get("lora_alpha"))
    return None if alpha is None else float(alpha)


def as_role(pairs: Pairs, adapter: Adapter, alpha: float | None, label: str) -> RoleTensors:
    """The tensors of a role, checked against the base: every layer there, every shape, one rank.

    Args:
        alpha: of every layer that does not say; None is the rank, as diffusers has it.

    Raises:
        ConfigError: for an adapter of another base, of other layers or of another rank.
    """
    config = adapter.config
    require_fit({name: (pair.down, pair.up) for name, pair in pairs.items()}, adapter, label)
    role: RoleTensors = {}
    for name in sorted(pairs):
        pair = pairs[name]
        stated = pair.alpha if pair.alpha is not None else alpha
        factor = (config.rank if stated is None else stated) / config.alpha  # both over the same rank
        role[f"{name}.lora_A"] = pair.down.float().contiguous()
        role[f"{name}.lora_B"] = (pair.up.float() * factor).contiguous()
    return role


def require_fit(pairs: Mapping[str, tuple[Tensor, Tensor]], adapter: Adapter, label: str) -> None:
    """Refuse tensors that are not an adapter of this configuration on this base.

    Raises:
        ConfigError: with what was found, what was expected, and what to set.
    """
    base, config, wanted = adapter.base, adapter.config, set(adapter.targets())
    if unknown := sorted(name for name in pairs if f"{name}.weight" not in base):
        raise ConfigError(
            f"`{label}` adapts `{unknown[0]}`, but the base has no such layer: it was made for another base",
            hint="set model.backbone and model.source to the base that it was made for",
        )
    for name, (down, up) in sorted(pairs.items()):
        found, expected = [up.shape[0], down.shape[-1]], list(base[f"{name}.weight"].shape)
        if found != expected:
            raise ConfigError(
                f"`{label}` adapts `{name}` as {found}, but it is {expected}: it was made for another base",
                hint="set model.source to the base that it was made for",
            )
    if ranks := {int(down.shape[0]) for down, _ in pairs.values()} - {config.rank}:
        raise ConfigError(
            f"`{label}` has rank {sorted(ranks)[0]}, but model.adapter.rank is {config.rank}",
            hint=_ranks_hint(ranks, config),
        )
    if different := sorted(wanted ^ set(pairs)):
        where = "the file lacks it" if different[0] in wanted else "no target names it"
        raise ConfigError(
            f"`{label}` and model.adapter.targets differ in {len(different)} layers, e.g. `{different[0]}`: {where}",
            hint=f"set model.adapter.targets to {json.dumps(suffixes(pairs))}",
        )


def _ranks_hint(ranks: set[int], config: AdapterConfig) -> str:
    rank = sorted(ranks)[0]
    return f"--set model.adapter.rank={rank} --set model.adapter.alpha={rank * config.alpha / config.rank:g}"


def suffixes(names: Mapping[str, object]) -> list[str]:
    """The last parts of layer names, from the block's own part on: `attn.to_q`, `attn.to_out.0`."""
    return sorted({re.sub(r"^.*?\.\d+\.", "", name) for name in names})
