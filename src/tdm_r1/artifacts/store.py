"""Where bytes lie: a small interface, and a local directory behind it; `s3.py` is the other one.

A key is a relative POSIX path such as `iter-00042/rollout/shard-0003/part.parquet`. What belongs to a
record is never changed once it is there: both ways to write it refuse a key that exists. `overwrite`
is for pages that are made from records, and can be made again.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Protocol

from tdm_r1.artifacts.leftovers import TEMPORARY_SUFFIX, Entry, is_temporary
from tdm_r1.errors import ArtifactError, ConfigError, StorageFullError, TdmR1Error

FULL_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
MOST_BYTES = 64 << 20
"""That `read_bytes` takes into memory: a manifest of 10,000 parents has 2 MB."""


class Store(Protocol):
    """Objects by key."""

    @property
    def root(self) -> str:
        """The address that opens this store."""

    def exists(self, key: str) -> bool: ...

    def read_bytes(self, key: str) -> bytes:
        """The whole of a small object; one of more than `MOST_BYTES` is refused unread."""

    def require_writable(self) -> None:
        """Refuse a store in which two writers of one key could both win; called before work begins."""

    def write_bytes_if_absent(self, key: str, data: bytes) -> bool:
        """Store `data` unless the key exists; True when this call stored it. At most one writer wins."""

    def put_file_if_absent(self, local: Path, key: str) -> bool:
        """Store the content of `local` unless the key exists; True when this call stored it.

        At most one of simultaneous writers wins if the size `is_exclusive`; else their content must be equal.
        """

    def is_exclusive(self, size: int) -> bool:
        """Whether files of so many bytes are put so that at most one of simultaneous writers wins."""

    def age(self, key: str) -> float | None:
        """Seconds since the object was written, by the store's own clock; None when there is none."""

    def overwrite(self, key: str, data: bytes) -> None:
        """Store `data` whether or not the key exists: for `result.json` and pages, never for a record."""

    def fetch(self, key: str, local: Path) -> None:
        """Make the object readable at the path `local`, which must not exist. Do not write to it.

        An object never passes through memory whole: a local file is linked, an S3 object is copied part
        by part into a file of its own size. Records are then read from there, tables by row group.
        """

    def read_range(self, key: str, start: int, length: int) -> bytes:
        """So many bytes of an object from `start` on; fewer when it ends before. The caller verifies them."""

    def delete(self, key: str) -> None:
        """Delete one object; none there is fine."""

    def delete_prefix(self, prefix: str) -> None:
        """Delete every object under the folder `prefix`; none there is fine."""

    def list(self, prefix: str) -> list[str]:
        """Return the sorted keys under the folder `prefix`; an empty prefix lists all."""


def open_store(root: str) -> Store:
    """Open the store at `root`: `s3://bucket/prefix`, or a path, absolute or relative to the working directory."""
    if "{{" in root:
        raise ConfigError(
            f"root {root!r:.200} holds a placeholder that no orchestrator filled in",
            hint="pass the root as a parameter of the pipeline",
        )
    scheme, separator, _ = root.partition("://")
    if separator and scheme == "s3":
        from tdm_r1.artifacts.s3 import S3Store

        return S3Store(root)
    if separator:
        raise ConfigError(
            f"a root of scheme `{scheme}` cannot be opened: `s3://bucket/prefix` or a path is expected",
            hint="give an s3:// address or the path of a local directory",
        )
    if not root:
        raise ConfigError("root is empty", hint="give the path of a local directory, such as `runs/a`")
    if Path(root).exists() and not Path(root).is_dir():
        raise ConfigError(f"root `{root}` is a file", hint="give the path of a directory, there or not yet")
    return LocalStore(root)


def require_small(data: bytes, target: str) -> bytes:
    """Return `data`, or refuse more than `read_bytes` may take into memory."""
    if len(data) > MOST_BYTES:
        raise ArtifactError(
            f"`{target}` has more than {MOST_BYTES:,} bytes, which no manifest or configuration needs",
            hint="somebody else wrote it: restore it from a copy",
        )
    return data


def require_key(key: str) -> str:
    """Return `key`, or refuse what could leave the root."""
    if key != PurePosixPath(key).as_posix() or key.startswith(("/", "\\")) or ".." in key.split("/") or key == ".":
        raise ArtifactError(f"`{key}` is not a key: a relative POSIX path without `..` is expected")
    return key


