"""A generator as a folder: a LoRA that stock diffusers loads, its scheduler, and the configuration that samples it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from safetensors.torch import save
from torch import Tensor

from tdm_r1.artifacts.schema import check_tensor
from tdm_r1.artifacts.store import open_store
from tdm_r1.artifacts.tensors import open_tensors, tensors_of
from tdm_r1.config import AdapterConfig, ModelConfig, RunConfig
from tdm_r1.errors import ConfigError
from tdm_r1.models.adapters import Adapter, RoleTensors
from tdm_r1.models.lora_files import require_fit
from tdm_r1.models.sources import open_source, source_folder
from tdm_r1.runtime.layout import RUN_FILE
from tdm_r1.runtime.run import config_bytes
from tdm_r1.runtime.run_file import read_config

WEIGHTS_FILE: Final = "pytorch_lora_weights.safetensors"
"""The name that `load_lora_weights` looks for in a folder."""
PREFIX, SUFFIX = "transformer.", ".weight"
"""Around the name of a role's tensor in that file."""
SCHEDULER: Final = "scheduler/scheduler_config.json"


def diffusers_lora(role: Mapping[str, Tensor], adapter: AdapterConfig) -> dict[str, Tensor]:
    """The tensors of a role by the names of diffusers and peft.

    peft applies (lora_alpha / r) · B · A, and diffusers takes lora_alpha = r when the file does not say
    otherwise; so our α/r is multiplied into B, and every loader agrees about the product.
    """
    scale, found = adapter.alpha / adapter.rank, {}
    for name, tensor in role.items():
        stored = tensor * scale if name.endswith(".lora_B") else tensor
        found[f"{PREFIX}{name}{SUFFIX}"] = stored.contiguous()
    return found


def write_folder(out: Path, role: Mapping[str, Tensor], config: RunConfig, metadata: Mapping[str, str]) -> None:
    """Write weights, scheduler and run.json.

    Args:
        metadata: strings beside the weights; `base_source` and `base_revision` bind them to their base.
    """
    scheduler = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000}
    scheduler |= {"shift": config.sampler.shift, "use_dynamic_shifting": False}
    (out / SCHEDULER).parent.mkdir(parents=True, exist_ok=True)
    (out / SCHEDULER).write_text(json.dumps(scheduler, indent=2) + "\n")
    weights = save(diffusers_lora(role, config.model.adapter), metadata={"format": "pt", **dict(metadata)})
    (out / WEIGHTS_FILE).write_bytes(weights)  # `save_file` would let nobody else read it
    (out / RUN_FILE).write_bytes(config_bytes(config))


@dataclass(frozen=True)
class ExportedLora:
    """A LoRA file and what its metadata says of its origin; None where it says nothing that can be."""

    name: str
    iteration: int | None
    record: str | None
    tensors: RoleTensors
    """By their names in the file."""
    about: Mapping[str, str]
    """The whole metadata."""

    @property
    def role(self) -> RoleTensors:
        """By our names; α/r is already in the product."""
        return {name.removeprefix(PREFIX).removesuffix(SUFFIX): tensor for name, tensor in self.tensors.items()}


def read_lora(path: Path) -> ExportedLora:
    """Read a safetensors file that `write_folder` wrote.

    Raises:
        CorruptArtifactError: when it is none, or holds NaN or infinities.
    """
    with open_tensors(path) as file:
        about = file.metadata() or {}
        tensors = {name: check_tensor(tensor, f"`{path}`[{name!r}]", None).clone() for name, tensor in tensors_of(file)}
    iteration, record = about.get("iteration", ""), about.get("record", "")
    return ExportedLora(
        about.get("name", "tdm-r1"),
        int(iteration) if re.fullmatch(r"[0-9]{1,5}", iteration) else None,
        record if re.fullmatch(r"[0-9a-f]{64}", record) else None,
        tensors,
        about,
    )


def unscaled(config: RunConfig) -> RunConfig:
    """The configuration that samples an exported role: its scale is 1."""
    adapter = config.model.adapter.model_copy(update={"alpha": float(config.model.adapter.rank)})
    return config.model_copy(update={"model": config.model.model_copy(update={"adapter": adapter})})


def read_folder(folder: Path, label: str) -> tuple[RunConfig, ExportedLora]:
    """Configuration as it is stored, and the weights.

    Raises:
        ConfigError: when the folder is none of these.
    """
    if not all((folder / file).is_file() for file in (RUN_FILE, WEIGHTS_FILE)):
        raise ConfigError(
            f"`{label}` is no exported generator: expected {RUN_FILE} and {WEIGHTS_FILE} in it",
            hint="write one with `tdm-r1 export --root RUN --out FOLDER`, make one of another program's file with "
            "`tdm-r1 import-lora`, or take `embedded:shapes_r1`",
        )
    return read_config(open_store(str(folder))), read_lora(folder / WEIGHTS_FILE)


def starting_role(config: RunConfig, base: Mapping[str, Tensor], revision: str) -> RoleTensors | None:
    """The adapter that `distill.adapter` names, in the scale of this run; None when it names none.

    Args:
        base: parameters of the run's base, of which names and shapes are looked at.
        revision: of the run's base.

    Raises:
        ConfigError: for an adapter of another base, of other layers or of another rank.
    """
    address, wanted = config.distill.adapter, config.model.adapter
    if not address:
        return None
    if wanted.kind != "lora":
        raise ConfigError(
            "distill.adapter is set, but model.adapter.kind is `full`: a LoRA cannot become such a role",
            hint="set model.adapter.kind=lora, or leave distill.adapter out",
        )
    place = ModelConfig(source=address, revision=config.distill.adapter_revision)
    folder = open_source(place).folder if place.revision else source_folder(place)
    _, exported = read_folder(folder, address)
    role, metadata = exported.role, exported.about
    made_on = metadata.get("base_revision", "")
    if made_on and made_on != revision:
        raise ConfigError(
            f"`{address}` was made for {metadata.get('base_source')} at {made_on}, this run's base is {revision}",
            hint="set model.source and model.revision to those, or import the adapter again for this base",
        )
    names = sorted({name.rpartition(".")[0] for name in role})
    pairs = {name: (role[f"{name}.lora_A"], role[f"{name}.lora_B"]) for name in names}
    require_fit(pairs, Adapter(base, wanted), address)
    scale = wanted.alpha / wanted.rank
    return {name: tensor / scale if name.endswith(".lora_B") else tensor for name, tensor in role.items()}
