"""Claims about storage: rivals, full disks and keys."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
import torch

from tdm_r1.artifacts.leftovers import Sweepable
from tdm_r1.artifacts.manifest import Manifest
from tdm_r1.artifacts.records import (
    RECORDS,
    PromptSet,
    Rollout,
)
from tdm_r1.artifacts.repository import load, read_manifest, require_manifest
from tdm_r1.artifacts.store import LocalStore, Store, open_store
from tdm_r1.errors import (
    ArtifactError,
    ConfigError,
    StorageFullError,
    TemporaryStorageError,
)
from tests.unit.artifact_examples import (
    EXAMPLES,
    WHERE,
    assert_same,
    path_of,
    prompt_set,
    put,
    rollout,
)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "run"))


@pytest.fixture
def tiny_disk(store: Store) -> Iterator[Callable[[int], None]]:
    """Let no file grow beyond the given number of bytes, as a quota does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda limit: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def race(store: Store, where: str, seeds: list[int]) -> list[Manifest | ArtifactError]:
    barrier = Barrier(len(seeds))

    def attempt(seed: int) -> Manifest | ArtifactError:
        record = rollout(20, seed)
        barrier.wait()
        try:
            return put(store, record, where)
        except ArtifactError as error:
            return error

    with ThreadPoolExecutor(len(seeds)) as pool:
        return list(pool.map(attempt, seeds))


@pytest.mark.parametrize("turn", range(10))
def test_of_rivals_with_different_content_one_wins_and_its_record_is_whole(turn: int, store: Store) -> None:
    outcomes = race(store, WHERE, [0, 1, 2, 3])
    winners = [seed for seed, outcome in enumerate(outcomes) if isinstance(outcome, Manifest)]
    assert len(winners) == 1
    loaded, manifest = load(store, WHERE, Rollout)
    assert_same(loaded, rollout(20, winners[0]))
    assert manifest == outcomes[winners[0]]


def test_rivals_with_equal_content_all_succeed(store: Store) -> None:
    assert race(store, WHERE, [5, 5, 5, 5]) == [require_manifest(store, WHERE)] * 4


@pytest.mark.parametrize("kind", ["rollout", "surrogate_update"])
@pytest.mark.parametrize("limit", [0, 100])
def test_a_full_disk_commits_nothing(kind: str, limit: int, store: Store, tiny_disk: Callable[[int], None]) -> None:
    record = EXAMPLES[kind]()
    tiny_disk(limit)
    with pytest.raises(StorageFullError, match="nothing was committed"):
        put(store, record)
    tiny_disk(resource.RLIM_INFINITY)
    assert read_manifest(store, WHERE) is None
    assert store.list("") == []
    put(store, record)
    assert_same(record, load(store, WHERE, RECORDS[kind])[0])


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of 64 KiB; only root may."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("this user may not mount a tmpfs")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_fills_between_two_files_commits_nothing(small_disk: Path) -> None:
    store = open_store(str(small_disk))
    big = {"sequence": torch.zeros(3, 5, 4000), "pooled": torch.zeros(3, 6)}  # 240 kB; the prompt table is 4 kB
    with pytest.raises(StorageFullError, match="nothing was committed"):
        put(store, PromptSet(prompts=prompt_set().prompts, embeddings=big))
    assert store.list("") == [f"{WHERE}/prompts.parquet"]
    assert read_manifest(store, WHERE) is None
    put(store, small := prompt_set())
    assert_same(load(store, WHERE, PromptSet)[0], small)


def test_a_full_store_leaves_no_unfinished_file(store: Store, tiny_disk: Callable[[int], None]) -> None:
    tiny_disk(10)
    with pytest.raises(StorageFullError):
        store.write_bytes_if_absent("a/b", b"x" * 11)
    tiny_disk(resource.RLIM_INFINITY)
    assert list(Path(store.root, "a").iterdir()) == []


def test_the_second_writer_of_a_key_is_told_so_and_changes_nothing(store: Store, tmp_path: Path) -> None:
    (tmp_path / "local").write_bytes(b"second")
    assert store.write_bytes_if_absent("a/key", b"first")
    assert not store.write_bytes_if_absent("a/key", b"second")
    assert not store.put_file_if_absent(tmp_path / "local", "a/key")
    assert store.read_bytes("a/key") == b"first"


