"""Bodies of S3 objects: whole or a range of one, and noticed when they break off."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any

from tdm_r1.artifacts.s3_client import status_of
from tdm_r1.errors import ConfigError

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client


def read_body(answer: Any, most: int) -> bytes:
    """What an answer to `GetObject` carries, at most so many bytes.

    Raises:
        RetriesExceededError: when it breaks off, as boto3's own transfers do.
    """
    from boto3.exceptions import Boto3Error, RetriesExceededError
    from botocore.exceptions import HTTPClientError, IncompleteReadError

    amount = most if answer["ContentLength"] > most else None  # a whole read notices a cut answer
    with closing(answer["Body"]) as body:  # its own `with` gives the stream below it, which checks less
        try:
            data: bytes = body.read(amount)
        except (HTTPClientError, IncompleteReadError) as error:
            raise RetriesExceededError(Boto3Error(str(error))) from error
    return data


def read_range(client: S3Client, bucket: str, path: str, start: int, length: int) -> bytes:
    """So many bytes of an object from `start` on; fewer when it ends before.

    Ranges of one file are not pinned to one version of it: the caller has a hash of each.

    Raises:
        RetriesExceededError: as `read_body`.
        ConfigError: from a server that does not know ranges: it would send the whole object for each.
    """
    from botocore.exceptions import ClientError

    if length <= 0:
        return b""
    try:
        answer = client.get_object(Bucket=bucket, Key=path, Range=f"bytes={start}-{start + length - 1}")
    except ClientError as error:
        if status_of(error.response) != 416:  # it ends before `start`
            raise
        return b""
    found = str(answer.get("ContentRange"))
    if not found.startswith(f"bytes {start}-"):
        answer["Body"].close()
        raise ConfigError(
            f"`{bucket}/{path}`: bytes from {start} on were asked for but the server sent {found:.80}",
            hint="use a server, and a proxy in between, that answers range requests",
        )
    return read_body(answer, length)
