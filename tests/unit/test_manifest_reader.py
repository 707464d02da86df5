"""Property tests of the manifest reader: hostile bytes give an error of this project, or an equal manifest."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tdm_r1.artifacts.manifest import FileEntry, Manifest
from tdm_r1.errors import CorruptArtifactError, SchemaError
from tests.unit.artifact_examples import PROVENANCE
from tests.unit.damage import sealed

MANIFEST = Manifest(
    kind="surrogate_update",
    version=1,
    files={
        name: FileEntry(sha256="c" * 64, size=10, rows=3 if name == "metrics.parquet" else None, stored_as=name)
        for name in ("state.safetensors", "optimizer.safetensors", "metrics.parquet")
    },
    parents={"prompts": "a" * 64, "iter-00001/rollout/shard-0000": "b" * 64},
    config_digest="d" * 64,
    provenance=PROVENANCE,
)
TEXT = st.text(st.characters(categories=("L", "N", "P", "Z", "Cc", "Cs")), max_size=20)  # half pairs included
NUMBERS = st.one_of(st.integers(), st.integers(10**18, 10**40), st.floats(), st.booleans(), st.none())
JSON = st.recursive(
    NUMBERS | TEXT, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=5
)


def paths(body: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    inner = [found for key in body for found in paths(body[key], (*path, key))] if isinstance(body, dict) else []
    return ([path] if path else []) + inner


def read(data: bytes) -> Manifest | None:
    """The manifest, or None when it is refused as it should be; any other error is raised."""
    try:
        return Manifest.from_bytes(data)
    except (CorruptArtifactError, SchemaError):
        return None


@settings(max_examples=500, deadline=None)
@given(st.sampled_from(paths(json.loads(MANIFEST.to_bytes()))), JSON, st.booleans(), st.booleans())
def test_a_manifest_with_any_value_changed_is_refused_or_safe(
    path: tuple[str, ...], value: Any, seal: bool, as_key: bool
) -> None:
    body = json.loads(MANIFEST.to_bytes())
    *folders, leaf = path
    node = body
    for name in folders:
        node = node[name]
    if as_key:
        node[str(value)] = node.pop(leaf)
    else:
        node[leaf] = value
    if seal:
        try:
            body = sealed(body)
        except (ValueError, AttributeError, KeyError):
            seal = False
    found = read(json.dumps(body).encode())
    if found is None:
        return
    assert seal or path == ("seal",) or body == json.loads(MANIFEST.to_bytes())
    for entry in found.files.values():
        assert 0 <= entry.size < 2**63
        assert not set("/\\\n") & set(entry.stored_as)
        assert not entry.stored_as.startswith(".")
    assert Manifest.from_bytes(found.to_bytes()) == found


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
def test_bytes_that_are_no_manifest_are_refused(data: bytes) -> None:
    assert read(data) is None


def test_nested_lists_without_end_are_refused() -> None:
    assert read(b"[" * 1_000_000) is None
    assert read(b'{"kind": "rollout", "version": 1, "x": ' + b"[" * 900 + b"]" * 900 + b"}") is None


def test_every_single_flipped_bit_of_a_manifest_is_caught() -> None:
    data = MANIFEST.to_bytes()
    for bit in range(len(data) * 8):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        assert read(bytes(damaged)) is None, bit


def test_a_manifest_of_an_earlier_version_without_a_seal_is_read() -> None:
    body = json.loads(MANIFEST.to_bytes())
    del body["seal"]
    assert read(json.dumps(body).encode()) == MANIFEST


@pytest.mark.parametrize("value", ["NaN", "Infinity", "1e999", "-Infinity"])
def test_a_duration_that_is_no_number_is_refused(value: str) -> None:
    assert read(MANIFEST.to_bytes().replace(b"86400.0", value.encode())) is None
