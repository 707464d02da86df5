"""A run directory opened to work on: its store, its base, and what is expensive to load twice."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from threading import Lock
from typing import Any, Final, TypeVar

import pyarrow as pa
from torch import Tensor

from tdm_r1.artifacts.codec import Record
from tdm_r1.artifacts.manifest import Manifest
from tdm_r1.artifacts.records import Paths, Rollout, TrainingState
from tdm_r1.artifacts.repository import load, load_paths, load_rows, load_table, load_tensors, require_kind
from tdm_r1.artifacts.store import Store, open_store
from tdm_r1.config import RunConfig
from tdm_r1.errors import MissingParentError, RootMismatchError
from tdm_r1.models.adapters import Adapter
from tdm_r1.models.backbone import Backbone
from tdm_r1.models.open import open_backbone
from tdm_r1.models.sources import Source, open_source
from tdm_r1.rewards.judges import Judges
from tdm_r1.runtime import numerics
from tdm_r1.runtime.archive import Archive
from tdm_r1.runtime.layout import RUN_FILE, Task
from tdm_r1.runtime.prompts import Prompts
from tdm_r1.runtime.run_file import read_config, run_file_bytes

AnyRecord = TypeVar("AnyRecord", bound=Record)

READERS: Final = 8
"""Records that are read at a time."""


class Run(Archive):
    """One run directory. Records are verified when they are read, then kept while the cache has room."""

    def __init__(self, store: Store, config: RunConfig) -> None:
        super().__init__(store, config)
        self._kept: OrderedDict[str, tuple[Record | Paths, Manifest]] = OrderedDict()
        self._lock = Lock()
        self._room = 8 + 2 * config.rollout.shards * (config.surrogate.replay + 1)
        numerics.apply(config.numerics)

    @cached_property
    def source(self) -> Source:
        """The base's weights as they lie here, checked against what is pinned."""
        return open_source(self.config.model)

    @cached_property
    def backbone(self) -> Backbone:
        """The networks, on the configured device.

        Raises:
            ConfigError: when this machine does not have it.
        """
        numerics.require_device(self.config.numerics, self.config.model.dtype)
        return open_backbone(self.config.model, self.config.numerics.device)

    @property
    def is_open(self) -> bool:
        """Whether the networks are here."""
        return "backbone" in self.__dict__

    def open(self) -> None:
        """Have the networks here; raises as `backbone` does."""
        self.backbone  # noqa: B018  it is kept

    @cached_property
    def judges(self) -> Judges:
        return Judges(self.config.reward)

    @cached_property
    def prompts(self) -> Prompts:
        """The prompts that are committed here."""
        return Prompts(self)

    def load(
        self, task: Task, record: type[AnyRecord], *, manifest: Manifest | None = None
    ) -> tuple[AnyRecord, Manifest]:
        """The record of a task, verified against its manifest. One that is read in parts else is too large to keep.

        Args:
            manifest: of this record, when it was read already.

        Raises:
            MissingParentError: when it was never committed, with the command that commits it.
            CorruptArtifactError: when a file is not what the manifest says.
        """
        location = task.location
        if kept := self._found(location):
            assert isinstance(kept[0], record)
            return kept[0], kept[1]
        with self._hinted(task):
            loaded = load(self.store, location, record, manifest=manifest)
        if not loaded[1].in_blocks:
            self._keep(location, loaded)
        return loaded

    def load_all(self, tasks: Sequence[Task], record: type[AnyRecord]) -> list[tuple[AnyRecord, Manifest]]:
        """As `load` of each, in their order, several at a time: fetching, hashing and parsing hold no interpreter lock.

        Raises:
            TdmR1Error: what `load` raises for the first of them that cannot be had.
        """
        with ThreadPoolExecutor(max(1, min(READERS, len(tasks)))) as pool:
            return list(pool.map(lambda task: self.load(task, record), tasks))

    def load_paths(self, tasks: Sequence[Task]) -> list[tuple[Rollout | Paths, Manifest]]:
        """As `load_all` of rollouts; of those that are not here already, without the images."""
        with ThreadPoolExecutor(max(1, min(READERS, len(tasks)))) as pool:
            return list(pool.map(self._load_paths, tasks))

    def _load_paths(self, task: Task) -> tuple[Rollout | Paths, Manifest]:
        bare = f"{task.location} without images"
        if kept := self._found(task.location) or self._found(bare):
            assert isinstance(kept[0], Rollout | Paths)
            return kept[0], kept[1]
        with self._hinted(task):
            loaded = load_paths(self.store, task.location)
        self._keep(bare, loaded)
        return loaded

    def load_table(self, task: Task, record: type[Record], field: str) -> tuple[pa.Table, Manifest]:
        """One table of a record, verified; of one that is not here already, without its tensors."""
        if kept := self._found(task.location):
            return getattr(kept[0], field), kept[1]
        with self._hinted(task):
            return load_table(self.store, task.location, record, field)

    def load_rows(
        self, task: Task, record: type[Record], field: str, rows: Sequence[int]
    ) -> tuple[dict[str, Tensor], Manifest]:
        """Some rows of a field of tensors, verified."""
        with self._hinted(task):
            return load_rows(self.store, task.location, record, field, rows)

    def manifest_of(self, task: Task, record: type[Record]) -> Manifest:
        """What a record is, without its files."""
        with self._hinted(task):
            return require_kind(self.store, task.location, record)

    def load_state(self, task: Task, record: type[TrainingState]) -> tuple[dict[str, Tensor], Manifest]:
        """The weights of a record, verified, without its optimizer, which may have been pruned."""
        with self._hinted(task):
            return load_tensors(self.store, task.location, record, "state")

    @contextmanager
    def _hinted(self, task: Task) -> Iterator[None]:
        """Tell whoever misses a record which command commits it."""
        try:
            yield
        except MissingParentError as error:
            command = " ".join(["tdm-r1 stage", *task.arguments(), "--root", self.root])
            raise MissingParentError(
                error.message, hint=f"run `{command}`, or resume the run with `tdm-r1 run --root {self.root}`"
            ) from error

    def _found(self, key: str) -> tuple[Record | Paths, Manifest] | None:
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)

    def _keep(self, location: str, loaded: tuple[Record | Paths, Manifest]) -> None:
        with self._lock:
            self._kept[location] = loaded
            while len(self._kept) > self._room:
                self._kept.popitem(last=False)


