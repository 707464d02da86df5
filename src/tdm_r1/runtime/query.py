"""SQL over a run's committed tables, read only: DuckDB on views that pyarrow streams from Parquet.

The user's SQL sees the views and nothing else: DuckDB may not open a file, load an extension or look at
Python's variables, and its configuration is locked before the SQL is run.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from pyarrow import fs

from tdm_r1.artifacts.codec import Record
from tdm_r1.artifacts.records import Evaluation, Feedback, PromptSet, Rewards, Rollout, SurrogateState
from tdm_r1.artifacts.repository import fetch_verified, read_manifest
from tdm_r1.artifacts.schema import TableSpec, specs_of
from tdm_r1.artifacts.tombstone import read_tombstone
from tdm_r1.errors import ConfigError, CorruptArtifactError
from tdm_r1.rewards import aggregate
from tdm_r1.runtime.archive import Archive
from tdm_r1.runtime.layout import Task, all_tasks

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

KEYS: Final[Mapping[str, pa.DataType]] = MappingProxyType(
    {"iteration": pa.int64(), "shard": pa.int64(), "stage": pa.string()}
)
"""Columns that say which record a row is of; they are no part of its file."""
LOCKED: Final[Mapping[str, str]] = MappingProxyType(
    {
        "enable_external_access": "false",
        "autoload_known_extensions": "false",
        "autoinstall_known_extensions": "false",
        "python_enable_replacements": "false",
    }
)
REWARDS = "rewards"
ADVANTAGES = "advantages"
Build = Callable[[Archive, Path, list[str]], Any]
"""From a run, a scratch folder and the list of pruned locations, to which it adds, to what DuckDB reads."""


@dataclass(frozen=True)
class View:
    """One table of every record of some stages, with the keys of the record before its columns."""

    record: type[Record]
    field: str
    stages: tuple[str, ...]
    keys: tuple[str, ...]

    @property
    def spec(self) -> TableSpec:
        found = specs_of(self.record)[self.field]
        assert isinstance(found, TableSpec)
        return found

    @property
    def schema(self) -> pa.Schema:
        return pa.schema([*(pa.field(key, KEYS[key]) for key in self.keys), *self.spec.schema])


VIEWS: Final[Mapping[str, View]] = MappingProxyType(
    {
        "prompts": View(PromptSet, "prompts", ("encode_prompts",), ()),
        "rollouts": View(Rollout, "index", ("rollout",), ("iteration", "shard")),
        "votes": View(Feedback, "votes", ("feedback",), ("iteration",)),
        "scores": View(Rewards, "scores", ("reward_scoring",), ("iteration", "shard")),
        "scorers": View(Rewards, "scorers", ("reward_scoring",), ("iteration", "shard")),
        "metrics": View(
            SurrogateState,  # all that train have the same metrics
            "metrics",
            ("distill_base", "surrogate_update", "generator_update"),
            ("iteration", "stage"),
        ),
        "evaluation": View(Evaluation, "metrics", ("evaluation",), ("iteration",)),
        "samples": View(Evaluation, "samples", ("evaluation",), ("iteration",)),
    }
)
REWARD_SCHEMA: Final = pa.schema(
    [pa.field("iteration", KEYS["iteration"]), pa.field("shard", KEYS["shard"]), *aggregate.SCHEMA]
)
ADVANTAGE_COLUMNS = ("iteration", "shard", "sample_id", "prompt_id", "group", "reward")


@dataclass(frozen=True)
class Answer:
    """The result of a query."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    pruned: tuple[str, ...]
    """Locations that a view of this query leaves out, because their table was pruned."""


@dataclass(frozen=True)
class Found:
    """One committed table on this machine."""

    task: Task
    path: str


def view_columns() -> dict[str, list[str]]:
    """The columns of every view, in order."""
    found = {name: list(view.schema.names) for name, view in VIEWS.items()}
    return {**found, REWARDS: list(REWARD_SCHEMA.names), ADVANTAGES: [*ADVANTAGE_COLUMNS, "advantage", "valid"]}


def query(run: Archive, sql: str) -> Answer:
    """Run one SELECT over what is committed.

    Args:
        sql: one statement; only the views that it names are read, or all when it names none.

    Raises:
        ConfigError: when DuckDB refuses it, or it is anything but one SELECT.
        CorruptArtifactError: when a table has not the bytes or the columns that its manifest and record say.
    """
    duckdb = _duckdb()
    try:
        statements = duckdb.extract_statements(sql)
        kinds = [statement.type.name for statement in statements]
        if len(kinds) != 1 or kinds[0] not in ("SELECT", "EXPLAIN"):
            raise ConfigError(f"expected one SELECT, found {' and '.join(kinds) or 'nothing'}", hint=_hint())
        with (
            tempfile.TemporaryDirectory(prefix="tdm-r1-") as scratch,
            duckdb.connect(":memory:", config=dict(LOCKED)) as connection,
        ):
            pruned = _bind(connection, run, sql, Path(scratch))
            connection.execute("SET lock_configuration=true")
            cursor = connection.execute(statements[0])
            columns = tuple(column[0] for column in cursor.description or ())
            return Answer(columns, tuple(cursor.fetchall()), pruned)
    except duckdb.Error as error:
        raise ConfigError(str(error), hint=_hint()) from error


def _duckdb() -> Any:
    try:
        import duckdb
    except ImportError as error:
        raise ConfigError("DuckDB is not installed here", hint="pip install 'tdm-r1[audit]'") from error
    return duckdb


