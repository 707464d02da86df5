"""What the driver asks of whatever runs pipelines; `kfp.py` and `argo.py` are the two that exist."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from tdm_r1.drive.sizes import Breach


@dataclass(frozen=True, kw_only=True)
class Block:
    """One pipeline run to submit."""

    name: str
    root: str
    start: int
    shards: tuple[int, ...]

    def parameters(self, takes: Collection[str]) -> Mapping[str, Any]:
        """Values of those parameters that the pipeline has."""
        known = {"root": self.root, "start": self.start, "shards": list(self.shards)}
        return {name: value for name, value in known.items() if name in takes}


@dataclass(frozen=True)
class Status:
    """How a submitted block is."""

    state: Literal["running", "succeeded", "failed"]
    detail: str = ""
    """Of a failure: which tasks failed, and what the scheduler says about them."""


class Scheduler(Protocol):
    """Runs blocks. Every method may raise `SchedulerDownError` (try again) or `ConfigError` (refused)."""

    def check(self) -> None:
        """Refuse, before anything is submitted, what could not run: pipeline, namespace, access."""

    @property
    def processes(self) -> Mapping[str, int]:
        """In how many processes the pipeline starts a stage, by stage; known after `check`."""

    @property
    def queues(self) -> tuple[str, ...]:
        """Kueue queues that the pipeline's pods name; known after `check`."""

    def breaches(self, shards: int) -> Iterable[Breach]:
        """Limits that a block of a run with so many shards would break; known after `check`."""

    def find(self, name: str) -> str | None:
        """The identifier of the run with this name, or None."""

    def submit(self, block: Block) -> str:
        """Start the block and return its identifier."""

    def status(self, run_id: str) -> Status:
        """How the run is; one that the server no longer knows has failed."""

    def terminate(self, run_id: str) -> None:
        """Stop the run if it still runs."""
