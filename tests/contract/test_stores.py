"""What every store keeps, asked of the local directory and of a real S3 server alike."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
import torch

from tdm_r1.artifacts import blocks
from tdm_r1.artifacts.leftovers import Sweepable
from tdm_r1.artifacts.manifest import Manifest, sha256_of
from tdm_r1.artifacts.records import RECORDS, PromptSet, Rollout
from tdm_r1.artifacts.repository import load, load_rows, read_manifest
from tdm_r1.artifacts.s3 import PART_BYTES
from tdm_r1.artifacts.s3_read import read_range
from tdm_r1.artifacts.store import Store, open_store
from tdm_r1.errors import ArtifactError, ConfigError, CorruptArtifactError
from tests.s3 import BUCKET, Server
from tests.s3_proxy import Fault, Request, proxy
from tests.unit.artifact_examples import EXAMPLES, WHERE, assert_same, prompt_set, put, rollout

PROMPTS = prompt_set().prompts


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "local":
        return open_store(str(tmp_path / "run"))
    return open_store(request.getfixturevalue("s3_root"))


@pytest.fixture
def big(tmp_path: Path) -> Path:
    """A file of three parts, the last one short."""
    path = tmp_path / "big"
    path.write_bytes(os.urandom(2 * PART_BYTES + 12345))
    return path


def race(count: int, attempt: Callable[[int], bool]) -> list[int]:
    """Who of `count` simultaneous callers was told that it won."""
    barrier = Barrier(count)

    def run(number: int) -> bool:
        barrier.wait()
        return attempt(number)

    with ThreadPoolExecutor(count) as pool:
        return [number for number, won in enumerate(pool.map(run, range(count))) if won]


def test_a_key_is_absent_until_it_is_written_and_then_holds_what_was_written(store: Store, tmp_path: Path) -> None:
    assert not store.exists("a/key")
    assert store.write_bytes_if_absent("a/key", b"\x00content")
    assert store.exists("a/key")
    assert not store.exists("a")
    assert store.read_bytes("a/key") == b"\x00content"
    store.fetch("a/key", tmp_path / "local")
    assert (tmp_path / "local").read_bytes() == b"\x00content"


def test_an_object_may_be_empty(store: Store, tmp_path: Path) -> None:
    assert store.write_bytes_if_absent("empty", b"")
    store.fetch("empty", tmp_path / "local")
    assert (store.read_bytes("empty"), (tmp_path / "local").read_bytes()) == (b"", b"")


def test_the_second_writer_of_a_key_is_told_so_and_changes_nothing(store: Store, big: Path, tmp_path: Path) -> None:
    (tmp_path / "small").write_bytes(b"second")
    assert store.write_bytes_if_absent("key", b"first")
    assert not store.write_bytes_if_absent("key", b"second")
    assert not store.put_file_if_absent(tmp_path / "small", "key")
    assert not store.put_file_if_absent(big, "key")
    assert store.read_bytes("key") == b"first"


@pytest.mark.parametrize("turn", range(3))
def test_of_sixteen_rivals_for_a_key_one_wins(turn: int, store: Store) -> None:
    winners = race(16, lambda number: store.write_bytes_if_absent("key", b"by %d" % number))
    assert len(winners) == 1
    assert store.read_bytes("key") == b"by %d" % winners[0]


def test_rivals_with_the_same_big_file_leave_it_whole(store: Store, big: Path, tmp_path: Path) -> None:
    assert race(3, lambda _: store.put_file_if_absent(big, "key"))
    store.fetch("key", tmp_path / "back")
    assert sha256_of(tmp_path / "back") == sha256_of(big)


@pytest.mark.parametrize("turn", range(2))
def test_of_rivals_that_commit_different_big_files_one_wins_and_its_record_is_whole(turn: int, store: Store) -> None:
    """Their files have the same name; a store that let one overwrite the other's would leave a damaged record."""

    def record(seed: int) -> PromptSet:
        numbers = torch.full((3, 1, PART_BYTES // 8), float(seed))  # 1.5 parts
        return PromptSet(prompts=PROMPTS, embeddings={"sequence": numbers, "pooled": torch.zeros(3, 6)})

    def attempt(seed: int) -> bool:
        try:
            return isinstance(put(store, record(seed), WHERE), Manifest)
        except ArtifactError:
            return False

    winners = race(3, attempt)
    assert len(winners) == 1
    assert_same(load(store, WHERE, PromptSet)[0], record(winners[0]))


def test_a_big_file_comes_back_with_the_same_hash(store: Store, big: Path, tmp_path: Path) -> None:
    assert store.put_file_if_absent(big, "a/big")
    store.fetch("a/big", tmp_path / "back")
    assert sha256_of(tmp_path / "back") == sha256_of(big)


@pytest.mark.parametrize(
    ("start", "length"),
    [(0, 8), (5, PART_BYTES + 7), (2 * PART_BYTES - 1, 2), (2 * PART_BYTES, 12345), (0, 0)],
)
def test_a_range_of_an_object_is_those_bytes(start: int, length: int, store: Store, big: Path) -> None:
    assert store.put_file_if_absent(big, "a/big")
    assert store.read_range("a/big", start, length) == big.read_bytes()[start : start + length]


def test_a_range_past_the_end_is_what_is_there(store: Store) -> None:
    store.write_bytes_if_absent("key", b"0123456789")
    assert store.read_range("key", 7, 100) == b"789"
    assert store.read_range("key", 10, 5) == b""
    assert store.read_range("key", 50, 5) == b""
    with pytest.raises(ArtifactError, match=r"`.*/none` does not exist"):
        store.read_range("none", 0, 5)


def test_a_range_whose_answer_breaks_off_is_read_again(
    s3_server: Server, s3_root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    content, cut = os.urandom(100_000), iter([True, True, True])
    open_store(s3_root).write_bytes_if_absent("key", content)

    def fault(request: Request) -> Fault | None:
        return "cut answer" if request.method == "GET" and next(cut, False) else None

    with proxy(s3_server, fault=fault) as front:
        monkeypatch.setenv("AWS_ENDPOINT_URL", front.endpoint)
        assert open_store(s3_root).read_range("key", 1000, 50_000) == content[1000:51_000]
    assert next(cut, None) is None


def test_a_server_that_sends_the_whole_object_for_a_range_is_refused() -> None:
    class Whole:
        def get_object(self, **_: str) -> dict[str, Any]:
            return {"ContentLength": 10, "Body": io.BytesIO(b"0123456789")}

    client: Any = Whole()
    with pytest.raises(ConfigError, match="bytes from 2 on were asked for but the server sent None"):
        read_range(client, "bucket", "key", 2, 3)


def test_rows_of_a_large_record_are_those_of_a_whole_read_and_a_damaged_block_is_refused(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 1000)
    noise = torch.Generator().manual_seed(0)
    sequence, pooled = torch.randn(50, 9, 7, generator=noise), torch.randn(50, 6, generator=noise)
    put(store, PromptSet(prompts=PROMPTS, embeddings={"sequence": sequence, "pooled": pooled}), WHERE)
    rows = [0, 49, 3, 3]
    found, manifest = load_rows(store, WHERE, PromptSet, "embeddings", rows)
    assert len(manifest.files["embeddings.safetensors"].blocks or ()) == 14
    assert torch.equal(found["sequence"], sequence[rows])
    assert torch.equal(found["pooled"], pooled[rows])
    key = f"{WHERE}/{manifest.files['embeddings.safetensors'].stored_as}"
    length = manifest.files["embeddings.safetensors"].size
    data = bytearray(store.read_range(key, 0, length))
    data[-1] ^= 1
    store.overwrite(key, bytes(data))
    with pytest.raises(CorruptArtifactError, match=r"block 13 of .* is expected"):
        load_rows(store, WHERE, PromptSet, "embeddings", rows)


def test_what_is_no_record_can_be_written_again(store: Store) -> None:
    for content in (b"one", b"two"):
        store.overwrite("result.json", content)
        assert store.read_bytes("result.json") == content
    assert store.list("") == ["result.json"]


def test_listing_and_deleting_know_folders_and_more_than_a_thousand_keys(store: Store) -> None:
    many = sorted(f"many/{number}/x" for number in range(1050))
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(lambda key: store.write_bytes_if_absent(key, b""), [*many, "many2/x", "a/many/x"]))
    assert store.list("many") == many
    assert store.list("") == sorted([*many, "many2/x", "a/many/x"])
    assert store.list("man") == store.list("nowhere") == []
    store.delete_prefix("many")
    store.delete_prefix("many")
    assert store.list("") == ["a/many/x", "many2/x"]


def test_a_store_lists_its_objects_with_size_and_age(store: Store) -> None:
    assert isinstance(store, Sweepable)
    for key, data in {"b/x": b"12345", "a": b""}.items():
        store.write_bytes_if_absent(key, data)
    found = store.objects()
    assert [(entry.key, entry.size, entry.upload) for entry in found] == [("a", 0, ""), ("b/x", 5, "")]
    assert all(-2 <= entry.age < 60 for entry in found)


def test_a_missing_key_is_named(store: Store, tmp_path: Path) -> None:
    store.write_bytes_if_absent("other", b"")
    with pytest.raises(ArtifactError, match=r"`.*/no/such` does not exist"):
        store.read_bytes("no/such")
    with pytest.raises(ArtifactError, match=r"`.*/no/such` does not exist"):
        store.fetch("no/such", tmp_path / "local")
    assert not (tmp_path / "local").exists()


@pytest.mark.parametrize("key", ["/etc/x", "../x", "a/../x", "a//x", "a/", "", ".", "./a"])
def test_a_key_cannot_leave_the_root(key: str, store: Store) -> None:
    with pytest.raises(ArtifactError, match="is not a key"):
        store.write_bytes_if_absent(key, b"")


@pytest.mark.parametrize("kind", EXAMPLES)
def test_every_kind_of_record_comes_back_as_it_was_committed(kind: str, store: Store) -> None:
    record = EXAMPLES[kind]()
    manifest = put(store, record)
    loaded, found = load(store, WHERE, RECORDS[kind])
    assert found == manifest
    assert_same(loaded, record)


def test_of_rivals_that_commit_different_records_one_wins_and_its_record_is_whole(store: Store) -> None:
    def attempt(seed: int) -> bool:
        try:
            return isinstance(put(store, rollout(20, seed), WHERE), Manifest)
        except ArtifactError:
            return False

    winners = race(4, attempt)
    assert len(winners) == 1
    assert_same(load(store, WHERE, Rollout)[0], rollout(20, winners[0]))


def test_files_without_a_manifest_are_no_record_and_a_later_commit_ignores_them(store: Store) -> None:
    store.write_bytes_if_absent(f"{WHERE}/part.parquet", b"half of it")
    assert read_manifest(store, WHERE) is None
    put(store, record := rollout(20))
    assert_same(load(store, WHERE, Rollout)[0], record)
    assert store.read_bytes(f"{WHERE}/part.parquet") == b"half of it"


# What only the S3 store has.


@pytest.fixture
def behind(s3_server: Server, s3_root: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Store]]:
    """Open the root through a misbehaving proxy."""
    with ExitStack() as stack:

        def open_behind(**rules: Callable[[Request], bool]) -> Store:
            front = stack.enter_context(proxy(s3_server, **rules))
            monkeypatch.setenv("AWS_ENDPOINT_URL", front.endpoint)
            return open_store(s3_root)

        yield open_behind


def left_behind(server: Server, store: Store) -> list[str]:
    """Objects of a root, hidden ones and unfinished uploads too."""
    prefix = store.root.removeprefix(f"s3://{BUCKET}/") + "/"
    objects = server.client().list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents", [])
    uploads = server.client().list_multipart_uploads(Bucket=BUCKET, Prefix=prefix).get("Uploads", [])
    return [item["Key"] for item in objects] + [item["Key"] for item in uploads]


def test_a_big_file_travels_in_parts_and_a_late_rival_leaves_no_part(
    s3_server: Server, s3_root: str, behind: Callable[..., Store], big: Path
) -> None:
    client, path = s3_server.client(), f"{s3_root}/late".removeprefix(f"s3://{BUCKET}/")

    def rival(request: Request) -> bool:
        if request.method == "POST" and "/late?uploadId=" in request.path:
            client.put_object(Bucket=BUCKET, Key=path, Body=b"of the rival")
        return False

    store = behind(failed=rival)
    assert store.put_file_if_absent(big, "big")
    assert client.head_object(Bucket=BUCKET, Key=path.replace("late", "big"))["ETag"].endswith('-3"')
    assert not store.put_file_if_absent(big, "late")
    assert store.read_bytes("late") == b"of the rival"
    assert left_behind(s3_server, store) == [path.replace("late", "big"), path]


def test_a_bucket_that_ignores_conditions_is_refused_before_anything_is_written(
    s3_server: Server, behind: Callable[..., Store]
) -> None:
    store = behind(unconditional=lambda request: request.conditional)
    for write in (store.require_writable, lambda: store.write_bytes_if_absent("key", b"")):
        with pytest.raises(ConfigError, match="ignores `If-None-Match: \\*`, so two writers") as caught:
            write()
        assert caught.value.hint
    assert left_behind(s3_server, store) == []


def test_the_probe_leaves_nothing_and_reading_needs_none(s3_server: Server, behind: Callable[..., Store]) -> None:
    seen: list[Request] = []

    def see(request: Request) -> bool:
        seen.append(request)
        return False

    store = behind(failed=see)
    store.exists("key")
    store.list("")
    assert {request.method for request in seen} <= {"HEAD", "GET"}
    store.require_writable()
    assert left_behind(s3_server, store) == []
    sent = len(seen)
    store.require_writable()
    assert len(seen) == sent


def test_a_write_whose_answer_was_lost_knows_that_it_won(behind: Callable[..., Store], big: Path) -> None:
    lose = {"small": 0, "complete": 0}

    def lost(request: Request) -> bool:
        name = "complete" if request.method == "POST" and "uploadId=" in request.path else "small"
        if request.conditional and lose[name]:
            lose[name] -= 1
            return True
        return False

    store = behind(lost=lost)
    store.require_writable()
    lose.update(small=1, complete=1)
    assert store.write_bytes_if_absent("key", b"ours")
    assert store.put_file_if_absent(big, "big")
    assert lose == {"small": 0, "complete": 0}
    assert not store.write_bytes_if_absent("key", b"ours")


def test_a_request_that_fails_for_a_moment_is_sent_again(behind: Callable[..., Store]) -> None:
    left = [2, 2]
    store = behind(failed=lambda _: bool(left and left.pop()))
    assert store.write_bytes_if_absent("key", b"content")
    assert left == []


PUT_AND_FETCH = """
import resource, sys
from pathlib import Path
from tdm_r1.artifacts.store import open_store
store, big = open_store(sys.argv[1]), Path(sys.argv[2])
store.write_bytes_if_absent("small", b"")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert store.put_file_if_absent(big, "big")
store.fetch("big", big.with_name("back"))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
def test_a_file_of_any_size_travels_in_bounded_memory(s3_root: str, tmp_path: Path) -> None:
    with (tmp_path / "big").open("wb") as file:
        file.truncate(24 * PART_BYTES)
    command = [sys.executable, "-c", PUT_AND_FETCH, s3_root, str(tmp_path / "big")]
    grown = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout) << 10
    assert grown < 12 * PART_BYTES
    assert sha256_of(tmp_path / "back") == sha256_of(tmp_path / "big")
