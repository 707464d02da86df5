"""A run as those see it who only look: its configuration and its manifests. Nothing here computes.

`Run` in `run.py` is one, and can execute stages. What looks at a run takes an `Archive`: it then needs neither torch
nor the device that the run was made for.
"""

from __future__ import annotations

from functools import cached_property

from tdm_r1.artifacts.manifest import Manifest
from tdm_r1.artifacts.repository import read_manifest, require_manifest
from tdm_r1.artifacts.store import Store, open_store
from tdm_r1.config import RunConfig
from tdm_r1.errors import MissingParentError
from tdm_r1.runtime.layout import STOP_FILE, Task, generator_after
from tdm_r1.runtime.run_file import digest_of_config, read_config


class Archive:
    """One run directory."""

    def __init__(self, store: Store, config: RunConfig) -> None:
        self.store = store
        self.config = config

    @property
    def root(self) -> str:
        return self.store.root

    @cached_property
    def config_digest(self) -> str:
        """SHA-256 of the resolved configuration."""
        return digest_of_config(self.config)

    @property
    def stopped(self) -> bool:
        """Whether a person or a rule asked the loop to stop."""
        return self.store.exists(STOP_FILE)

    def manifest(self, task: Task) -> Manifest:
        return require_manifest(self.store, task.location)


def open_archive(root: str) -> Archive:
    """Open an existing run directory to look at it."""
    store = open_store(root)
    return Archive(store, read_config(store))


def newest_generator(run: Archive) -> int:
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