class LocalStore:
    """A directory. An object appears whole or not at all, and is on disk when the call returns."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._path = Path(root).absolute()

    @property
    def root(self) -> str:
        return self._root

    def exists(self, key: str) -> bool:
        return self._at(key).is_file()

    def read_bytes(self, key: str) -> bytes:
        with self._found(key) as path, path.open("rb") as file:
            return require_small(file.read(MOST_BYTES + 1), f"{self._root}/{key}")

    def require_writable(self) -> None:
        """A file system's link refuses a name that exists: nothing to probe."""

    def write_bytes_if_absent(self, key: str, data: bytes) -> bool:
        with self._fresh(key) as temporary:
            temporary.write_bytes(data)
            return link_durably(temporary, self._at(key))

    def put_file_if_absent(self, local: Path, key: str) -> bool:
        if self.exists(key):
            return False
        with self._fresh(key) as temporary:
            shutil.copyfile(local, temporary)
            return link_durably(temporary, self._at(key))

    def is_exclusive(self, size: int) -> bool:
        del size  # a link is exclusive whatever it names
        return True

    def age(self, key: str) -> float | None:
        with suppress(FileNotFoundError, NotADirectoryError):
            return time.time() - self._at(key).stat().st_mtime
        return None

    def overwrite(self, key: str, data: bytes) -> None:
        with self._fresh(key) as temporary:
            temporary.write_bytes(data)
            _fsync(temporary)
            temporary.replace(self._at(key))
            _fsync(self._at(key).parent)

    def fetch(self, key: str, local: Path) -> None:
        with self._found(key) as path:
            local.symlink_to(path)

    def read_range(self, key: str, start: int, length: int) -> bytes:
        with self._found(key) as path, path.open("rb") as file:
            file.seek(start)
            return file.read(length)

    def delete(self, key: str) -> None:
        path = self._at(key)
        with suppress(FileNotFoundError):
            path.unlink()
            _fsync(path.parent)

    def delete_prefix(self, prefix: str) -> None:
        folder = self._at(prefix)
        doomed = temporary_beside(folder)
        with suppress(FileNotFoundError):
            folder.rename(doomed)  # all of it vanishes at once: no reader sees a half-deleted record
            shutil.rmtree(doomed)

    def entries(self) -> list[Entry]:
        return self.objects()

    def objects(self) -> list[Entry]:
        found = []
        for path in self._files(self._path):
            with suppress(FileNotFoundError):  # its writer ended meanwhile
                status = path.stat()
                key = path.relative_to(self._path).as_posix()
                found.append(Entry(key, status.st_size, time.time() - status.st_mtime))
        return sorted(found)

    def discard(self, entry: Entry) -> None:
        self.delete(entry.key)
        for folder in self._at(entry.key).relative_to(self._path).parents:
            if is_temporary(folder.name):  # of a delete that was cut short
                with suppress(OSError):
                    (self._path / folder).rmdir()

    def list(self, prefix: str) -> list[str]:
        files = self._files(self._at(prefix) if prefix else self._path)
        keys = (path.relative_to(self._path) for path in files)
        return sorted(key.as_posix() for key in keys if not any(is_temporary(part) for part in key.parts))

    def _files(self, folder: Path) -> Iterator[Path]:
        """Files at any depth; a folder that vanishes meanwhile has none."""
        for parent, _, names in os.walk(folder):
            yield from (path for name in names if (path := Path(parent, name)).is_file())

    def _at(self, key: str) -> Path:
        return self._path / require_key(key)

    @contextmanager
    def _found(self, key: str) -> Iterator[Path]:
        path = self._at(key)
        if not path.is_file():
            raise ArtifactError(f"`{self._root}/{key}` does not exist")
        yield path

    @contextmanager
    def _fresh(self, key: str) -> Iterator[Path]:
        """Yield a new temporary path in the directory of `key`; it is gone afterwards."""
        target = self._at(key)
        temporary = temporary_beside(target)
        with storage_errors(f"{self._root}/{key}"):
            make_folder_durably(target.parent)
            try:
                yield temporary
            finally:
                temporary.unlink(missing_ok=True)


def temporary_beside(path: Path) -> Path:
    """Return a fresh name in the directory of `path` that `is_temporary`."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}{TEMPORARY_SUFFIX}")


def make_folder_durably(folder: Path) -> None:
    """Make a folder and its missing parents, each on disk when the call returns; one that is there is fine."""
    if not folder.is_dir():
        make_folder_durably(folder.parent)
        folder.mkdir(exist_ok=True)
        _fsync(folder.parent)


def link_durably(temporary: Path, target: Path) -> bool:
    """Give the file `temporary` the name `target` and flush both to disk; False when `target` exists."""
    _fsync(temporary)
    try:
        os.link(temporary, target)
    except FileExistsError:
        return False
    _fsync(target.parent)
    return True


@contextmanager
def storage_errors(target: str) -> Iterator[None]:
    """Turn a full disk, however a library reports it, into StorageFullError."""
    try:
        yield
    except Exception as error:
        if isinstance(error, TdmR1Error) or full_errno(error) is None:
            raise
        raise StorageFullError(
            f"no space is left to write `{target}`: {error}",
            hint="free some space or raise the quota, then run the same command again: nothing was committed",
        ) from error


def full_errno(error: Exception) -> int | None:
    """Return the errno of `error` when it says that the disk, quota or file size is exhausted."""
    number = error.errno if isinstance(error, OSError) else None
    if number is None and (found := re.search(r"\(os error (\d+)\)", str(error))):  # how safetensors reports it
        number = int(found[1])
    return number if number in FULL_ERRNOS else None


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
