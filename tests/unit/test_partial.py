"""Claims about reading rows of a large file: the same numbers as from the whole file, and nothing unverified."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tdm_r1.artifacts import blocks
from tdm_r1.artifacts.manifest import Manifest
from tdm_r1.artifacts.records import PromptSet
from tdm_r1.artifacts.repository import load, load_rows
from tdm_r1.artifacts.store import LocalStore
from tdm_r1.errors import CorruptArtifactError, SchemaError
from tdm_r1.runtime.audit import audit
from tests.support import tdm_r1
from tests.unit.artifact_examples import WHERE, path_of, prompt_set, put
from tests.unit.damage import doctor, flip

COUNT, ROW, SMALL = 40, 7 * 5 * 4, 64
"""Embeddings, bytes of one of them, and bytes of a block, which splits every one."""
FILE = "embeddings.safetensors"


class Counting(LocalStore):
    """Remembers which ranges and which files were read."""

    def __init__(self, root: str) -> None:
        super().__init__(root)
        self.ranges: list[tuple[int, int]] = []
        self.fetched: list[str] = []

    def read_range(self, key: str, start: int, length: int) -> bytes:
        self.ranges.append((start, length))
        return super().read_range(key, start, length)

    def fetch(self, key: str, local: Path) -> None:
        self.fetched.append(key.rpartition("/")[2])
        super().fetch(key, local)


def many() -> PromptSet:
    noise = torch.Generator().manual_seed(0)
    sequence, pooled = torch.randn(COUNT, 7, 5, generator=noise), torch.randn(COUNT, 3, generator=noise)
    return PromptSet(prompts=prompt_set().prompts, embeddings={"sequence": sequence, "pooled": pooled})


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(blocks, "BLOCK_BYTES", SMALL)
    return SMALL


@pytest.fixture
def store(small: int, tmp_path: Path) -> Counting:
    found = Counting(str(tmp_path / "run"))
    put(found, many())
    return found


def read(store: LocalStore, rows: Sequence[int]) -> dict[str, torch.Tensor]:
    return load_rows(store, WHERE, PromptSet, "embeddings", rows)[0]


def assert_rows(found: dict[str, torch.Tensor], rows: Sequence[int]) -> None:
    expected = many().embeddings
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], expected[name][list(rows)]) for name in expected)


def offsets(store: LocalStore) -> tuple[int, dict[str, int]]:
    """Where the tensors of the file begin, by a reader of our own."""
    data = path_of(store, f"{WHERE}/{FILE}").read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    return 8 + length, {name: 8 + length + header[name]["data_offsets"][0] for name in ("sequence", "pooled")}


def used_blocks(store: LocalStore, rows: Sequence[int]) -> set[int]:
    """Numbers of the blocks that hold the header or one of these rows: each byte's own."""
    start, begins = offsets(store)
    wanted = set(range(start))
    for name, width in (("sequence", ROW), ("pooled", 12)):
        wanted |= {begins[name] + row * width + byte for row in rows for byte in range(width)}
    return {byte // SMALL for byte in wanted}


@pytest.mark.parametrize("rows", [[0], [0, 3, 39], [39, 3, 3, 0], [], list(range(COUNT))], ids=str)
def test_rows_are_those_of_a_whole_read_when_blocks_split_them(rows: list[int], store: Counting) -> None:
    assert_rows(read(store, rows), rows)
    assert store.fetched == []


@settings(max_examples=40, deadline=None)
@given(size=st.integers(1, 9000), rows=st.lists(st.integers(0, COUNT - 1), max_size=6))
def test_rows_are_those_of_a_whole_read_for_any_size_of_a_block(
    size: int, rows: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "BLOCK_BYTES", size)
        store = LocalStore(str(tmp_path_factory.mktemp("run")))
        put(store, many())
        assert_rows(read(store, rows), rows)


def test_each_block_of_the_header_and_of_the_rows_is_read_once_and_no_other(store: Counting) -> None:
    rows = [0, 11, 11, 12, 39]
    read(store, rows)
    size = path_of(store, f"{WHERE}/{FILE}").stat().st_size
    expected = sorted(used_blocks(store, rows))
    assert sorted(start for start, _ in store.ranges) == [number * SMALL for number in expected]
    assert sum(length for _, length in store.ranges) < size / 3
    assert all(length == min(SMALL, size - start) for start, length in store.ranges)


def test_a_flipped_bit_in_any_block_that_is_used_is_refused_with_its_place_and_a_hint(store: Counting) -> None:
    path, rows = path_of(store, f"{WHERE}/{FILE}"), [2, 30]
    for number in sorted(used_blocks(store, rows)):
        flip(path, (number * SMALL + 5) * 8)
        with pytest.raises(CorruptArtifactError, match=rf"{WHERE}`: block {number} of `{FILE}`, bytes") as raised:
            read(store, rows)
        assert "restore the file from a copy" in (raised.value.hint or "")
        flip(path, (number * SMALL + 5) * 8)
    assert_rows(read(store, rows), rows)


def test_a_block_that_differs_is_not_read_again(store: Counting) -> None:
    number = max(used_blocks(store, [30]))
    flip(path_of(store, f"{WHERE}/{FILE}"), number * SMALL * 8)
    with pytest.raises(CorruptArtifactError):
        read(store, [30])
    assert sorted(start for start, _ in store.ranges).count(number * SMALL) == 1


def test_a_file_that_ends_too_early_is_refused(store: Counting) -> None:
    path = path_of(store, f"{WHERE}/{FILE}")
    path.write_bytes(path.read_bytes()[: SMALL * 20 + 1])
    with pytest.raises(CorruptArtifactError, match=r"with sha256 .* is expected"):
        read(store, range(COUNT))


def test_a_flipped_bit_in_a_block_that_is_not_used_is_not_noticed_here_but_by_a_whole_read(store: Counting) -> None:
    rows, path = [0, 1], path_of(store, f"{WHERE}/{FILE}")
    unused = set(range(blocks.block_count(path.stat().st_size))) - used_blocks(store, rows)
    flip(path, min(unused) * SMALL * 8 + 3)
    assert_rows(read(store, rows), rows)
    with pytest.raises(CorruptArtifactError, match="has sha256"):
        load(store, WHERE, PromptSet)


@pytest.mark.parametrize("row", [-1, COUNT])
def test_a_row_that_is_not_there_is_refused_with_blocks_and_without(
    row: int, store: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SchemaError, match=rf"has {COUNT} rows but row {row} is asked for"):
        read(store, [0, row])
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 1 << 20)
    put(store, many(), "whole")
    with pytest.raises(SchemaError, match=rf"has {COUNT} rows but row {row} is asked for"):
        load_rows(store, "whole", PromptSet, "embeddings", [0, row])


