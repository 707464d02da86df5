"""Tables and bombs made to mislead or to exhaust: each is refused by an error of ours, before it costs memory."""

from __future__ import annotations

import subprocess
import sys
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tdm_r1.artifacts.picture import KEYWORD
from tdm_r1.artifacts.records import Rollout
from tdm_r1.errors import CorruptArtifactError, SchemaError
from tests.unit.artifact_examples import EXAMPLES, rewards, rollout
from tests.unit.test_hostile import lie
from tests.unit.test_hostile_pictures import png_of


def test_a_value_that_is_no_number_in_any_row_group_is_found_by_scanning(tmp_path: Path) -> None:
    good = rollout(300)
    good.write(tmp_path)
    assert Rollout.scan(tmp_path) == {"part.parquet": 300}
    good.states[299, 4, 1, 2, 3] = float("nan")  # after the check of the record
    good.write(tmp_path)
    for read in (Rollout.scan, partial(Rollout.scan, pixels=False), Rollout.read):
        with pytest.raises(SchemaError, match="NaN or infinite"):
            read(tmp_path)


def first_page(path: Path, column: str) -> int:
    """Where the first page of a column begins."""
    about = pq.read_metadata(path)
    number = about.schema.to_arrow_schema().get_field_index(column)
    return int(about.row_group(0).column(number).data_page_offset)


def test_a_page_of_pixels_that_cannot_be_decompressed_is_found_when_pixels_are_asked_for(tmp_path: Path) -> None:
    """Under a hash that fits: without it, any changed byte is found (test_audit.py)."""
    rollout(300).write(tmp_path)
    path = tmp_path / "part.parquet"
    data, page = bytearray(path.read_bytes()), first_page(path, "images")
    frame = data.index(bytes.fromhex("28b52ffd"), page)  # zstd's magic number
    data[frame] ^= 1
    path.write_bytes(data)
    assert Rollout.scan(tmp_path, pixels=False) == {"part.parquet": 300}
    for read in (Rollout.read, Rollout.scan):
        with pytest.raises(CorruptArtifactError):
            read(tmp_path)


def varint(value: int) -> bytes:
    """A number as Parquet's footer has it: zigzag, seven bits per byte."""
    rest, found = 2 * value, bytearray()
    while rest > 127:
        found.append(rest & 127 | 128)
        rest >>= 7
    return bytes([*found, rest])


def lie_of_column(path: Path, column: str, fact: str, claim: int) -> None:
    """Change what the footer says of a column in the first row group, and nothing else."""

    def facts() -> tuple[int, ...]:
        about = pq.read_metadata(path)
        found = about.row_group(0).column(about.schema.to_arrow_schema().get_field_index(column))
        return tuple(int(getattr(found, name)) for name in FACTS)

    data, true = path.read_bytes(), dict(zip(FACTS, facts(), strict=True))
    old, new = varint(true[fact]), varint(claim)
    assert len(old) == len(new)
    place = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    while (place := data.find(old, place + 1)) > 0:
        path.write_bytes(data[:place] + new + data[place + len(old) :])
        try:
            if facts() == tuple((true | {fact: claim}).values()):
                return
        except OSError:
            continue
    raise AssertionError("no such footer was found")


FACTS = ("num_values", "total_uncompressed_size", "total_compressed_size")


@pytest.mark.parametrize(
    ("fact", "claim", "said"),
    [
        ("num_values", 200, "column images claims"),
        ("total_uncompressed_size", 9_000, "column images claims"),
        ("total_compressed_size", 1_000_000, "Invalid column metadata"),  # by the library: past the end of the file
    ],
)
def test_a_footer_that_lies_about_pixels_is_refused_without_decoding_them(
    fact: str, claim: int, said: str, tmp_path: Path
) -> None:
    rollout(300).write(tmp_path)
    lie_of_column(tmp_path / "part.parquet", "images", fact, claim)
    with pytest.raises((SchemaError, CorruptArtifactError), match=said):
        Rollout.scan(tmp_path, pixels=False)


