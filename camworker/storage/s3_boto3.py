"""Requests to S3 through boto3, which finds credentials, region and endpoint as every AWS tool does."""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.client import HTTPException
from typing import Any, Final, NamedTuple

ATTEMPTS: Final = 5
CONNECT_SECONDS: Final = 10
READ_SECONDS: Final = 60

_CONNECTIONS: Final = 64  # Further threads wait for a free connection.

_ABSENT: Final = ("404", "NoSuchKey", "NotFound")
_DENIED: Final = ("401", "403", "AccessDenied", "Forbidden", "InvalidAccessKeyId", "SignatureDoesNotMatch")
_TAKEN: Final = ("409", "412", "ConditionalRequestConflict", "PreconditionFailed")
_EMPTY: Final = ("416", "InvalidRange")


class GetResult(NamedTuple):
    """The result of a GET request.

    Attributes:
        data: The bytes of the object, or of the requested range.
        etag: The ETag of the whole object without quotes, or "" if the server sent none.
        size: The size of the whole object in bytes.
    """

    data: bytes
    etag: str
    size: int


class ObjectInfo(NamedTuple):
    """The key, the size in bytes and the ETag (without quotes) of an object."""

    key: str
    size: int
    etag: str


class Page(NamedTuple):
    """One page of a listing.

    Attributes:
        objects: The objects of the page.
        prefixes: The folders of the page, if they were requested.
        token: The continuation token, or None on the last page.
    """

    objects: list[ObjectInfo]
    prefixes: list[str]
    token: str | None


class NoBucketError(OSError):
    """The bucket does not exist: a wrong configuration rather than a missing object."""


class Boto3Client:
    """Requests through one boto3 client, which is created on first use and shared by all threads.

    A forked child creates a client of its own, because a child must not use the connections of its parent.
    """

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        # After a fork the old lock may be held by a thread that does not exist in the child.
        self._lock = threading.RLock()
        self._session: Any = None
        self._client: Any = None
        self._pid = os.getpid()

    def session(self) -> Any:
        """Return the botocore session, which knows the credentials and settings."""
        if self._pid != os.getpid():
            self._reset()
        with self._lock:
            if self._session is None:
                self._session = _create_session()
            return self._session

    def client(self) -> Any:
        """Return the boto3 client for the configured region."""
        session = self.session()
        with self._lock:  # boto3 does not support the creation of clients by several threads at once.
            if self._client is None:
                self._client = _create_client(session)
            return self._client

    def regional_endpoint(self, region: str) -> str:
        """Return the URL of the endpoint in a region."""
        session = self.session()
        with self._lock:
            return str(_create_client(session, region).meta.endpoint_url)

    def get_object(
        self, bucket: str, key: str, *, etag: str | None, span: tuple[int, int] | int | None
    ) -> GetResult:
        """Return an object or a range of it.

        Args:
            bucket: The bucket.
            key: The key.
            etag: The ETag that the object must have; None or "" for any.
            span: The first byte and the one after the last, or the number of bytes at the end of the object;
                None for the whole object.

        Raises:
            FileExistsError: The object has another ETag.
            IndexError: There are no bytes in the range.
            OSError: The request failed; FileNotFoundError if the object does not exist.
        """
        arguments = {"Bucket": bucket, "Key": key}
        if etag:
            arguments["IfMatch"] = f'"{etag}"'
        if span is not None:
            first, last = ("", span) if isinstance(span, int) else (span[0], span[1] - 1)
            arguments["Range"] = f"bytes={first}-{last}"
        with boto3_errors_as_os_errors(f"s3://{bucket}/{key}"):
            return _read_whole(partial(self.client().get_object, **arguments))

    def put_if_absent(self, bucket: str, key: str, data: bytes) -> None:
        """Create an object.

        Raises:
            FileExistsError: The object exists or is being written.
            OSError: The request failed.
        """
        with boto3_errors_as_os_errors(f"s3://{bucket}/{key}"):
            self.client().put_object(Bucket=bucket, Key=key, Body=data, IfNoneMatch="*")

    def head_object(self, bucket: str, key: str) -> ObjectInfo:
        """Return the size and ETag of an object.

        Raises:
            OSError: The request failed; FileNotFoundError if the object does not exist.
        """
        with boto3_errors_as_os_errors(f"s3://{bucket}/{key}"):
            answer = self.client().head_object(Bucket=bucket, Key=key)
        return ObjectInfo(key, answer["ContentLength"], _without_quotes(answer))

    def list_page(
        self, bucket: str, prefix: str, *, token: str | None = None, folders: bool = False, limit: int = 1000
    ) -> Page:
        """Return one page of the objects whose keys start with a prefix.

        Args:
            bucket: The bucket.
            prefix: The start of the keys.
            token: The continuation token of the page before.
            folders: Return folders as prefixes instead of the objects in them.
            limit: The largest number of objects and folders in the page.
        """
        arguments: dict[str, Any] = {"Bucket": bucket, "Prefix": prefix, "MaxKeys": limit}
        if token:
            arguments["ContinuationToken"] = token
        if folders:
            arguments["Delimiter"] = "/"
        with boto3_errors_as_os_errors(f"s3://{bucket}/{prefix}"):
            answer = self.client().list_objects_v2(**arguments)
        objects = [
            ObjectInfo(entry["Key"], entry["Size"], _without_quotes(entry))
            for entry in answer.get("Contents", ())
        ]
        prefixes = [entry["Prefix"] for entry in answer.get("CommonPrefixes", ())]
        return Page(objects, prefixes, answer.get("NextContinuationToken"))

    def bucket_region(self, bucket: str) -> str | None:
        """Return the region of a bucket, or None if the server does not say."""
        from botocore.exceptions import ClientError

        with boto3_errors_as_os_errors(f"s3://{bucket}"):
            try:
                answer = self.client().head_bucket(Bucket=bucket)
            except ClientError as error:
                answer = error.response  # The region is in the answer even if access is denied.
        region = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("x-amz-bucket-region")
        return None if region is None else str(region)


