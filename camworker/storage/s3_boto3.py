"""S3 through boto3: whose credentials, region and endpoint are everybody's; listings, and any key at all."""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from http.client import HTTPException
from typing import Any, Final, NamedTuple

ATTEMPTS: Final = 5
CONNECTIONS: Final = 64  # more threads than that wait for each other
CONNECT_SECONDS: Final = 10
READ_SECONDS: Final = 60

_ABSENT: Final = ("404", "NoSuchKey", "NotFound")
_DENIED: Final = ("401", "403", "AccessDenied", "Forbidden", "InvalidAccessKeyId", "SignatureDoesNotMatch")
_TAKEN: Final = ("409", "412", "ConditionalRequestConflict", "PreconditionFailed")
_EMPTY: Final = ("416", "InvalidRange")

_making = threading.RLock()


class GetResult(NamedTuple):
    """What a GET gave: bytes, and the whole object's ETag (without quotes, "" if unknown) and size."""

    data: bytes
    etag: str
    size: int


class ObjectInfo(NamedTuple):
    """One listed object."""

    key: str
    size: int
    etag: str


class Page(NamedTuple):
    """One page of a listing. prefixes: folders, where they were asked for; token: of the next page."""

    objects: list[ObjectInfo]
    prefixes: list[str]
    token: str | None


class NoBucketError(OSError):
    """The bucket is not there, which is a mistake and no missing object."""


def get(bucket: str, key: str, *, etag: str | None, span: tuple[int, int] | int | None) -> GetResult:
    """An object's bytes from span[0] up to span[1], or its last span bytes; all of it for None.

    etag: what it has to have. Raises FileExistsError when it has another one, IndexError for no bytes at
    all in span, else OSError.
    """
    asked = {"Bucket": bucket, "Key": key}
    if etag:
        asked["IfMatch"] = f'"{etag}"'
    if span is not None:
        asked["Range"] = f"bytes=-{span}" if isinstance(span, int) else f"bytes={span[0]}-{span[1] - 1}"
    with as_os_errors(f"s3://{bucket}/{key}"):
        return _whole(partial(client().get_object, **asked))


def _whole(call: Callable[[], dict[str, Any]]) -> GetResult:
    """boto3 repeats a request that failed, but not one whose answer broke off."""
    from botocore.exceptions import IncompleteReadError, ReadTimeoutError, ResponseStreamingError

    for left in reversed(range(ATTEMPTS)):
        answer = call()
        try:
            data = answer["Body"].read()
        except (IncompleteReadError, ReadTimeoutError, ResponseStreamingError, HTTPException):
            if not left:
                raise
            continue
        size = int(answer.get("ContentRange", f"/{len(data)}").rpartition("/")[2])
        return GetResult(data, answer.get("ETag", "").strip('"'), size)
    raise AssertionError("unreachable")


def put_new(bucket: str, key: str, data: bytes) -> None:
    """Create an object. Raises FileExistsError when one is there or on its way, else OSError."""
    with as_os_errors(f"s3://{bucket}/{key}"):
        client().put_object(Bucket=bucket, Key=key, Body=data, IfNoneMatch="*")


def head(bucket: str, key: str) -> ObjectInfo:
    """Size and ETag of an object. Raises OSError, FileNotFoundError where there is none."""
    with as_os_errors(f"s3://{bucket}/{key}"):
        answer = client().head_object(Bucket=bucket, Key=key)
    return ObjectInfo(key, answer["ContentLength"], answer.get("ETag", "").strip('"'))


def list_page(
    bucket: str, prefix: str, *, token: str | None = None, folders: bool = False, limit: int = 1000
) -> Page:
    """A page of the objects whose keys start with prefix; folders: folders as such, without their content."""
    asked = {"Bucket": bucket, "Prefix": prefix, "MaxKeys": limit}
    if token:
        asked["ContinuationToken"] = token
    if folders:
        asked["Delimiter"] = "/"
    with as_os_errors(f"s3://{bucket}/{prefix}"):
        answer = client().list_objects_v2(**asked)
    objects = [
        ObjectInfo(entry["Key"], entry["Size"], entry.get("ETag", "").strip('"'))
        for entry in answer.get("Contents", ())
    ]
    prefixes = [entry["Prefix"] for entry in answer.get("CommonPrefixes", ())]
    return Page(objects, prefixes, answer.get("NextContinuationToken"))


def bucket_region(bucket: str) -> str | None:
    """The region that a bucket lies in, None where the server does not tell."""
    from botocore.exceptions import ClientError

    with as_os_errors(f"s3://{bucket}"):
        try:
            answer = client().head_bucket(Bucket=bucket)
        except ClientError as error:
            answer = error.response  # who may not ask is told the region all the same
    return answer.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("x-amz-bucket-region")


def client() -> Any:
    """The client of this process, which many threads may use."""
    with _making:  # boto3 makes one client at a time
        return _make_client()


def session() -> Any:
    """The botocore session that the client is of: credentials, region, settings."""
    with _making:
        return _make_session()


def make_client(region: str | None = None) -> Any:
    """A client as the settings say, in another region where one is given."""
    from botocore.config import Config

    config = Config(
        retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
        max_pool_connections=CONNECTIONS,
        connect_timeout=CONNECT_SECONDS,
        read_timeout=READ_SECONDS,
    )
    return session().create_client("s3", config=config, region_name=region)


def reset_clients() -> None:
    """Make client and session anew when they are needed: the settings have changed, or this is a child."""
    global _making
    _making = threading.RLock()
    _make_client.cache_clear()
    _make_session.cache_clear()


# A child must not share connections, nor wait for a lock that nobody will release.
os.register_at_fork(after_in_child=reset_clients)


@cache
def _make_client() -> Any:
    return make_client()


@cache
def _make_session() -> Any:
    from botocore.session import get_session

    made = get_session()
    # Reading a date costs more than all the rest of a listed object, and nobody here needs it.
    made.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=_as_it_is)
    return made


def _as_it_is(value: Any) -> Any:
    return value


@contextmanager
def as_os_errors(uri: str) -> Iterator[None]:
    """What boto3 raises, as what a file system would raise; the message names no credential."""
    from botocore.exceptions import (
        BotoCoreError,
        ClientError,
        CredentialRetrievalError,
        NoCredentialsError,
        ProfileNotFound,
    )
    from botocore.exceptions import ConnectionError as NoConnection

    try:
        yield
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        status = str(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", ""))
        raise error_kind(code, status)(f"{uri}: {error}") from error
    except (NoCredentialsError, CredentialRetrievalError, ProfileNotFound) as error:
        raise PermissionError(f"{uri}: {error}") from error
    except NoConnection as error:
        raise ConnectionError(f"{uri}: {error}") from error
    except (BotoCoreError, HTTPException) as error:
        raise OSError(f"{uri}: {error}") from error


def error_kind(*codes: str) -> type[Exception]:
    """The exception for the error codes of S3 and the HTTP statuses that an answer had; the first known."""
    kinds = (
        (("NoSuchBucket",), NoBucketError),
        (_ABSENT, FileNotFoundError),
        (_DENIED, PermissionError),
        (_TAKEN, FileExistsError),
        (_EMPTY, IndexError),
    )
    return next((kind for code in codes for known, kind in kinds if code in known), OSError)