def config_bytes(config: RunConfig) -> bytes:
    """`run.json`: indented, in the order of the fields, with a seal over all of them at the end."""
    return run_file_bytes(config.declared.model_dump(mode="json"))


def create_run(root: str, config: RunConfig, *, check_model: bool = False) -> Run:
    """Write `run.json`, or open the run that already stands there with the same configuration.

    Args:
        check_model: open the base first, so that one which cannot be trained leaves no `run.json` behind.

    Raises:
        ConfigError: when the device, and if asked the base or its adapter, does not exist here.
        RootMismatchError: when the root holds another run.
    """
    numerics.require_device(config.numerics, config.model.dtype)
    run = Run(open_store(root), config)
    if check_model:
        for adapter in (config.model.adapter, config.surrogate_adapter):
            Adapter(run.backbone.base(), adapter).check()
        from tdm_r1.runtime.lora_folder import starting_role

        starting_role(config, run.backbone.base(), run.source.revision)
    run.config = write_run(run.store, config)
    return run


def write_run(store: Store, config: RunConfig) -> RunConfig:
    """Write `run.json`, for whichever machines will do the work; one that is equal may be there.

    Returns:
        The configuration of the run that stands there, which may have been extended.

    Raises:
        ConfigError: for a precision that does not train.
        RootMismatchError: when the root holds another run.
    """
    numerics.require_trainable(config.model.dtype)
    store.require_writable()
    if not store.write_bytes_if_absent(RUN_FILE, config_bytes(config)):
        present = read_config(store)
        if present.declared != config:
            raise RootMismatchError(
                f"`{store.root}/{RUN_FILE}` holds another configuration: {first_difference(present.declared, config)}",
                hint="choose another --root, or leave out --preset and --set to resume the run that stands there",
            )
        return present
    return config


def open_run(root: str) -> Run:
    """Open an existing run directory."""
    store = open_store(root)
    return Run(store, read_config(store))


def first_difference(present: RunConfig, wanted: RunConfig) -> str:
    """The first knob that differs, as `a.b is 1 there and 2 here`."""

    def walk(a: Any, b: Any, path: str) -> str | None:
        if isinstance(a, dict) and isinstance(b, dict):
            return next((found for key in a if (found := walk(a[key], b.get(key), f"{path}.{key}"))), None)
        return None if a == b else f"{path.lstrip('.')} is {a!r} there and {b!r} here"

    return walk(present.model_dump(), wanted.model_dump(), "") or "nothing differs"