def _create_session() -> Any:
    from botocore.session import get_session

    session = get_session()
    # Parsing the dates costs more than everything else of a listed object, and nothing here reads them.
    parsers = session.get_component("response_parser_factory")
    parsers.set_parser_defaults(timestamp_parser=_keep_text)
    return session


def _keep_text(value: Any) -> Any:
    return value


def _create_client(session: Any, region: str | None = None) -> Any:
    from botocore.config import Config

    config = Config(
        retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
        max_pool_connections=_CONNECTIONS,
        connect_timeout=CONNECT_SECONDS,
        read_timeout=READ_SECONDS,
    )
    return session.create_client("s3", config=config, region_name=region)


def _without_quotes(answer: dict[str, Any]) -> str:
    return str(answer.get("ETag", "")).strip('"')


def _read_whole(request: Callable[[], dict[str, Any]]) -> GetResult:
    """Send a request and read its whole body.

    boto3 repeats a request that failed, but not one whose body broke off, so that is repeated here.
    """
    from botocore.exceptions import IncompleteReadError, ReadTimeoutError, ResponseStreamingError

    for attempts_left in reversed(range(ATTEMPTS)):
        answer = request()
        try:
            data = answer["Body"].read()
        except (IncompleteReadError, ReadTimeoutError, ResponseStreamingError, HTTPException):
            if not attempts_left:
                raise
            continue
        size = int(answer.get("ContentRange", f"/{len(data)}").rpartition("/")[2])
        return GetResult(data, _without_quotes(answer), size)
    raise AssertionError("unreachable")


@contextmanager
def boto3_errors_as_os_errors(uri: str) -> Iterator[None]:
    """Raise the errors of boto3 as those of a file system; no message contains a credential."""
    from botocore.exceptions import (
        BotoCoreError,
        ClientError,
        CredentialRetrievalError,
        NoCredentialsError,
        ProfileNotFound,
    )
    from botocore.exceptions import ConnectionError as BotoConnectionError

    try:
        yield
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        status = str(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", ""))
        raise error_class(code, status)(f"{uri}: {error}") from error
    except (NoCredentialsError, CredentialRetrievalError, ProfileNotFound) as error:
        raise PermissionError(f"{uri}: {error}") from error
    except BotoConnectionError as error:
        raise ConnectionError(f"{uri}: {error}") from error
    except (BotoCoreError, HTTPException) as error:
        raise OSError(f"{uri}: {error}") from error


def error_class(*codes: str) -> type[Exception]:
    """Return the exception class for S3 error codes and HTTP statuses; the first known code decides."""
    classes = (
        (("NoSuchBucket",), NoBucketError),
        (_ABSENT, FileNotFoundError),
        (_DENIED, PermissionError),
        (_TAKEN, FileExistsError),
        (_EMPTY, IndexError),
    )
    return next((kind for code in codes for known, kind in classes if code in known), OSError)