def test_a_file_of_one_block_has_none_and_its_manifest_is_as_ever(tmp_path: Path) -> None:
    store = Counting(str(tmp_path))
    manifest = put(store, many())
    assert b"blocks" not in manifest.to_bytes()
    assert not manifest.in_blocks
    assert_rows(read(store, [5, 2]), [5, 2])
    assert (store.ranges, store.fetched) == ([], [FILE])


def test_only_a_file_that_is_read_by_rows_has_blocks(store: Counting) -> None:
    manifest = Manifest.from_bytes(store.read_bytes(f"{WHERE}/manifest.json"))
    assert manifest.files["prompts.parquet"].size > SMALL
    assert [name for name, entry in manifest.files.items() if entry.blocks is not None] == [FILE]


def test_blocks_are_the_hashes_of_consecutive_parts_and_no_part_of_the_digest(store: Counting, tmp_path: Path) -> None:
    manifest = Manifest.from_bytes(store.read_bytes(f"{WHERE}/manifest.json"))
    data = path_of(store, f"{WHERE}/{FILE}").read_bytes()
    parts = [data[start : start + SMALL] for start in range(0, len(data), SMALL)]
    assert manifest.files[FILE].blocks == tuple(hashlib.sha256(part).hexdigest() for part in parts)
    assert manifest.files[FILE].sha256 == hashlib.sha256(data).hexdigest()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "BLOCK_BYTES", 1 << 20)
        assert put(LocalStore(str(tmp_path / "whole")), many()).digest == manifest.digest


def edit_blocks(store: LocalStore, change: Any) -> None:
    doctor(Path(store.root), WHERE, lambda body: change(body["files"][FILE]))


def test_a_manifest_with_too_few_blocks_is_refused(store: Counting) -> None:
    edit_blocks(store, lambda entry: entry["blocks"].pop())
    with pytest.raises(CorruptArtifactError, match="blocks of a file of"):
        read(store, [0])


def test_hashes_of_blocks_without_a_seal_over_them_are_refused(store: Counting) -> None:
    """Else a change of them would go unnoticed: the digest leaves them out."""
    path = path_of(store, f"{WHERE}/manifest.json")
    body = json.loads(path.read_bytes())
    del body["seal"]
    path.write_text(json.dumps(body))
    with pytest.raises(CorruptArtifactError, match="no seal over them"):
        read(store, [0])


def test_a_changed_hash_of_a_block_breaks_the_seal(store: Counting) -> None:
    path = path_of(store, f"{WHERE}/manifest.json")
    body = json.loads(path.read_bytes())
    body["files"][FILE]["blocks"][-1] = "0" * 64
    path.write_text(json.dumps(body))
    with pytest.raises(CorruptArtifactError, match="seal"):
        read(store, [0])


def test_an_earlier_manifest_without_blocks_is_read_as_a_whole(store: Counting) -> None:
    edit_blocks(store, lambda entry: entry.pop("blocks"))
    assert_rows(read(store, [7, 0]), [7, 0])
    assert (store.ranges, store.fetched) == ([], [FILE])


@pytest.mark.usefixtures("small")
def test_an_audit_notices_a_damaged_block_and_a_wrong_hash_of_one(finished: Path, tmp_path: Path) -> None:
    root = tmp_path / "run"
    shutil.copytree(finished, root)
    shutil.rmtree(root / "prompts")
    assert tdm_r1("stage", "encode_prompts", "--root", str(root)) == 0
    assert audit(str(root)).clean
    flip(root / "prompts" / FILE, 8 * 400)
    assert [fault.kind for fault in audit(str(root)).faults] == ["hash"]
    flip(root / "prompts" / FILE, 8 * 400)
    doctor(root, "prompts", lambda body: body["files"][FILE]["blocks"].__setitem__(3, "0" * 64))
    (fault,) = audit(str(root)).faults
    assert (fault.kind, fault.location) == ("hash", f"prompts/{FILE}")
    assert fault.found.startswith("block 3 with sha256 ")
    assert fault.expected == f"sha256 {'0' * 64} of this block"
