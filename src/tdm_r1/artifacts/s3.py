"""Object storage as a store: every write of a record is conditional, every read and write is in parts.

What must have one winner (manifests, `run.json`, files up to `PART_BYTES`) is one `PutObject` with
`If-None-Match: *`. A larger file is uploaded in parts; until `CompleteMultipartUpload` no reader sees
anything of it. That request carries the condition too, but not every server evaluates it atomically
(SeaweedFS 4.48 let two of three simultaneous uploads win), so that `is_exclusive` says no, and `repository`
gives such a file a name with its hash. boto3's own transfer manager has no conditions for uploads.
"""

from __future__ import annotations

import random
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

from tdm_r1.artifacts.leftovers import TEMPORARY_SUFFIX, Entry, is_temporary
from tdm_r1.artifacts.s3_client import AGAIN, CONFLICTS, code_of, open_client, parse_root, s3_errors, status_of
from tdm_r1.artifacts.s3_read import read_body, read_range
from tdm_r1.artifacts.s3_upload import PARALLEL, put_parts, server_time, slices, unfinished_uploads
from tdm_r1.artifacts.store import MOST_BYTES, require_key, require_small, storage_errors
from tdm_r1.errors import ArtifactError, ConfigError, TemporaryStorageError

PART_BYTES: Final = 16 << 20
"""A larger file is uploaded in parts of this size, and a larger object fetched in ranges of it."""
DELETED_AT_ONCE: Final = 1000
"""S3's limit for one request."""
READ_ATTEMPTS: Final = 5
"""Of an object whose body breaks off."""
CONFLICT_ATTEMPTS: Final = 6
WRITER: Final = "tdm-r1-write"
"""Metadata: a token of the call that wrote the object, so that it knows its own write after a lost answer."""

Value = TypeVar("Value")