class Unreadable(LocalStore):
    """A store whose objects cannot be read just now."""

    def fetch(self, key: str, local: Path) -> None:
        raise TemporaryStorageError(f"503 for {key}, wanted at {local}")


def test_a_store_that_fails_while_bytes_are_compared_says_so_and_gets_no_second_copy(store: Store) -> None:
    put(store, rollout(20))
    store.delete(f"{WHERE}/manifest.json")
    with pytest.raises(TemporaryStorageError):
        put(Unreadable(store.root), rollout(20))
    assert store.list("") == [f"{WHERE}/part.parquet"]


def test_every_folder_that_a_write_makes_is_flushed_with_the_one_that_holds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A record whose folder a power cut takes away is lost, however well its files were flushed."""
    flushed: set[str] = set()
    really = os.fsync

    def fsync(descriptor: int) -> None:
        flushed.add(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        really(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    assert open_store(str(tmp_path / "new" / "run")).write_bytes_if_absent("a/b/key", b"")
    folders = [tmp_path, tmp_path / "new", tmp_path / "new/run", tmp_path / "new/run/a", tmp_path / "new/run/a/b"]
    assert {str(folder) for folder in folders} <= flushed


def test_a_listing_goes_on_while_folders_vanish(store: Store) -> None:
    def come_and_go(_: int) -> None:
        for number in range(30):
            store.write_bytes_if_absent(f"a/{number}/b/c", b"")
            store.delete_prefix(f"a/{number}")

    store.write_bytes_if_absent("stays", b"")
    with ThreadPoolExecutor(1) as pool:
        work = pool.submit(come_and_go, 0)
        while not work.done():
            assert "stays" in store.list("")
        work.result()
    assert store.list("") == ["stays"]


def test_an_age_counts_from_the_write_and_is_none_where_nothing_is(store: Store) -> None:
    store.write_bytes_if_absent("a/b", b"12")
    then = time.time() - 100
    os.utime(path_of(store, "a/b"), (then, then))
    assert store.age("a/b") == pytest.approx(100, abs=30)
    assert store.age("a/c") is store.age("a/b/c") is None
    assert isinstance(store, Sweepable)
    (entry,) = store.entries()
    assert (entry.key, entry.size, round(entry.age, -2)) == ("a/b", 2, 100)


def test_a_store_lists_and_deletes_by_folder(store: Store) -> None:
    for key in ("b/x", "a/y", "a/b/z", "ab/x"):
        store.write_bytes_if_absent(key, b"")
    assert store.list("a") == ["a/b/z", "a/y"]
    assert store.list("nowhere") == []
    store.delete_prefix("a")
    store.delete_prefix("a")
    assert store.list("") == ["ab/x", "b/x"]


def test_a_store_deletes_one_object_and_none_there_is_fine(store: Store) -> None:
    for key in ("a/x", "a/xy", "b"):
        store.write_bytes_if_absent(key, b"")
    store.delete("a/x")
    store.delete("a/x")
    store.delete("nowhere/x")
    assert store.list("") == ["a/xy", "b"]
    assert store.write_bytes_if_absent("a/x", b"again")


@pytest.mark.parametrize("key", ["../x", "/etc/x", ""])
def test_a_delete_cannot_leave_the_root(key: str, store: Store) -> None:
    with pytest.raises(ArtifactError, match="is not a key"):
        store.delete(key)


@pytest.mark.parametrize("key", ["/etc/x", "../x", "a/../x", "a//x", "a/", "", ".", "./a"])
def test_a_key_cannot_leave_the_root(key: str, store: Store) -> None:
    with pytest.raises(ArtifactError, match="is not a key"):
        store.write_bytes_if_absent(key, b"")


@pytest.mark.parametrize(
    "root", ["s3://", "s3://Bucket/runs/a", "s3://bucket/a//b", "s3://bucket/../b", "ftp://host/a", ""]
)
def test_a_root_that_is_no_path_is_refused_with_a_hint(root: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_store(root)
    assert caught.value.hint
