"""Manifests, tensors, names, prompts and rewards made to mislead: each is refused by an error of ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from tdm_r1.artifacts import store as store_module
from tdm_r1.artifacts.manifest import Manifest
from tdm_r1.artifacts.records import RECORDS, PromptSet, Rewards
from tdm_r1.artifacts.store import open_store
from tdm_r1.artifacts.tensors import read_tensors
from tdm_r1.errors import ArtifactError, ConfigError, CorruptArtifactError, SchemaError
from tdm_r1.report.page import evaluation_page
from tdm_r1.rewards.ask import Question, ask
from tdm_r1.rewards.plane import PlaneScorer
from tdm_r1.rewards.protocol import Image as Pixels
from tdm_r1.rewards.protocol import Metadata, Score
from tests.unit.artifact_examples import EXAMPLES, evaluation, prompt_set, put, rewards
from tests.unit.damage import sealed


@pytest.mark.parametrize(
    "name", ["../x", "/etc/passwd", "a/b", "..", ".hidden", "a\\b", "C:\\x", "", "a\n", "ä", "x" * 256]
)
@pytest.mark.parametrize("where", ["stored_as", "parent"])
def test_a_manifest_that_points_outside_its_folder_is_refused(name: str, where: str, tmp_path: Path) -> None:
    body = json.loads(put(open_store(str(tmp_path)), rewards()).to_bytes())
    if where == "stored_as":
        body["files"]["part.parquet"]["stored_as"] = name
    else:
        body["parents"] = {f"iter-00001/{name}" if name != "/etc/passwd" else name: "a" * 64}
        if name in ("a/b", "x" * 256):
            return  # below the root, so it is a location
    with pytest.raises(CorruptArtifactError, match="not valid"):
        Manifest.from_bytes(json.dumps(sealed(body)).encode())


def test_an_object_too_large_for_a_manifest_is_not_taken_into_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "MOST_BYTES", 1000)
    for size, refused in ((1000, False), (1001, True)):
        (tmp_path / "manifest.json").write_bytes(bytes(size))
        if refused:
            with pytest.raises(ArtifactError, match="more than 1,000 bytes"):
                open_store(str(tmp_path)).read_bytes("manifest.json")
        else:
            assert open_store(str(tmp_path)).read_bytes("manifest.json") == bytes(size)


@pytest.mark.parametrize("root", ["{{workflow.name}}", "s3://bucket/{{$.inputs.parameters['root']}}"])
def test_a_root_that_no_orchestrator_filled_in_is_refused(root: str) -> None:
    with pytest.raises(ConfigError, match="placeholder"):
        open_store(root)


def lie(path: Path, header: dict[str, Any] | bytes, data: bytes = bytes(16), length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def tensor(shape: list[int], start: int, stop: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


HEADERS: dict[str, dict[str, Any]] = {
    "beyond the file": {"header": {"a": tensor([1000], 0, 4000)}},
    "overlap": {"header": {"a": tensor([3], 0, 12), "b": tensor([2], 8, 16)}},
    "hole": {"header": {"a": tensor([1], 0, 4), "b": tensor([2], 8, 16)}},
    "rest": {"header": {"a": tensor([1], 0, 4)}},
    "backwards": {"header": {"a": tensor([4], 16, 0)}},
    "huge shape": {"header": {"a": tensor([2**62, 2**62], 0, 16)}},
    "huge shape of nothing": {"header": {"a": tensor([0, 2**63], 0, 0), "b": tensor([4], 0, 16)}},
    "negative shape": {"header": {"a": tensor([-1, -4], 0, 16)}},
    "shape that is not the size": {"header": {"a": tensor([5], 0, 16)}},
    "unknown dtype": {"header": {"a": tensor([4], 0, 16, "Q128")}},
    "no object": {"header": b"[1, 2]"},
    "deep": {"header": b'{"a":' + b"[" * 100_000},
    "not utf-8": {"header": b'{"\xff": 1}'},
    "longer than the file": {"header": {}, "length": 1000},
    "longest": {"header": {}, "length": 2**64 - 1},
    "empty": {"header": b""},
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_safetensors_header_that_lies_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises((CorruptArtifactError, SchemaError)):
        read_tensors(lie(tmp_path / "state.safetensors", **HEADERS[name]))


def test_the_same_header_without_a_lie_is_read(tmp_path: Path) -> None:
    read = read_tensors(lie(tmp_path / "x", {"a": tensor([3], 0, 12), "b": tensor([1], 12, 16)}))
    assert {name: t.tolist() for name, t in read.items()} == {"a": [0, 0, 0], "b": [0]}


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64])
def test_one_value_that_is_no_number_is_found_by_reading_and_by_scanning(
    bad: float, dtype: torch.dtype, tmp_path: Path
) -> None:
    from safetensors.torch import save_file

    values = torch.ones(3, 1000, dtype=dtype)
    large = torch.full_like(values, 6e4 if dtype == torch.float16 else 3e38)  # the sum overflows, no element does
    record = RECORDS["surrogate_update"]
    EXAMPLES["surrogate_update"]().write(tmp_path)
    save_file({"surrogate/a": values, "surrogate/b": large}, tmp_path / "state.safetensors")
    assert record.read(tmp_path).row_counts() == record.scan(tmp_path)
    values[1, 999] = bad
    save_file({"surrogate/a": values}, tmp_path / "state.safetensors")
    for read in (record.read, record.scan):
        with pytest.raises(SchemaError, match="NaN or infinite"):
            read(tmp_path)


@pytest.mark.parametrize(
    "bad", ["../x", "a/b", "/abs", "a\\b", "", "a\nb", "a\x1b[2J", "-rf", ".", "..", "x" * 201, "a'b", "$(x)"]
)
def test_a_name_that_could_be_a_path_or_a_command_cannot_be_in_a_record(bad: str) -> None:
    with pytest.raises(SchemaError, match="no name"):
        rewards(sample_id=["s0", bad, "s2"])
    with pytest.raises(SchemaError, match="no name"):
        rewards(prompt_id=["p0", bad, "p0"])
    with pytest.raises(SchemaError, match="no name"):
        prompts(prompt_id=["p0", bad])


@pytest.mark.parametrize("good", ["train-color_attr-0001", "00002-0003-001", "class 0", "ünï.2", "日本", "a=b:c@d+e,f"])
def test_an_ordinary_name_may_be_in_a_record(good: str) -> None:
    assert rewards(sample_id=["s0", good, "s2"]).count == 3


def prompts(**change: Any) -> PromptSet:
    good = prompt_set()
    return PromptSet(
        prompts=PromptSet.table("prompts", **(good.prompts.to_pydict() | change)), embeddings=good.embeddings
    )


@pytest.mark.parametrize("bad", ["a\x00b", "a\x1b[31mred", "\x07", "a\x7f", "a\rb", "a\x9bb"])
def test_a_prompt_with_a_control_character_cannot_be_in_a_record(bad: str) -> None:
    with pytest.raises(SchemaError, match="control character"):
        prompts(text=["a", bad])


TEMPLATES = [
    "{{ 7 * 7 }}",
    "{% raw %}",
    "{{$.inputs.parameters['x']}}",
    "{{workflow.name}}",
    "<script>x</script>",
    "a\n\tb",
]


def test_a_template_in_a_prompt_is_text_like_any_other(tmp_path: Path) -> None:
    record = prompts(prompt_id=["p0", "p1"], text=TEMPLATES[:2])
    record.write(tmp_path)
    assert PromptSet.read(tmp_path).prompts["text"].to_pylist() == TEMPLATES[:2]
    shown = evaluation(2)
    samples = shown.samples.set_column(2, "text", pa.array(["{{ 7 * 7 }}", "<script>x</script>"]))
    page = evaluation_page(
        shown.metrics, samples.set_column(0, "name", pa.array(["tdm-r1"] * 2)), shown.image, title="t"
    )
    assert "{{ 7 * 7 }}" in page
    assert "<script>" not in page
    assert "&lt;script&gt;x&lt;/script&gt;" in page


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("term", ["value", "parts"])
def test_a_reward_that_is_no_number_is_the_error_of_its_sample_and_of_no_other(bad: float, term: str) -> None:
    class Careless(PlaneScorer):
        def score_one(self, image: Pixels, prompt: str, metadata: Metadata) -> Score:
            value = bad if metadata["bad"] else 0.5
            given: dict[str, Any] = {"value": 0.5, term: (("count", value),) if term == "parts" else value}
            return Score(**given)

    questions = [Question(np.zeros((2, 2, 3), np.uint8), "", {"bad": n == 1}) for n in range(3)]
    scores = ask(Careless(), questions)
    assert [score.value for score in scores] == [0.5, None, 0.5]
    assert str(bad) in str(scores[1].error)


def test_a_part_that_is_no_number_cannot_be_in_a_record() -> None:
    with pytest.raises(SchemaError, match="NaN or infinite"):
        rewards(parts=[[{"name": "count", "value": float("nan")}], [], []])
    assert isinstance(rewards(), Rewards)
