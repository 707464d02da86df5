"""A generator to draw from: committed in a run, or released as a LoRA folder."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tdm_r1.artifacts.manifest import Manifest
from tdm_r1.artifacts.records import Base, GeneratorState, role_tensors
from tdm_r1.config import RunConfig
from tdm_r1.errors import ConfigError
from tdm_r1.models.adapters import RoleTensors
from tdm_r1.models.backbone import Backbone
from tdm_r1.models.open import open_backbone
from tdm_r1.models.sources import ASSETS
from tdm_r1.runtime import numerics
from tdm_r1.runtime.archive import newest_generator
from tdm_r1.runtime.layout import generator_after
from tdm_r1.runtime.lora_folder import read_folder, unscaled
from tdm_r1.runtime.run import Run, open_run
from tdm_r1.runtime.run_file import digest_of_config

ROLE = "generator_ema"


@dataclass(frozen=True)
class Generator:
    """Weights and all that is needed to sample from them."""

    name: str
    """As in the result table."""
    origin: str
    """Where it comes from, for people."""
    config: RunConfig
    role: RoleTensors
    config_digest: str
    """Of the run that it was trained in."""
    root: str | None = None
    """Of that run; None for an export."""
    iteration: int | None = None
    """That left it; None when an export does not say."""
    record: str | None = None
    """Digest of the manifest of its record."""

    @cached_property
    def backbone(self) -> Backbone:
        numerics.require_device(self.config.numerics, self.config.model.dtype)
        return open_backbone(self.config.model, self.config.numerics.device)


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
        role, manifest = load_generator(run, number)
        origin = f"{root}, iteration {number}"
        return Generator(
            generator_name(number), origin, run.config, role, run.config_digest, root, number, manifest.digest
        )
    if lora is not None and root is None and iteration is None:
        return _exported(lora)
    raise ConfigError(
        "expected either a run or an exported generator",
        hint="give --root RUN, with --iteration N if you like, or --lora FOLDER",
    )


def _exported(lora: str) -> Generator:
    """What `tdm-r1 export` or `import-lora` wrote."""
    kind, _, short = lora.partition(":")
    config, exported = read_folder(ASSETS / short if kind == "embedded" else Path(lora), lora)
    numerics.apply(config.numerics)
    digest = digest_of_config(config)
    where = (None, exported.iteration, exported.record)
    return Generator(exported.name, lora, unscaled(config), exported.role, digest, *where)


def generator_name(iteration: int) -> str:
    """As in the result table."""
    return "tdm-r1" if iteration else "tdm"


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
