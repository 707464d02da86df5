"""Uploads in parts: how a file too big for one `PutObject` travels, and what such uploads leave behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tdm_r1.artifacts.leftovers import Entry

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef

MOST_PARTS: Final = 10_000
"""S3's limit for one upload."""
PARALLEL: Final = 4
"""Parts in flight: `PARALLEL` parts are what an upload holds in memory."""


def slices(local: Path, size: int, part: int) -> list[Callable[[], bytes]]:
    """Readers of consecutive parts of a file, of `part` bytes or as many more as S3's limit asks for."""
    step = max(part, -(-size // MOST_PARTS))

    def read(start: int) -> bytes:
        with local.open("rb") as file:
            file.seek(start)
            return file.read(step)

    return [lambda start=start: read(start) for start in range(0, size, step)]  # type: ignore[misc]


def put_parts(
    client: S3Client, bucket: str, path: str, parts: Sequence[Callable[[], bytes]], metadata: Mapping[str, str]
) -> None:
    """Upload an object in parts, each read when its turn comes; on a failure nothing of it stays."""
    from botocore.exceptions import BotoCoreError, ClientError

    where: Any = {"Bucket": bucket, "Key": path}
    where["UploadId"] = client.create_multipart_upload(**where, Metadata=metadata)["UploadId"]

    def send(number: int) -> CompletedPartTypeDef:
        answer = client.upload_part(**where, PartNumber=number, Body=parts[number - 1]())
        part: CompletedPartTypeDef = {"PartNumber": number, "ETag": answer["ETag"]}
        if "ChecksumCRC32" in answer:  # what boto3 sends by default, and AWS then wants back
            part["ChecksumCRC32"] = answer["ChecksumCRC32"]
        return part

    try:
        with ThreadPoolExecutor(PARALLEL) as pool:
            sent = list(pool.map(send, range(1, len(parts) + 1)))
        client.complete_multipart_upload(**where, MultipartUpload={"Parts": sent}, IfNoneMatch="*")
    except BaseException:
        with suppress(BotoCoreError, ClientError):  # `tdm-r1 sweep` takes what is left after a lost connection
            client.abort_multipart_upload(**where)
        raise


def server_time(answer: Any) -> datetime:
    """When a server sent an answer, by its clock; by ours if it does not say."""
    date = answer["ResponseMetadata"].get("HTTPHeaders", {}).get("date")
    return parsedate_to_datetime(date) if date else datetime.now(UTC)


def unfinished_uploads(client: S3Client, bucket: str, folder: str) -> Iterator[Entry]:
    """Uploads under `folder` that were neither completed nor aborted, with the bytes that they hold."""
    from botocore.exceptions import ClientError

    for page in client.get_paginator("list_multipart_uploads").paginate(Bucket=bucket, Prefix=folder):
        now = server_time(page)
        for upload in page.get("Uploads", []):
            size, path, name = 0, upload["Key"], upload["UploadId"]
            with suppress(ClientError):  # it ended meanwhile, or the server cannot tell
                parts = client.get_paginator("list_parts").paginate(Bucket=bucket, Key=path, UploadId=name)
                size = sum(part["Size"] for group in parts for part in group.get("Parts", []))
            yield Entry(path.removeprefix(folder), size, (now - upload["Initiated"]).total_seconds(), name)
