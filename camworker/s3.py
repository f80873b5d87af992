"""Objects in S3 through boto3. Credentials, region and endpoint are boto3's own affair."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, Final

from camworker.errors import UsageError

SCHEME: Final = "s3://"
_ABSENT: Final = ("404", "NoSuchKey", "NotFound")
_TAKEN: Final = ("412", "PreconditionFailed")
_ATTEMPTS: Final = 5
_CONNECTIONS: Final = 64  # more threads than that wait for each other

_making = threading.Lock()


def split(uri: str) -> tuple[str, str]:
    """s3://bucket/some/key -> (bucket, some/key): text, not a URL. Raises UsageError without a bucket."""
    bucket, _, key = uri.removeprefix(SCHEME).partition("/")
    if not bucket:
        raise UsageError(f"{uri} names no bucket: s3://bucket/prefix")
    return bucket, key


def read(uri: str) -> bytes:
    """An object's bytes. Raises OSError, FileNotFoundError where there is none."""
    bucket, key = split(uri)
    with _as_os_errors(uri):
        return _client().get_object(Bucket=bucket, Key=key)["Body"].read()


def exists(uri: str) -> bool:
    """Whether an object is there. Raises OSError where that cannot be known."""
    bucket, key = split(uri)
    try:
        with _as_os_errors(uri):
            _client().head_object(Bucket=bucket, Key=key)
    except FileNotFoundError:
        return False
    return True


def create(uri: str, data: bytes) -> bool:
    """Create an object; False, and nothing changed, if another one is already there. Raises OSError."""
    bucket, key = split(uri)
    try:
        with _as_os_errors(uri):
            _client().put_object(Bucket=bucket, Key=key, Body=data, IfNoneMatch="*")
    except FileExistsError:
        # boto3 repeats a PUT whose answer was lost: what is there then is ours.
        return read(uri) == data
    return True


def list_objects(uri: str) -> Iterator[tuple[str, int, str]]:
    """Key, bytes and identity (ETag and size) of every object whose key starts so, in the store's order."""
    bucket, prefix = split(uri)
    with _as_os_errors(uri):
        for page in _client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
            for entry in page.get("Contents", ()):
                yield entry["Key"], entry["Size"], f"{entry['ETag'].strip(chr(34))}-{entry['Size']}"


def _client() -> Any:
    with _making:  # boto3 makes one client at a time; which many threads may use
        return _make_client()


@cache
def _make_client() -> Any:
    import boto3
    from botocore.config import Config

    retries = {"mode": "standard", "total_max_attempts": _ATTEMPTS}
    return boto3.client("s3", config=Config(retries=retries, max_pool_connections=_CONNECTIONS))


@contextmanager
def _as_os_errors(uri: str) -> Iterator[None]:
    """What boto3 raises, as what a file system would raise."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        kind = FileNotFoundError if code in _ABSENT else FileExistsError if code in _TAKEN else OSError
        raise kind(f"{uri}: {error}") from error
    except BotoCoreError as error:
        raise OSError(f"{uri}: {error}") from error
