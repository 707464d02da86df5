"""One target for every fuzzer: bytes go to each reader, and what is no record must be refused by our own errors."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from tdm_r1.artifacts.codec import Record, row_specs
from tdm_r1.artifacts.manifest import Manifest
from tdm_r1.artifacts.picture import read_png
from tdm_r1.artifacts.records import RECORDS
from tdm_r1.artifacts.schema import TableSpec, specs_of
from tdm_r1.artifacts.store import open_store
from tdm_r1.artifacts.tables import read_table, scan_table
from tdm_r1.artifacts.tensors import read_tensors
from tdm_r1.artifacts.tombstone import read_tombstone
from tdm_r1.errors import ArtifactError, ConfigError
from tdm_r1.runtime.run_file import read_config

Reader = Callable[[Path], object]


def stored(name: str, read: Callable[[Any], object]) -> Reader:
    """A reader of one small object of a store."""

    def reader(path: Path) -> object:
        (path.parent / name).parent.mkdir(exist_ok=True)
        path.rename(path.parent / name)
        return read(open_store(str(path.parent)))

    return reader


def table(record: type[Record], spec: TableSpec) -> Reader:
    """Reads a table piece by piece, and whole: the former looks at more, so what it believes the latter reads."""

    def reader(path: Path) -> object:
        rows = row_specs(record, spec.dim)
        whole = accepted(lambda: read_table(path, spec, rows))
        found = scan_table(path, spec, rows)
        assert whole, "what a scan believes is read"
        return found

    return reader


def accepted(read: Callable[[], object]) -> bool:
    """Whether bytes are believed; any error but a refusal of this project is raised."""
    try:
        read()
    except (ArtifactError, ConfigError):
        return False
    return True


READERS: Final[Mapping[str, Reader]] = {
    "manifest": lambda path: Manifest.from_bytes(path.read_bytes()),
    "tombstone": stored("record/pruned.json", lambda store: read_tombstone(store, "record")),
    "run": stored("run.json", read_config),
    "tensors": read_tensors,
    "picture": read_png,
    **{
        f"{kind}/{spec.file}": table(record, spec)
        for kind, record in RECORDS.items()
        for spec in specs_of(record).values()
        if isinstance(spec, TableSpec)
    },
}


def feed(name: str, data: bytes) -> bool:
    """Whether reader `name` believes `data`."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "file")
        path.write_bytes(data)
        return accepted(lambda: READERS[name](path))


def feed_any(data: bytes) -> bool:
    """The first byte chooses the reader."""
    names = sorted(READERS)
    return bool(data) and feed(names[data[0] % len(names)], data[1:])