def test_pixels_that_are_said_to_reach_into_the_footer_are_refused_without_decoding_them(tmp_path: Path) -> None:
    path = tmp_path / "part.parquet"
    rollout(300).write(tmp_path)
    about = pq.read_metadata(path)
    start = about.row_group(0).column(about.schema.to_arrow_schema().get_field_index("images")).data_page_offset
    lie_of_column(path, "images", "total_compressed_size", path.stat().st_size - 8 - start)
    with pytest.raises((SchemaError, CorruptArtifactError), match="column images claims"):
        Rollout.scan(tmp_path, pixels=False)


def about(field: pa.Field, **change: str) -> pa.Field:
    return field.with_metadata({**(field.metadata or {}), **{k.encode(): v.encode() for k, v in change.items()}})


def replaced(table: pa.Table, name: str, column: Any, **change: Any) -> pa.Table:
    place = table.schema.get_field_index(name)
    old = table.schema.field(name)
    field = pa.field(name, column.type, nullable=False, metadata=old.metadata)
    return table.set_column(place, change.get("field", field), column)


TABLES: dict[str, Callable[[pa.Table], pa.Table]] = {
    "column missing": lambda t: t.drop_columns(["states"]),
    "column more": lambda t: t.append_column("more", t["group"]),
    "column renamed": lambda t: t.rename_columns(["sample_id", "prompt_id", "group", "images", "state"]),
    "other type": lambda t: replaced(t, "group", t["group"].cast(pa.int32())),
    "text as bytes": lambda t: replaced(t, "prompt_id", t["prompt_id"].cast(pa.binary())),
    "no utf-8": lambda t: replaced(
        t, "prompt_id", pa.Array.from_buffers(pa.string(), 2, pa.array([b"\xff", b"\xfe"]).buffers())
    ),
    "null": lambda t: replaced(t, "group", pa.array([0, None]), field=pa.field("group", pa.int64())),
    "null tensor": lambda t: replaced(
        t, "states", pa.array([None, None], t["states"].type), field=about(t.schema.field("states")).with_nullable(True)
    ),
    "shape missing": lambda t: replaced(t, "states", t["states"], field=t.schema.field("states").remove_metadata()),
    "shape of more": lambda t: replaced(
        t, "states", t["states"], field=about(t.schema.field("states"), shape="[5, 2, 3, 5]")
    ),
    "shape negative": lambda t: replaced(
        t, "states", t["states"], field=about(t.schema.field("states"), shape="[-5, -2, 3, 4]")
    ),
    "shape huge": lambda t: replaced(
        t, "states", t["states"], field=about(t.schema.field("states"), shape="[9999999999, 2, 3, 4]")
    ),
    "shape of floats": lambda t: replaced(
        t, "states", t["states"], field=about(t.schema.field("states"), shape="[5.0, 2, 3, 4]")
    ),
    "fewer dims": lambda t: replaced(
        t, "states", t["states"], field=about(t.schema.field("states"), shape="[10, 3, 4]")
    ),
    "other dtype": lambda t: replaced(t, "states", t["states"], field=about(t.schema.field("states"), dtype="int32")),
    "twice the sample": lambda t: replaced(t, "sample_id", pa.array(["s0", "s0"])),
    "path for a sample": lambda t: replaced(t, "sample_id", pa.array(["s0", "../../s1"])),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_that_is_not_the_declared_one_is_refused(name: str, tmp_path: Path) -> None:
    rollout(2).write(tmp_path)
    path = tmp_path / "part.parquet"
    pq.write_table(TABLES[name](pq.read_table(path)), path)
    for read in (Rollout.read, Rollout.scan, partial(Rollout.scan, pixels=False)):
        with pytest.raises((SchemaError, CorruptArtifactError)):
            read(tmp_path)


def test_the_same_table_untouched_is_read(tmp_path: Path) -> None:
    rollout(2).write(tmp_path)
    path = tmp_path / "part.parquet"
    pq.write_table(pq.read_table(path), path)
    assert Rollout.scan(tmp_path) == Rollout.read(tmp_path).row_counts() == {"part.parquet": 2}


def test_the_layout_of_version_1_is_read_as_the_same_record(tmp_path: Path) -> None:
    record = rollout(300)
    record.write(tmp_path, version=1)
    assert isinstance(pq.read_schema(tmp_path / "part.parquet").field("states").type, pa.FixedShapeTensorType)
    found = Rollout.read(tmp_path)
    assert torch.equal(found.states, record.states)
    assert torch.equal(found.images, record.images)
    assert found.index.equals(record.index)
    assert Rollout.scan(tmp_path) == {"part.parquet": 300}


BOMBS = """
import resource, sys
from pathlib import Path
from tdm_r1.artifacts.picture import read_png
from tdm_r1.artifacts.records import RECORDS
from tdm_r1.errors import ArtifactError
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for folder in sorted(Path(sys.argv[1]).iterdir()):
    kind = folder.name.partition("-")[0]
    for read in (RECORDS[kind].read, RECORDS[kind].scan) if kind != "png" else (lambda f: read_png(f / "x.png"),):
        try:
            read(folder)
        except ArtifactError as error:
            print(folder.name, error.message[:150])
        else:
            raise SystemExit(f"{folder.name} was believed")
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def write_bombs(folder: Path) -> None:
    """Small files that would fill gigabytes."""
    places = {name: folder / name for name in ("rollout-rows", "rollout-text", "reward_scoring-text", "png-pixels")}
    places |= {name: folder / name for name in ("reward_scoring-last", "png-text", "surrogate_update-header")}
    for place in places.values():
        place.mkdir(parents=True)
    count = 3_000_000
    index = pa.table({"sample_id": pa.array(["s"]).take(pa.array(np.zeros(count, np.int32)))}).append_column(
        "group", pa.array(np.zeros(count, np.int64))
    )
    whole = index.append_column("prompt_id", index["sample_id"])
    for name in ("images", "states"):
        whole = whole.append_column(name, pa.array(np.zeros(count, np.uint8)))
    pq.write_table(whole, places["rollout-rows"] / "part.parquet", row_group_size=count)
    record = rollout(256)
    record.write(places["rollout-text"])
    table = pq.read_table(places["rollout-text"] / "part.parquet")
    text = pa.DictionaryArray.from_arrays(pa.array(np.zeros(256, np.int32)), pa.array(["x" * 10_000_000]))
    pq.write_table(
        replaced(table, "prompt_id", text).replace_schema_metadata(None),
        places["rollout-text"] / "part.parquet",
        store_schema=False,
    )
    scored = rewards(error=[None, "y" * 9_000_000, None])
    scored.write(places["reward_scoring-text"])
    again = pq.read_table(places["reward_scoring-text"] / "part.parquet").to_pylist()[1]
    rows = [again | {"sample_id": f"s{n}"} for n in range(8)]
    pq.write_table(pa.Table.from_pylist(rows, scored.scores.schema), places["reward_scoring-text"] / "part.parquet")
    scored.write(places["reward_scoring-last"])  # the same rows, behind many row groups that hold little
    small = [again | {"sample_id": f"t{n}", "error": "e"} for n in range(80)]
    both = pa.Table.from_pylist([*small, *rows], scored.scores.schema)
    pq.write_table(both, places["reward_scoring-last"] / "part.parquet", row_group_size=8)
    (places["png-pixels"] / "x.png").write_bytes(png_of(60_000, 60_000, zlib.compress(bytes(1000))))
    note = PngInfo()
    note.add_itxt(KEYWORD, "z" * 20_000_000, zip=True)
    Image.new("RGB", (2, 2)).save(places["png-text"] / "x.png", pnginfo=note)
    EXAMPLES["surrogate_update"]().write(places["surrogate_update-header"])
    header = b'{"__metadata__":{"a":"' + b"x" * 40_000_000 + b'"}}'
    lie(places["surrogate_update-header"] / "state.safetensors", header, b"")


def test_bombs_are_refused_in_little_memory(tmp_path: Path) -> None:
    write_bombs(tmp_path)
    done = subprocess.run([sys.executable, "-c", BOMBS, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout.splitlines()[-1]) < 150, done.stdout
