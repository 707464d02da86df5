"""A generator to draw from: committed in a run, or released as a LoRA folder."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from safetensors import safe_open

from tdm_r1.artifacts.manifest import Manifest
from tdm_r1.artifacts.records import Base, GeneratorState, role_tensors
from tdm_r1.artifacts.repository import read_manifest
from tdm_r1.artifacts.store import open_store
from tdm_r1.config import RunConfig
from tdm_r1.errors import ConfigError, MissingParentError
from tdm_r1.models.adapters import RoleTensors
from tdm_r1.models.backbone import Backbone
from tdm_r1.models.open import ASSETS, open_backbone
from tdm_r1.runtime import numerics
from tdm_r1.runtime.layout import RUN_FILE, generator_after
from tdm_r1.runtime.run import Run, open_run
from tdm_r1.runtime.run_file import read_config

ROLE = "generator_ema"
WEIGHTS_FILE = "pytorch_lora_weights.safetensors"
"""The name that `load_lora_weights` looks for in a folder."""
PREFIX, SUFFIX = "transformer.", ".weight"
"""Around the name of a role's tensor in that file."""


@dataclass(frozen=True)
class Generator:
    """Weights and all that is needed to sample from them."""

    name: str
    """As in the result table."""
    origin: str
    """Where it comes from, for people."""
    config: RunConfig
    role: RoleTensors

    @cached_property
    def backbone(self) -> Backbone:
        return open_backbone(self.config.model)


def open_generator(root: str | None, lora: str | None, iteration: int | None = None) -> Generator:
    """The averaged generator of a run, or that of an exported folder.

    Args:
        root: a run directory.
        lora: a folder that `tdm-r1 export` wrote, or `embedded:NAME` for one in the package.
        iteration: of the run; None for the newest, 0 for the one before any reward.

    Raises:
        ConfigError: unless exactly one of `root` and `lora` is given, or when what they name is none.
        MissingParentError: when the run has not committed this generator.
    """
    if root is not None and lora is None:
        run = open_run(root)
        number = newest_generator(run) if iteration is None else iteration
        return Generator(
            generator_name(number), f"{root}, iteration {number}", run.config, load_generator(run, number)[0]
        )
    if lora is not None and root is None and iteration is None:
        return _exported(lora)
    raise ConfigError(
        "expected either a run or an exported generator",
        hint="give --root RUN, with --iteration N if you like, or --lora FOLDER",
    )


def _exported(lora: str) -> Generator:
    """What `tdm-r1 export` wrote: α/r is already in the product there, so the adapter's scale is 1."""
    kind, _, short = lora.partition(":")
    folder = ASSETS / short if kind == "embedded" else Path(lora)
    if not all((folder / file).is_file() for file in (RUN_FILE, WEIGHTS_FILE)):
        raise ConfigError(
            f"`{folder}` is no exported generator: expected {RUN_FILE} and {WEIGHTS_FILE} in it",
            hint="write one with `tdm-r1 export --root RUN --out FOLDER`, or take `--lora embedded:shapes_r1`",
        )
    config = read_config(open_store(str(folder)))
    numerics.apply(config.numerics)
    adapter = config.model.adapter.model_copy(update={"alpha": float(config.model.adapter.rank)})
    with safe_open(folder / WEIGHTS_FILE, framework="pt") as file:
        name = (file.metadata() or {}).get("name", "tdm-r1")
        role = {key.removeprefix(PREFIX).removesuffix(SUFFIX): file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    model = config.model.model_copy(update={"adapter": adapter})
    return Generator(name, lora, config.model_copy(update={"model": model}), role)


def generator_name(iteration: int) -> str:
    """As in the result table."""
    return "tdm-r1" if iteration else "tdm"


def newest_generator(run: Run) -> int:
    """The last iteration whose generator is committed; 0 is stage 0's.

    Raises:
        MissingParentError: when there is none.
    """
    for iteration in range(run.config.iterations, -1, -1):
        if read_manifest(run.store, generator_after(iteration).location) is not None:
            return iteration
    raise MissingParentError(
        f"`{run.root}` has no generator yet: neither stage 0 nor any iteration is committed",
        hint=f"train one with `tdm-r1 run --root {run.root}`",
    )


def load_generator(run: Run, iteration: int) -> tuple[RoleTensors, Manifest]:
    """The averaged generator that an iteration left, and the manifest of its record.

    Raises:
        ConfigError: for an iteration that the run does not have.
        MissingParentError: when it was never committed.
    """
    if not 0 <= iteration <= run.config.iterations:
        raise ConfigError(
            f"iteration {iteration} is out of range, expected 0..{run.config.iterations}",
            hint="0 is the generator before any reward; leave --iteration out for the newest",
        )
    state, manifest = run.load_state(generator_after(iteration), GeneratorState if iteration else Base)
    return role_tensors(state, ROLE), manifest
