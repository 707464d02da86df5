"""A client of S3 from the standard AWS environment, and its failures as errors of this project.

Nothing here ever shows a key, a secret or a server's own words: only the operation, the code and the host.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Literal, cast
from urllib.parse import urlsplit

from tdm_r1.artifacts.store import require_key
from tdm_r1.errors import ArtifactError, ConfigError, StorageFullError, TdmR1Error, TemporaryStorageError

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

CONNECT_SECONDS: Final = 5
READ_SECONDS: Final = 60
"""Without a byte from the server; not for a whole object."""
ATTEMPTS: Final = 11
"""Of one request, with random pauses of at most 0.05, 0.1, 0.2, … and 20 s, together 45 s; AWS_MAX_ATTEMPTS changes it.

Throttling, and every error before botocore 1.44, begins with 1 s.
"""
CONNECTIONS: Final = 16
DEFAULT_REGION: Final = "us-east-1"
ADDRESSING: Final = "TDM_R1_S3_ADDRESSING"

FULL = frozenset({"XMinioStorageFull", "QuotaExceeded", "InsufficientStorage"})
CONFLICTS = frozenset({"ConditionalRequestConflict", "OperationAborted"})
PASSING = CONFLICTS | {"SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded", "RequestTimeout"}
PASSING |= {"NoSuchUpload"}  # somebody aborted our upload
AGAIN = "run the same command again: what is committed stays, and nothing else counts"
BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
RENEW = "renew the session token of the credentials"
HINTS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "NoSuchBucket": "create the bucket, or correct --root",
        "RequestTimeTooSkewed": "set this machine's clock",
        "ExpiredToken": RENEW,
        "ExpiredTokenException": RENEW,
        "InvalidToken": RENEW,
        "AccessDenied": "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY or the role, and its policy; "
        "docs/operations/storage.md lists what a reader, writer and auditor need",
        "else": "see the table of servers in docs/operations/storage.md",
    }
)
"""What to do, by S3's error code."""


def parse_root(root: str) -> tuple[str, str]:
    """Bucket and prefix of `s3://bucket/prefix`; the prefix may be empty.

    Raises:
        ConfigError: for a bucket name or prefix that S3 or this store does not take.
    """
    bucket, _, prefix = root.removeprefix("s3://").rstrip("/").partition("/")
    hint = "write s3://bucket/prefix, with credentials in the AWS environment and not in the address"
    if not BUCKET.fullmatch(bucket):  # not shown: it may hold a password
        raise ConfigError("the bucket of the s3:// root is no bucket name", hint=hint)
    try:
        return bucket, require_key(prefix) if prefix else ""
    except ArtifactError as error:
        raise ConfigError(f"the prefix of root `{root}`: {error.message}", hint=hint) from error


