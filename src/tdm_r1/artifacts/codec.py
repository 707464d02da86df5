"""Records to files and back: Parquet for tables and rows, safetensors for tensors, UTF-8 for text.

Equal content gives equal bytes, for one version of pyarrow and safetensors. Nothing is pickled.
"""

from __future__ import annotations

import codecs
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, Self

import pyarrow as pa

from tdm_r1.artifacts.foreign import refusing
from tdm_r1.artifacts.schema import Dims, RowsSpec, TableSpec, TensorsSpec, TextSpec, specs_of
from tdm_r1.artifacts.tables import read_table, scan_table, write_table
from tdm_r1.artifacts.tensors import read_tensors, scan_tensors, write_tensors
from tdm_r1.errors import SchemaError

if TYPE_CHECKING:
    from torch import Tensor

TEXT_CHUNK: Final = 1 << 20


@dataclass(frozen=True, kw_only=True, eq=False)
class Record:
    """What a stage returns. Its fields are declared by specs; an invalid record cannot be built."""

    kind: ClassVar[str]
    version: ClassVar[int] = 1
    """That is written."""
    readable: ClassVar[frozenset[int]] = frozenset({1})
    """Versions that this code reads."""

    def __post_init__(self) -> None:
        dims = Dims()
        for name, spec in specs_of(self).items():
            parsed = spec.parse(getattr(self, name), f"{type(self).__name__}.{name}", dims)
            object.__setattr__(self, name, parsed)
        self.check()

    def check(self) -> None:
        """Refuse content that the field specs cannot express; a record overrides it where needed."""

    @classmethod
    def table(cls, field: str, **columns: Sequence[Any]) -> pa.Table:
        """Build the table of `field` from Python values, with the declared types: None is null."""
        spec = specs_of(cls).get(field)
        if not isinstance(spec, TableSpec) or set(columns) != set(spec.columns):
            declared = list(spec.columns) if isinstance(spec, TableSpec) else "no table"
            raise SchemaError(f"{cls.__name__}.{field} was given columns {list(columns)} but declares {declared}")
        try:
            return pa.table({name: pa.array(columns[name], c.dtype) for name, c in spec.columns.items()})
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise SchemaError(f"{cls.__name__}.{field} cannot hold these values: {error}") from error

    @classmethod
    def files(cls) -> dict[str, str]:
        """Return the field stored in each file; row tensors lie in the file of their table."""
        return {s.file: f for f, s in specs_of(cls).items() if isinstance(s, TableSpec | TensorsSpec | TextSpec)}

    def row_counts(self) -> dict[str, int | None]:
        """Return the number of rows of each file, None for a file that is not a table."""
        values = {file: getattr(self, field) for file, field in self.files().items()}
        return {file: v.num_rows if isinstance(v, pa.Table) else None for file, v in values.items()}

    def write(self, directory: Path, *, version: int | None = None) -> None:
        """Write the files of this record into an existing directory, as its version or an earlier one lays them out."""
        lists = version is not None and version < self.version
        for file, field in self.files().items():
            value = getattr(self, field)
            if isinstance(value, pa.Table):
                write_table(directory / file, value, self._rows_of(field), lists=lists)
            elif isinstance(value, str):
                (directory / file).write_bytes(value.encode())
            else:
                write_tensors(directory / file, value)

    @classmethod
    def read(cls, directory: Path) -> Self:
        """Read the record that `write` left in `directory`.

        Raises:
            CorruptArtifactError: for a file that cannot be parsed.
            SchemaError: for content that is not what this record declares.
        """
        return cls(**cls._read(directory, frozenset()))

    @classmethod
    def read_fields(cls, directory: Path, *, without: Collection[str]) -> dict[str, Any]:
        """As `read`, all fields but some row tensors, each as its spec wants it; `check` is not asked."""
        dims, values = Dims(), cls._read(directory, without)
        return {
            name: specs_of(cls)[name].parse(value, f"{cls.__name__}.{name}", dims) for name, value in values.items()
        }

    @classmethod
    def _read(cls, directory: Path, without: Collection[str]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for file, field in cls.files().items():
            spec, path = specs_of(cls)[field], directory / file
            if isinstance(spec, TableSpec):
                values[field], tensors = read_table(path, spec, row_specs(cls, spec.dim), without=without)
                values.update(tensors)
            elif isinstance(spec, TextSpec):
                with refusing(file):
                    values[field] = path.read_bytes().decode()
            else:
                values[field] = read_tensors(path)
        return values

    @classmethod
    def scan(cls, directory: Path, *, pixels: bool = True) -> dict[str, int | None]:
        """Check all that `read` checks and return the rows of each file, in bounded memory.

        One batch of rows or part of a tensor is in memory at a time, and the tables' own columns. What `check` sees
        of a tensor is its shape and dtype.

        Args:
            pixels: also decode row tensors of integers, as in `scan_table`.
        """
        values: dict[str, Any] = {}
        for file, field in cls.files().items():
            spec, path = specs_of(cls)[field], directory / file
            if isinstance(spec, TableSpec):
                values[field], shapes = scan_table(path, spec, row_specs(cls, spec.dim), pixels=pixels)
                values.update(shapes)
            elif isinstance(spec, TextSpec):
                values[field] = scan_text(path)
            else:
                assert isinstance(spec, TensorsSpec)
                values[field] = scan_tensors(path, spec.dtype)
        return cls(**values).row_counts()

    def _rows_of(self, field: str) -> dict[str, tuple[RowsSpec, Tensor]]:
        spec = specs_of(self)[field]
        assert isinstance(spec, TableSpec)
        return {name: (rows, getattr(self, name)) for name, rows in row_specs(type(self), spec.dim).items()}


def row_specs(record: type[Record], dim: str) -> dict[str, RowsSpec]:
    """Return the row tensors of `record` that belong to its table of dim `dim`."""
    specs = {field.name: field.metadata["spec"] for field in fields(record)}
    return {name: s for name, s in specs.items() if isinstance(s, RowsSpec) and s.dims[0] == dim}


def scan_text(path: Path) -> str:
    """Check that a file is UTF-8; none of it is kept."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    with refusing(path.name), path.open("rb") as file:
        while chunk := file.read(TEXT_CHUNK):
            decoder.decode(chunk)
        decoder.decode(b"", final=True)
    return ""
