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
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tdm_r1.artifacts.s3_client import AGAIN, CONFLICTS, code_of, open_client, parse_root, s3_errors, status_of
from tdm_r1.artifacts.store import (
    MOST_BYTES,
    TEMPORARY_SUFFIX,
    is_temporary,
    require_key,
    require_small,
    storage_errors,
)
from tdm_r1.errors import ArtifactError, ConfigError, TemporaryStorageError

if TYPE_CHECKING:
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef

PART_BYTES: Final = 16 << 20
"""A larger file is uploaded in parts of this size, and a larger object fetched in ranges of it."""
MOST_PARTS: Final = 10_000
"""S3's limit for one upload."""
PARALLEL: Final = 4
"""Parts in flight: `PARALLEL` · `PART_BYTES` is what an upload holds in memory."""
DELETED_AT_ONCE: Final = 1000
"""S3's limit for one request."""
READ_ATTEMPTS: Final = 5
"""Of a small object whose body breaks off."""
CONFLICT_ATTEMPTS: Final = 6
WRITER: Final = "tdm-r1-write"
"""Metadata: a token of the call that wrote the object, so that it knows its own write after a lost answer."""


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
        from botocore.exceptions import HTTPClientError, IncompleteReadError

        with self._errors(key):
            for attempt in range(READ_ATTEMPTS):
                try:
                    with self._client.get_object(Bucket=self._bucket, Key=self._at(key))["Body"] as body:
                        return require_small(body.read(MOST_BYTES + 1), f"{self._root}/{key}")
                except (HTTPClientError, IncompleteReadError):  # botocore retries requests, not bodies
                    if attempt + 1 == READ_ATTEMPTS:
                        raise
                    pause(attempt)
        raise AssertionError("unreachable")

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
            return self._if_absent(path, lambda token: self._put_parts(path, slices(local, size), token))

    def is_exclusive(self, size: int) -> bool:
        return size <= PART_BYTES

    def overwrite(self, key: str, data: bytes) -> None:
        with self._errors(key):
            self._client.put_object(Bucket=self._bucket, Key=self._at(key), Body=data)

    def fetch(self, key: str, local: Path) -> None:
        from boto3.s3.transfer import TransferConfig

        config = TransferConfig(
            multipart_threshold=PART_BYTES, multipart_chunksize=PART_BYTES, max_concurrency=PARALLEL
        )
        with self._errors(key), storage_errors(str(local)):
            self._client.download_file(self._bucket, self._at(key), str(local), Config=config)

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

    def list(self, prefix: str) -> list[str]:
        folder = f"{self._at(prefix)}/" if prefix else self._prefix and f"{self._prefix}/"
        cut = len(self._prefix) + 1 if self._prefix else 0
        with self._errors(prefix):
            keys = [path[cut:] for path in self._paths(folder)]
        return sorted(key for key in keys if not any(is_temporary(part) for part in key.split("/")))

    def _at(self, key: str) -> str:
        return f"{self._prefix}/{require_key(key)}" if self._prefix else require_key(key)

    def _paths(self, folder: str) -> Iterator[str]:
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=folder)
        return (item["Key"] for page in pages for item in page.get("Contents", []))

    def _delete(self, paths: Sequence[str]) -> None:
        doomed: Any = {"Objects": [{"Key": path} for path in paths], "Quiet": True}
        failed = self._client.delete_objects(Bucket=self._bucket, Delete=doomed).get("Errors", [])
        if failed:
            raise TemporaryStorageError(
                f"{len(failed)} of {len(paths)} objects under `{self._root}` were not deleted, "
                f"the first with {failed[0].get('Code')}",
                hint="check that the role may delete, and delete again",
            )

    def _head(self, path: str) -> dict[str, str] | None:
        """The metadata of an object, None when there is none."""
        from botocore.exceptions import ClientError

        try:
            return self._client.head_object(Bucket=self._bucket, Key=path)["Metadata"]
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
                        return found.get(WRITER) == token
                raise
            return True
        raise TemporaryStorageError(f"`{path}` in bucket `{self._bucket}` is being written by others", hint=AGAIN)

    def _put(self, path: str, data: bytes, token: str) -> None:
        self._client.put_object(Bucket=self._bucket, Key=path, Body=data, IfNoneMatch="*", Metadata={WRITER: token})

    def _put_parts(self, path: str, parts: Sequence[Callable[[], bytes]], token: str) -> None:
        """Upload an object in parts, each read when its turn comes; on a failure nothing of it stays."""
        from botocore.exceptions import BotoCoreError, ClientError

        where: Any = {"Bucket": self._bucket, "Key": path}
        where["UploadId"] = self._client.create_multipart_upload(**where, Metadata={WRITER: token})["UploadId"]

        def send(number: int) -> CompletedPartTypeDef:
            answer = self._client.upload_part(**where, PartNumber=number, Body=parts[number - 1]())
            part: CompletedPartTypeDef = {"PartNumber": number, "ETag": answer["ETag"]}
            if "ChecksumCRC32" in answer:  # what boto3 sends by default, and AWS then wants back
                part["ChecksumCRC32"] = answer["ChecksumCRC32"]
            return part

        try:
            with ThreadPoolExecutor(PARALLEL) as pool:
                sent = list(pool.map(send, range(1, len(parts) + 1)))
            self._client.complete_multipart_upload(**where, MultipartUpload={"Parts": sent}, IfNoneMatch="*")
        except BaseException:
            with suppress(BotoCoreError, ClientError):  # a lifecycle rule takes what is left after a lost connection
                self._client.abort_multipart_upload(**where)
            raise


def slices(local: Path, size: int) -> list[Callable[[], bytes]]:
    """Readers of consecutive parts of a file, as many as S3 takes at most."""
    step = max(PART_BYTES, -(-size // MOST_PARTS))

    def read(start: int) -> bytes:
        with local.open("rb") as file:
            file.seek(start)
            return file.read(step)

    return [lambda start=start: read(start) for start in range(0, size, step)]  # type: ignore[misc]


def pause(attempt: int) -> None:
    """Wait a random part of 0.1, 0.2, 0.4, … seconds."""
    time.sleep(random.uniform(0, 0.1 * 2**attempt))