def open_client() -> S3Client:
    """Return a client for the endpoint, region and credentials of the environment.

    Raises:
        ConfigError: when boto3 is not installed or the environment cannot be used.
    """
    try:
        import boto3
        from botocore.config import Config
    except ImportError as error:
        raise ConfigError(
            "a root of scheme `s3` needs boto3, which is not installed", hint="pip install 'tdm-r1[s3]'"
        ) from error
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None
    if endpoint is not None and "@" in endpoint:
        raise ConfigError(
            "the endpoint of the environment holds a user name or password: expected scheme, host and port",
            hint="give credentials as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        )
    retries: Any = {"mode": os.environ.get("AWS_RETRY_MODE") or "standard"}
    if not os.environ.get("AWS_MAX_ATTEMPTS"):
        retries["total_max_attempts"] = ATTEMPTS
    config = Config(
        connect_timeout=CONNECT_SECONDS,
        read_timeout=READ_SECONDS,
        retries=retries,
        max_pool_connections=CONNECTIONS,
        s3={"addressing_style": addressing(endpoint)},
    )
    with s3_errors("s3", endpoint or "AWS"):
        session = boto3.session.Session()  # a session of its own: the default one is shared and not thread-safe
        region = os.environ.get("AWS_REGION") or session.region_name or DEFAULT_REGION
        return session.client("s3", region_name=region, endpoint_url=endpoint, config=config)


def addressing(endpoint: str | None) -> Literal["path", "virtual", "auto"]:
    """Path style for an endpoint of one's own, unless TDM_R1_S3_ADDRESSING says otherwise."""
    style = os.environ.get(ADDRESSING) or ("path" if endpoint else "auto")
    if style not in ("path", "virtual", "auto"):
        raise ConfigError(f"{ADDRESSING} is {style!r}, expected path, virtual or auto", hint=f"unset {ADDRESSING}")
    return cast(Literal["path", "virtual", "auto"], style)


@contextmanager
def s3_errors(target: str, endpoint: str) -> Iterator[None]:
    """Turn what boto3 raises while it works on `target` into refused (exit 2) or temporary (exit 75)."""
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except ClientError as error:
        raise _answered(error.response, error.operation_name, target) from error
    except (BotoCoreError, Boto3Error) as error:
        raise _unanswered(error, target, endpoint) from error
    except ValueError as error:
        if isinstance(error, TdmR1Error) or "endpoint" not in str(error):
            raise
        raise ConfigError(
            "the endpoint of the environment is no URL", hint="AWS_ENDPOINT_URL=https://host:port"
        ) from error


def code_of(error: Any) -> str:
    """The code of a ClientError; the HTTP status where a HEAD leaves no room for one."""
    return str(error.response.get("Error", {}).get("Code", ""))


def status_of(response: Any) -> int:
    """HTTP status of a response, 0 when it has none."""
    return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _answered(response: Any, operation: str, target: str) -> TdmR1Error:
    code, status = str(response.get("Error", {}).get("Code", "")), status_of(response)
    said = f"{operation} was answered with {status} {code}".rstrip()
    if code in FULL or status == 507:
        return StorageFullError(f"no space is left for `{target}`: {said}", hint="free some space or raise the quota")
    if code in PASSING or status == 429 or (status >= 500 and status != 501):
        return TemporaryStorageError(f"`{target}` failed after all retries: {said}", hint=AGAIN)
    denied = status in (401, 403) and code not in HINTS.keys() - {"AccessDenied"}
    hint = HINTS.get(code, HINTS["AccessDenied" if denied else "else"])
    return ConfigError(f"access to `{target}` was {'denied' if denied else 'refused'}: {said}", hint=hint)


def _unanswered(error: Exception, target: str, endpoint: str) -> TdmR1Error:
    from boto3.exceptions import Boto3Error
    from botocore import exceptions as boto

    kind, host = type(error).__name__, shown(endpoint)
    if isinstance(error, boto.SSLError) and "doesn't match" in str(error):  # urllib3 says it, not OpenSSL
        return ConfigError(
            f"the certificate of {host} is that of another host",
            hint="give AWS_ENDPOINT_URL the name that the server's certificate has",
        )
    if isinstance(error, boto.SSLError) and "CERTIFICATE" in str(error).upper():
        return ConfigError(
            f"the certificate of {host} is not trusted", hint="name the file of its authority in AWS_CA_BUNDLE"
        )
    if isinstance(error, boto.NoCredentialsError | boto.PartialCredentialsError | boto.CredentialRetrievalError):
        return ConfigError(
            f"no credentials for `{target}`: {kind}",
            hint="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile, or run with a role",
        )
    passing = (
        boto.HTTPClientError,
        boto.ConnectionError,
        boto.IncompleteReadError,
        boto.FlexibleChecksumError,
        boto.MetadataRetrievalError,
        Boto3Error,
    )
    if isinstance(error, passing):
        return TemporaryStorageError(f"{host} cannot be reached for `{target}`: {kind} after all retries", hint=AGAIN)
    return ConfigError(f"`{target}` cannot be used: {kind}", hint="check the AWS environment and --root")


def shown(endpoint: str) -> str:
    """Scheme, host and port of an endpoint, without anything secret around them."""
    parts = urlsplit(endpoint)
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}" if host else endpoint
