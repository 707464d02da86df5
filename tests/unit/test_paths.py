"""Claims about what updates read of a rollout: all but its images, with the same result and the same refusals."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from tdm_r1.artifacts.records import Paths, Rollout
from tdm_r1.artifacts.rows import fill_rows
from tdm_r1.errors import CorruptArtifactError
from tdm_r1.models.samples import joined
from tdm_r1.runtime.execute import execute
from tdm_r1.runtime.layout import Task
from tdm_r1.runtime.run import open_run

ROLLOUT = Task("rollout", 1, 0)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Dtypes of the row tensors that are decoded from now on."""
    found: list[str] = []

    def watched(tensor: torch.Tensor, batches: Any, spec: Any) -> None:
        found.append(spec.dtype.name)
        fill_rows(tensor, batches, spec)

    monkeypatch.setattr("tdm_r1.artifacts.tables.fill_rows", watched)
    return found


@pytest.mark.parametrize("stage", ["surrogate_update", "generator_update"])
def test_an_update_decodes_no_image(stage: str, finished: Path, tmp_path: Path, decoded: list[str]) -> None:
    root = Path(shutil.copytree(finished, tmp_path / "run"))
    before = open_run(str(root)).manifest(Task(stage, 1)).digest
    shutil.rmtree(root / Task(stage, 1).location)
    execute(open_run(str(root)), Task(stage, 1))
    assert set(decoded) == {"float32"}
    assert open_run(str(root)).manifest(Task(stage, 1)).digest == before


def test_paths_are_the_rollout_without_its_images(finished: Path, decoded: list[str]) -> None:
    ((paths, manifest),) = open_run(str(finished)).load_paths([ROLLOUT])
    rollout, same = open_run(str(finished)).load(ROLLOUT, Rollout)
    assert isinstance(paths, Paths)
    assert manifest.digest == same.digest
    assert paths.index.equals(rollout.index)
    assert torch.equal(paths.states, rollout.states)
    assert sorted(decoded) == ["float32", "float32", "uint8"]


def test_what_is_here_is_not_read_again(finished: Path, decoded: list[str]) -> None:
    run = open_run(str(finished))
    rollout, _ = run.load(ROLLOUT, Rollout)
    assert run.load_paths([ROLLOUT])[0][0] is rollout
    other = open_run(str(finished))
    assert other.load_paths([ROLLOUT])[0][0] is other.load_paths([ROLLOUT])[0][0]
    assert len(decoded) == 3


def test_a_flipped_bit_of_an_image_is_refused_though_no_image_is_decoded(finished: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(finished, tmp_path / "run"))
    path = root / ROLLOUT.location / "part.parquet"
    data = bytearray(path.read_bytes())
    about = pq.read_metadata(path)
    column = about.row_group(0).column(about.schema.to_arrow_schema().get_field_index("images"))
    data[column.data_page_offset + column.total_compressed_size - 1] ^= 1
    path.unlink()
    path.write_bytes(data)
    with pytest.raises(CorruptArtifactError, match="sha256"):
        open_run(str(root)).load_paths([ROLLOUT])


def test_rows_of_one_shard_are_not_copied() -> None:
    part = torch.zeros(3, 2)
    assert joined([part]) is part
    assert torch.equal(joined([part, part + 1]), torch.cat([part, part + 1]))