def _hint() -> str:
    lines = [f"  {name}({', '.join(columns)})" for name, columns in view_columns().items()]
    return "\n".join(['the views are as follows; write "group" in quotes, for it is a word of SQL', *lines])


def _bind(connection: DuckDBPyConnection, run: Archive, sql: str, scratch: Path) -> tuple[str, ...]:
    """Register the views that `sql` names, or all; return the pruned locations they leave out."""
    known: dict[str, Build] = {name: partial(_dataset, view) for name, view in VIEWS.items()}
    known |= {REWARDS: _rewards, ADVANTAGES: _advantages}
    named = [name for name in known if re.search(rf"\b{name}\b", sql, re.IGNORECASE)]
    pruned: list[str] = []
    for name in named or known:
        folder = scratch / name
        folder.mkdir()
        connection.register(name, known[name](run, folder, pruned))
    return tuple(dict.fromkeys(pruned))


def tables(run: Archive, view: View, scratch: Path, pruned: list[str]) -> Iterator[Found]:
    """Fetch the view's table of every committed record; note those that were pruned."""
    file = next(file for file, field in view.record.files().items() if field == view.field)
    for task in all_tasks(run.config):
        manifest = read_manifest(run.store, task.location) if task.stage in view.stages else None
        if manifest is None:
            continue
        key = f"{task.location}/{manifest.files[file].stored_as}"
        stone = read_tombstone(run.store, task.location)
        if stone is not None and file in stone.files and not run.store.exists(key):
            pruned.append(task.location)
            continue
        path = scratch / f"{task.location.replace('/', '-')}.parquet"
        fetch_verified(run.store, key, path, manifest.files[file])
        check_table(path, view.spec, f"{run.root}/{key}")
        yield Found(task, str(path))


def check_table(path: Path, spec: TableSpec, label: str) -> None:
    """Refuse a table that has not the columns of its record."""
    hint = "see all that is wrong with `tdm-r1 audit`, or restore the file from a copy"
    try:
        found = pq.read_schema(path)
    except (pa.ArrowException, OSError) as error:
        raise CorruptArtifactError(f"`{label}` is no Parquet file: {error}", hint=hint) from error
    for column in spec.schema:
        if column.name not in found.names or found.field(column.name).type != column.type:
            raise CorruptArtifactError(f"`{label}` has no column {column.name} of type {column.type}", hint=hint)


def _dataset(view: View, run: Archive, scratch: Path, pruned: list[str]) -> ds.FileSystemDataset:
    """The view as a dataset: the columns of the record's table alone are read, and the keys come from the layout."""
    form, local = ds.ParquetFileFormat(), fs.LocalFileSystem()
    fragments = [
        form.make_fragment(found.path, local, partition_expression=_keys_are(view, found.task))
        for found in tables(run, view, scratch, pruned)
    ]
    return ds.FileSystemDataset(fragments, view.schema, form, local)


def _keys_are(view: View, task: Task) -> ds.Expression:
    expression = ds.scalar(True)
    for key in view.keys:
        expression &= ds.field(key) == pa.scalar(getattr(task, key), KEYS[key])
    return expression


def _rewards(run: Archive, scratch: Path, pruned: list[str]) -> pa.Table:
    """The reward of every scored sample, computed from the raw scores with the weights of the run."""
    found = []
    for name in ("scores", "scorers"):
        (scratch / name).mkdir()
        found.append(tables(run, VIEWS[name], scratch / name, pruned))
    parts = [REWARD_SCHEMA.empty_table()]
    for scores, scorers in zip(*found, strict=True):
        values = pq.read_table(scores.path), pq.read_table(scorers.path)
        part = aggregate.aggregate_tables(*values, run.config.reward)
        for key in ("shard", "iteration"):
            part = part.add_column(0, key, pa.repeat(pa.scalar(getattr(scores.task, key), KEYS[key]), len(part)))
        parts.append(part.cast(REWARD_SCHEMA))
    return pa.concat_tables(parts)


def _advantages(run: Archive, scratch: Path, pruned: list[str]) -> pa.Table:
    """What the surrogate trains on, computed from the rewards of the iterations whose shards are all scored."""
    rows = _rewards(run, scratch, pruned).select(list(ADVANTAGE_COLUMNS)).to_pylist()
    parts = []
    for iteration in dict.fromkeys(row["iteration"] for row in rows):
        own = [row for row in rows if row["iteration"] == iteration]
        if len({row["shard"] for row in own}) == run.config.rollout.shards:
            parts.append(_advantages_of(own, run))
    fields = [REWARD_SCHEMA.field(name) for name in ADVANTAGE_COLUMNS]
    schema = pa.schema([*fields, pa.field("advantage", pa.float64()), pa.field("valid", pa.bool_())])
    return pa.Table.from_pylist([row for part in parts for row in part], schema=schema)


def _advantages_of(rows: list[dict[str, Any]], run: Archive) -> list[dict[str, Any]]:
    import torch

    from tdm_r1.advantages import group_advantages

    section = run.config.surrogate
    reward_N = torch.tensor([float("nan") if r["reward"] is None else r["reward"] for r in rows], dtype=torch.float64)
    group_N = torch.tensor([row["group"] for row in rows], dtype=torch.int64)
    found = group_advantages(reward_N, group_N, std=section.advantage_std, clip=section.advantage_clip)
    both = zip(rows, found.advantage.tolist(), found.valid.tolist(), strict=True)
    return [{**row, "advantage": advantage, "valid": valid} for row, advantage, valid in both]