class S3Store:
    """A prefix of a bucket. An object appears whole or not at all, and is durable when the call returns."""

    def __init__(self, root: str) -> None:
        self._bucket, self._prefix = parse_root(root)
        self._root = f"s3://{self._bucket}/{self._prefix}".rstrip("/")
        self._client = open_client()
        self._lock = threading.Lock()
        self._writable = self._bucket_found = False

    @property
    def root(self) -> str:
        return self._root

    def exists(self, key: str) -> bool:
        with self._errors(key):
            return self._head(self._at(key)) is not None

    def read_bytes(self, key: str) -> bytes:
        """The whole object: for manifests and configurations."""

        def read() -> bytes:
            answer = self._client.get_object(Bucket=self._bucket, Key=self._at(key))
            return require_small(read_body(answer, MOST_BYTES + 1), f"{self._root}/{key}")

        return self._read(key, read)

    def _read(self, key: str, read: Callable[[], Value]) -> Value:
        """Call `read` again when a body broke off: botocore retries requests, not bodies."""
        from boto3.exceptions import RetriesExceededError

        with self._errors(key):
            for attempt in range(READ_ATTEMPTS - 1):
                try:
                    return read()
                except RetriesExceededError:
                    pause(attempt)
            return read()

    def require_writable(self) -> None:
        """Probe, once per opened store, that the bucket refuses a second write of one key.

        Raises:
            ConfigError: when it overwrites, or does not know the condition.
        """
        with self._lock:
            if self._writable:
                return
            path = self._at(f".probe.{uuid.uuid4().hex}{TEMPORARY_SUFFIX}")
            with self._errors(""):
                self._require_bucket()  # some servers make a missing one at the first write
                once = self._if_absent(path, lambda token: self._put(path, b"probe", token))
                try:
                    twice = self._if_absent(path, lambda token: self._put(path, b"probe", token))
                finally:
                    self._client.delete_object(Bucket=self._bucket, Key=path)
            if twice or not once:
                found = "ignores" if once else "refuses every"
                raise ConfigError(
                    f"bucket `{self._bucket}` {found} `If-None-Match: *`, so two writers of one record could both win",
                    hint="use a server with conditional writes, such as AWS S3 or SeaweedFS; "
                    "docs/operations/storage.md has a list. A proxy in between may drop the header",
                )
            self._writable = True

    def write_bytes_if_absent(self, key: str, data: bytes) -> bool:
        path = self._at(key)
        self.require_writable()
        with self._errors(key):
            return self._if_absent(path, lambda token: self._put(path, data, token))

    def put_file_if_absent(self, local: Path, key: str) -> bool:
        """Store the content of `local`, which is read in parts and must not change meanwhile."""
        path, size = self._at(key), local.stat().st_size
        self.require_writable()
        with self._errors(key):
            if self.is_exclusive(size):
                return self._if_absent(path, lambda token: self._put(path, local.read_bytes(), token))
            if self._head(path) is not None:
                return False  # saves the upload
            parts, client, bucket = slices(local, size, PART_BYTES), self._client, self._bucket
            return self._if_absent(path, lambda token: put_parts(client, bucket, path, parts, {WRITER: token}))

    def is_exclusive(self, size: int) -> bool:
        return size <= PART_BYTES

    def age(self, key: str) -> float | None:
        with self._errors(key):
            found = self._head(self._at(key))
        return (server_time(found) - found["LastModified"]).total_seconds() if found else None

    def overwrite(self, key: str, data: bytes) -> None:
        with self._errors(key):
            self._client.put_object(Bucket=self._bucket, Key=self._at(key), Body=data)

    def fetch(self, key: str, local: Path) -> None:
        from boto3.s3.transfer import TransferConfig

        config = TransferConfig(
            multipart_threshold=PART_BYTES, multipart_chunksize=PART_BYTES, max_concurrency=PARALLEL
        )
        with storage_errors(str(local)):
            self._read(key, lambda: self._client.download_file(self._bucket, self._at(key), str(local), Config=config))

    def read_range(self, key: str, start: int, length: int) -> bytes:
        return self._read(key, lambda: read_range(self._client, self._bucket, self._at(key), start, length))

    def delete(self, key: str) -> None:
        path = self._at(key)
        with self._errors(key):
            self._client.delete_object(Bucket=self._bucket, Key=path)

    def delete_prefix(self, prefix: str) -> None:
        """Delete manifests first: a record whose deletion was cut short does not exist for any reader."""
        folder = f"{self._at(prefix)}/"
        with self._errors(prefix):
            paths = sorted(self._paths(folder), key=lambda path: (not path.endswith("/manifest.json"), path))
            manifests = sum(path.endswith("/manifest.json") for path in paths)
            for group in (paths[:manifests], paths[manifests:]):
                for start in range(0, len(group), DELETED_AT_ONCE):
                    self._delete(group[start : start + DELETED_AT_ONCE])

    def entries(self) -> list[Entry]:
        folder = self._prefix and f"{self._prefix}/"
        with self._errors(""):
            uploads = unfinished_uploads(self._client, self._bucket, folder)
            return sorted([*self._entries(folder), *uploads])

    def objects(self) -> list[Entry]:
        with self._errors(""):
            return sorted(self._entries(self._prefix and f"{self._prefix}/"))

    def discard(self, entry: Entry) -> None:
        from botocore.exceptions import ClientError

        if not entry.upload:
            self.delete(entry.key)
            return
        with self._errors(entry.key):
            where: Any = {"Bucket": self._bucket, "Key": self._at(entry.key), "UploadId": entry.upload}
            try:
                self._client.abort_multipart_upload(**where)
            except ClientError as error:
                if code_of(error) != "NoSuchUpload":
                    raise

    def list(self, prefix: str) -> list[str]:
        folder = f"{self._at(prefix)}/" if prefix else self._prefix and f"{self._prefix}/"
        cut = len(self._prefix) + 1 if self._prefix else 0
        with self._errors(prefix):
            keys = [path[cut:] for path in self._paths(folder)]
        return sorted(key for key in keys if not any(is_temporary(part) for part in key.split("/")))

    def _at(self, key: str) -> str:
        return f"{self._prefix}/{require_key(key)}" if self._prefix else require_key(key)

    def _paths(self, folder: str) -> Iterator[str]:
        return (folder + entry.key for entry in self._entries(folder))

    def _entries(self, folder: str) -> Iterator[Entry]:
        for page in self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=folder):
            now = server_time(page)
            for item in page.get("Contents", []):
                age = (now - item["LastModified"]).total_seconds()
                yield Entry(item["Key"].removeprefix(folder), item["Size"], age)

    def _delete(self, paths: Sequence[str]) -> None:
        doomed: Any = {"Objects": [{"Key": path} for path in paths], "Quiet": True}
        failed = self._client.delete_objects(Bucket=self._bucket, Delete=doomed).get("Errors", [])
        if failed:
            raise TemporaryStorageError(
                f"{len(failed)} of {len(paths)} objects under `{self._root}` were not deleted, "
                f"the first with {failed[0].get('Code')}",
                hint="check that the role may delete, and delete again",
            )

    def _head(self, path: str) -> Any:
        """What the server says of an object, None when there is none."""
        from botocore.exceptions import ClientError

        try:
            return self._client.head_object(Bucket=self._bucket, Key=path)
        except ClientError as error:
            if status_of(error.response) != 404:
                raise
        if not self._bucket_found:  # a HEAD does not say which of the two is missing
            self._require_bucket()
        return None

    def _require_bucket(self) -> None:
        from botocore.exceptions import ClientError

        try:
            self._client.head_bucket(Bucket=self._bucket)
        except ClientError as error:
            if status_of(error.response) == 404:
                raise ConfigError(
                    f"`{self._root}`: there is no bucket `{self._bucket}`", hint="create the bucket, or correct --root"
                ) from error
            raise
        self._bucket_found = True

    @contextmanager
    def _errors(self, key: str) -> Iterator[None]:
        from botocore.exceptions import ClientError

        target = f"{self._root}/{key}".rstrip("/")
        with s3_errors(target, self._client.meta.endpoint_url):
            try:
                yield
            except ClientError as error:
                if code_of(error) not in ("NoSuchKey", "404"):
                    raise
                self._require_bucket()
                raise ArtifactError(f"`{target}` does not exist") from error

    def _if_absent(self, path: str, write: Callable[[str], None]) -> bool:
        """Call `write` with a token; True when the object at `path` is the one that it wrote.

        A request whose answer was lost is sent again by botocore, and then meets its own object: the token
        in the metadata tells it from a rival's.
        """
        from botocore.exceptions import ClientError

        token = uuid.uuid4().hex
        for attempt in range(CONFLICT_ATTEMPTS):
            try:
                write(token)
            except ClientError as error:
                if code_of(error) in CONFLICTS:  # a rival's write of the same key is under way
                    pause(attempt)
                    continue
                if status_of(error.response) == 412 or code_of(error) == "NoSuchUpload":
                    found = self._head(path)
                    if found is not None:
                        return bool(found["Metadata"].get(WRITER) == token)
                raise
            return True
        raise TemporaryStorageError(f"`{path}` in bucket `{self._bucket}` is being written by others", hint=AGAIN)

    def _put(self, path: str, data: bytes, token: str) -> None:
        self._client.put_object(Bucket=self._bucket, Key=path, Body=data, IfNoneMatch="*", Metadata={WRITER: token})


def pause(attempt: int) -> None:
    """Wait a random part of 0.1, 0.2, 0.4, … seconds."""
    time.sleep(random.uniform(0, 0.1 * 2**attempt))
