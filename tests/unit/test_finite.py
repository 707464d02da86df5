"""Floats told finite by their bits, and files of tensors checked without holding one of them."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from tdm_r1.artifacts import tables
from tdm_r1.artifacts.dtypes import FLOAT16, FLOAT32, FLOAT64, STORED, UINT8, DType
from tdm_r1.artifacts.finite import all_finite
from tdm_r1.artifacts.records import Rollout
from tdm_r1.artifacts.schema import check_tensor
from tdm_r1.artifacts.tensors import CHUNK, read_tensors, scan_tensors
from tdm_r1.errors import CorruptArtifactError, SchemaError
from tests.unit.artifact_examples import rollout
from tests.unit.test_hostile import HEADERS, lie, tensor

FLOATS = [dtype for dtype in STORED.values() if dtype.bits]
NOT_FINITE = (math.nan, -math.nan, math.inf, -math.inf)


@given(data=st.binary(min_size=8, max_size=64).map(lambda data: data[: len(data) // 8 * 8]))
def test_any_bits_are_judged_as_torch_judges_them(data: bytes) -> None:
    for dtype in FLOATS:
        values = torch.frombuffer(bytearray(data), dtype=dtype.torch)
        exact = values.float() if dtype.itemsize == 1 else values
        assert all_finite(memoryview(data), dtype) == bool(exact.isfinite().all()), dtype


def test_a_stored_dtype_has_the_name_and_the_width_that_torch_gives_it(tmp_path: Path) -> None:
    for stored, dtype in STORED.items():
        save_file({"a": torch.zeros(3).to(dtype.torch)}, tmp_path / "x")
        with safe_open(tmp_path / "x", "pt") as file:
            assert file.get_slice("a").get_dtype() == stored
        assert dtype.torch.itemsize == dtype.itemsize
        assert (dtype.bits is not None) == (dtype.torch.is_floating_point or dtype.torch.is_complex)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_the_largest_floats_are_finite_and_what_follows_them_is_not(dtype: DType) -> None:
    kind = dtype.torch
    real = torch.float32 if kind.is_complex else kind
    largest = torch.finfo(real).max
    for value in (0.0, -0.0, largest, -largest, torch.finfo(real).tiny):
        values = torch.full((3,), value, dtype=torch.float64).to(kind)
        assert all_finite(memoryview(bytes(values.view(torch.uint8).tolist())), dtype)
    for value in NOT_FINITE[: 2 if dtype.name == "float8_e4m3fn" else 4]:  # which has no infinity
        values = torch.tensor([0.0, value, largest], dtype=torch.float64).to(kind)
        assert not all_finite(memoryview(bytes(values.view(torch.uint8).tolist())), dtype)


def test_arrays_are_judged_like_their_bytes_and_none_is_finite() -> None:
    assert all_finite(np.array([1.0, 2.0]), FLOAT64)
    assert not all_finite(np.array([1.0, np.inf], dtype=np.float16), FLOAT16)
    assert all_finite(np.array([], dtype=np.float32), FLOAT32)
    assert all_finite(np.array([255], dtype=np.uint8), UINT8)


def stored(path: Path) -> dict[str, torch.Tensor]:
    """A file with a tensor of every dtype, an empty one, a scalar, and one larger than what is in memory at once."""
    values = {str(dtype): torch.ones(3, 5).to(dtype.torch) for dtype in STORED.values()}
    values |= {"empty": torch.empty(0, 4), "scalar": torch.tensor(2.0), "large": torch.ones(CHUNK // 4 * 2 + 7)}
    save_file(values, path)
    return values


def test_scanning_sees_the_shapes_and_dtypes_that_reading_sees(tmp_path: Path) -> None:
    stored(tmp_path / "x")
    read, scanned = read_tensors(tmp_path / "x"), scan_tensors(tmp_path / "x", None)
    found = {name: (tensor.dtype.torch, tensor.shape) for name, tensor in scanned.items()}
    assert found == {name: (tensor.dtype, tensor.shape) for name, tensor in read.items()}
    assert {name: tensor.nbytes for name, tensor in scanned.items()} == {n: tensor.nbytes for n, tensor in read.items()}


def test_a_dtype_that_nobody_can_judge_is_in_no_record(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2).to(torch.float8_e5m2fnuz)}, tmp_path / "x")
    with pytest.raises(SchemaError, match="F8_E5M2FNUZ, which no record holds"):
        scan_tensors(tmp_path / "x", None)
    with pytest.raises(SchemaError, match="float8_e5m2fnuz but"):
        check_tensor(torch.zeros(2).to(torch.float8_e5m2fnuz), "x", None)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_a_nan_in_one_tensor_among_all_dtypes_is_found_and_named(dtype: DType, tmp_path: Path) -> None:
    values = stored(tmp_path / "x")
    values[str(dtype)][2, 4] = math.nan
    save_file(values, tmp_path / "x")
    with pytest.raises(SchemaError, match=rf"'{dtype}'.* NaN or infinite"):
        scan_tensors(tmp_path / "x", None)


def test_a_nan_behind_the_first_chunk_of_a_tensor_is_found(tmp_path: Path) -> None:
    values = stored(tmp_path / "x")
    values["large"][-1] = math.nan
    save_file(values, tmp_path / "x")
    with pytest.raises(SchemaError, match=r"'large'.* NaN or infinite"):
        scan_tensors(tmp_path / "x", None)


def test_a_tensor_of_another_dtype_than_declared_is_refused_by_scanning(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2, dtype=torch.float64)}, tmp_path / "x")
    with pytest.raises(SchemaError, match=r"is float64 but float32 is declared"):
        scan_tensors(tmp_path / "x", FLOAT32)


@pytest.mark.parametrize("name", HEADERS)
def test_a_safetensors_header_that_lies_is_refused_by_scanning(name: str, tmp_path: Path) -> None:
    with pytest.raises((CorruptArtifactError, SchemaError)):
        scan_tensors(lie(tmp_path / "state.safetensors", **HEADERS[name]), None)


def test_tensors_are_judged_where_their_offsets_say_whatever_the_order_of_the_header(tmp_path: Path) -> None:
    nan = np.array([0, np.nan], "<f4").tobytes()
    header = {"a": tensor([2], 8, 16, "I32"), "b": tensor([2], 0, 8)}
    assert set(scan_tensors(lie(tmp_path / "x", header, bytes(8) + nan), None)) == {"a", "b"}
    with pytest.raises(SchemaError, match="'b'"):
        scan_tensors(lie(tmp_path / "x", header, nan + bytes(8)), None)


def test_batches_of_rows_give_what_whole_row_groups_give(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = rollout(300)
    record.write(tmp_path)
    monkeypatch.setattr(tables, "BATCH_BYTES", 3 * record.states[0].nbytes + 1)  # three rows, which divide nothing
    found = Rollout.read(tmp_path)
    assert torch.equal(found.states, record.states)
    assert torch.equal(found.images, record.images)
    assert Rollout.scan(tmp_path) == {"part.parquet": 300}


def claiming_more_rows(path: Path, count: int, claim: int) -> None:
    """Change a footer so that the table and its only row group claim other rows than their columns hold."""
    data, old, new = path.read_bytes(), bytes([2 * count]), bytes([2 * claim])  # zigzag varints below 64
    start = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    places = [at for at in range(start, len(data) - 8) if data[at : at + 1] == old]
    for one in places:
        for other in (place for place in places if place > one):
            path.write_bytes(data[:one] + new + data[one + 1 : other] + new + data[other + 1 :])
            try:
                about = pq.read_metadata(path)
                rows, held = about.row_group(0).num_rows, {about.row_group(0).column(n).num_values for n in range(5)}
            except OSError:
                continue
            if (about.num_rows, rows, held) == (claim, claim, {count}):
                return
    raise AssertionError("no such footer was found")


def test_a_row_group_that_claims_more_rows_than_its_columns_hold_is_refused(tmp_path: Path) -> None:
    rollout(29).write(tmp_path)
    claiming_more_rows(tmp_path / "part.parquet", 29, 31)
    for read in (Rollout.read, Rollout.scan, partial(Rollout.scan, pixels=False)):
        with pytest.raises((SchemaError, CorruptArtifactError)):
            read(tmp_path)
