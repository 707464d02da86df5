"""How far a run is, read from the names in its storage: a record exists when its manifest exists."""

from __future__ import annotations

from dataclasses import dataclass

from tdm_r1.artifacts.store import Store
from tdm_r1.config import RunConfig
from tdm_r1.runtime.layout import complete_iterations

MANIFEST: str = "/manifest.json"


@dataclass(frozen=True)
class Progress:
    """What is committed."""

    records: int
    complete: int
    """Iterations 1 … complete are wholly committed."""

    @property
    def next(self) -> int:
        """First iteration that is not."""
        return self.complete + 1


def read_progress(store: Store, config: RunConfig) -> Progress:
    """List the storage once and count."""
    there = {key.removesuffix(MANIFEST) for key in store.list("") if key.endswith(MANIFEST)}
    return Progress(len(there), complete_iterations(there, config))
