"""Claims about committed records: what comes back, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tdm_r1.artifacts.codec import Record
from tdm_r1.artifacts.manifest import Manifest
from tdm_r1.artifacts.records import (
    RECORDS,
    Base,
    Rollout,
)
from tdm_r1.artifacts.repository import load, read_manifest, require_manifest
from tdm_r1.artifacts.store import Store, open_store
from tdm_r1.errors import (
    ArtifactError,
    CorruptArtifactError,
    MissingParentError,
    SchemaError,
)
from tests.unit.artifact_examples import (
    EXAMPLES,
    FILES,
    PROVENANCE,
    WHERE,
    assert_same,
    evaluation,
    path_of,
    put,
    rewards,
    rollout,
    training,
)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "run"))


@pytest.mark.parametrize("kind", EXAMPLES)
def test_a_round_trip_is_exact(kind: str, store: Store) -> None:
    record = EXAMPLES[kind]()
    committed = put(store, record)
    loaded, manifest = load(store, WHERE, RECORDS[kind])
    assert_same(record, loaded)
    assert manifest == committed


@pytest.mark.parametrize("record", [rollout(0), rollout(1), rollout(256), rollout(257), evaluation(0)])
def test_a_round_trip_is_exact_for_any_number_of_rows(record: Record, store: Store) -> None:
    put(store, record)
    assert_same(record, load(store, WHERE, type(record))[0])


@pytest.mark.parametrize("kind", EXAMPLES)
def test_equal_content_gives_equal_bytes_and_equal_digest(kind: str, store: Store) -> None:
    torch.manual_seed(0)
    first = put(store, EXAMPLES[kind](), "a")
    torch.manual_seed(0)
    later = PROVENANCE.model_copy(update={"code_version": "0.2.0", "seconds": 1.0})
    second = put(store, EXAMPLES[kind](), "b", provenance=later)
    assert first.digest == second.digest
    for file in RECORDS[kind].files():
        assert path_of(store, f"a/{file}").read_bytes() == path_of(store, f"b/{file}").read_bytes()


def test_how_a_table_was_built_does_not_change_its_bytes(store: Store) -> None:
    one = rollout(10)
    pieces = pa.concat_tables([one.index.slice(0, 3), one.index.slice(3)]).select(["group", "prompt_id", "sample_id"])
    other = Rollout(
        index=pieces.replace_schema_metadata({"pandas": "{}"}), images=one.images.clone(), states=one.states.clone()
    )
    assert put(store, one, "a").digest == put(store, other, "b").digest


def test_different_content_parents_or_configuration_give_different_digests(store: Store) -> None:
    first = put(store, rewards(), "a")
    changes: list[dict[str, Any]] = [{"parents": {}}, {"config_digest": "c" * 64}, {"kind": "rollout"}]
    digests = {first.digest, put(store, rewards(group=[0, 0, 1]), "b").digest}
    digests |= {first.model_copy(update=change).digest for change in changes}
    assert len(digests) == 5


def test_a_table_is_readable_by_anyone_without_this_code(store: Store) -> None:
    record = rollout(3)
    manifest = put(store, record)
    read = pq.read_table(path_of(store, f"{WHERE}/part.parquet"))
    assert manifest.files["part.parquet"].rows == read.num_rows == 3
    for name, values in (("images", record.images), ("states", record.states)):
        about = read.schema.field(name).metadata
        flat = np.frombuffer(b"".join(read[name].to_pylist()), dtype=about[b"dtype"].decode())
        assert flat.reshape(-1, *json.loads(about[b"shape"])).tolist() == values.tolist()


@pytest.mark.parametrize(("kind", "file"), FILES)
@pytest.mark.parametrize("position", [0.0, 0.5, 0.999])
def test_a_flipped_bit_in_any_file_is_caught(kind: str, file: str, position: float, store: Store) -> None:
    manifest = put(store, EXAMPLES[kind]())
    path = path_of(store, f"{WHERE}/{file}")
    data = bytearray(path.read_bytes())
    data[int(position * len(data))] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptArtifactError, match=f"{file}.*{manifest.files[file].sha256}"):
        load(store, WHERE, RECORDS[kind])


@pytest.mark.parametrize(("kind", "file"), FILES)
def test_a_truncated_or_missing_file_is_caught(kind: str, file: str, store: Store) -> None:
    put(store, EXAMPLES[kind]())
    path = path_of(store, f"{WHERE}/{file}")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CorruptArtifactError, match=f"{file}.* bytes but .* expected"):
        load(store, WHERE, RECORDS[kind])
    path.unlink()
    with pytest.raises(CorruptArtifactError, match=f"{file}` is missing"):
        load(store, WHERE, RECORDS[kind])


@pytest.mark.parametrize("flip", ["digest", "size", "rows", "aaaa", "bbbb", "kind", "version"])
def test_a_flipped_bit_in_the_content_of_a_manifest_is_caught(flip: str, store: Store) -> None:
    put(store, rollout(2))
    path = path_of(store, f"{WHERE}/manifest.json")
    data = bytearray(path.read_bytes())
    data[data.index(flip.encode())] ^= 2
    path.write_bytes(data)
    with pytest.raises((CorruptArtifactError, SchemaError), match=r"manifest\.json"):
        load(store, WHERE, Rollout)


@pytest.mark.parametrize("data", [b"", b"\xff", b"[]", b'{"kind": "rollout", "version": 1}'])
def test_a_manifest_that_is_none_is_refused(data: bytes, store: Store) -> None:
    store.write_bytes_if_absent(f"{WHERE}/manifest.json", data)
    with pytest.raises((CorruptArtifactError, SchemaError)):
        load(store, WHERE, Rollout)


def test_a_record_of_another_kind_is_refused(store: Store) -> None:
    put(store, rewards())
    with pytest.raises(SchemaError, match="holds `reward_scoring` version 2 but `rollout` version 2 is expected"):
        load(store, WHERE, Rollout)


@pytest.mark.parametrize(("old", "new"), [('"version": 2', '"version": 9'), ('"rollout"', '"rollin"')])
def test_a_record_of_an_unknown_kind_or_version_is_refused(old: str, new: str, store: Store) -> None:
    text = put(store, rollout(1)).to_bytes().decode()
    with pytest.raises(SchemaError, match=r"version 9|rollin") as caught:
        Manifest.from_bytes(text.replace(old, new).encode())
    assert caught.value.hint


def test_a_location_without_a_manifest_was_never_committed(store: Store) -> None:
    store.write_bytes_if_absent(f"{WHERE}/part.parquet", b"left by a crash")
    assert read_manifest(store, WHERE) is None
    with pytest.raises(MissingParentError, match=f"`{store.root}/{WHERE}` has no manifest: it was never committed"):
        require_manifest(store, WHERE)
    with pytest.raises(MissingParentError):
        load(store, WHERE, Rollout)


def test_what_a_failed_stage_left_does_not_hinder_the_next_commit(store: Store) -> None:
    store.write_bytes_if_absent(f"{WHERE}/part.parquet", b"left by a crash")
    put(store, rollout(2))
    assert_same(load(store, WHERE, Rollout)[0], rollout(2))


def test_committing_equal_content_again_keeps_the_first_manifest(store: Store) -> None:
    first = put(store, rollout(2))
    assert put(store, rollout(2), provenance=PROVENANCE.model_copy(update={"seconds": 3.0})) == first


def test_committing_other_content_to_a_taken_location_is_refused(store: Store) -> None:
    first = put(store, rollout(2, seed=0))
    with pytest.raises(ArtifactError, match="already committed"):
        put(store, rollout(2, seed=1))
    assert load(store, WHERE, Rollout)[1] == first


def test_changing_a_loaded_tensor_does_not_change_the_store(store: Store) -> None:
    put(store, training(Base))
    loaded, manifest = load(store, WHERE, Base)
    before = loaded.state["surrogate/w.a"].clone()
    loaded.state["surrogate/w.a"].add_(1)
    again, same = load(store, WHERE, Base)  # every hash still holds
    assert torch.equal(again.state["surrogate/w.a"], before)
    assert same == manifest
