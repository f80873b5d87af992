"""Requests to S3 through obstore: the bytes of images and parts, at a fraction of boto3's CPU time.

obstore gets credentials, region, endpoint and certificates from boto3. It repeats failed requests and resumes
downloads that broke off.
"""

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from urllib.parse import urlsplit

from camworker.errors import first_line
from camworker.storage.s3_boto3 import (
    ATTEMPTS,
    CONNECT_SECONDS,
    READ_SECONDS,
    Boto3Client,
    GetResult,
    boto3_errors_as_os_errors,
    error_class,
)

_RETRY: Final[Any] = {
    "max_retries": ATTEMPTS - 1,
    "backoff": {
        "init_backoff": timedelta(milliseconds=100),
        "max_backoff": timedelta(seconds=10),
        "base": 2,
    },
    "retry_timeout": timedelta(minutes=3),
}
_ATTEMPT_TIMEOUT: Final = timedelta(minutes=10)  # Enough for 64 MB over a slow line.
# boto3 renews credentials ten minutes before they expire; obstore asks again five minutes before this ends.
_CREDENTIALS_VALID_FOR: Final = timedelta(minutes=8)
_CONTROL_CHARACTER: Final = re.compile(r"[\x00-\x1f\x7f]")
_STATUS: Final = re.compile(r"status code: (\d{3})")
_CODE: Final = re.compile(r"<Code>(\w+)</Code>")

# A forked child inherits this number and has another one itself.
_IMPORTED_BY: Final = os.getpid()


class ObstoreClient:
    """Requests through obstore, with one obstore client for each bucket.

    Args:
        boto3: The source of credentials and settings.
    """

    def __init__(self, boto3: Boto3Client) -> None:
        self._boto3 = boto3
        self._lock = threading.Lock()
        self._stores: dict[str, Any] = {}

    @staticmethod
    def is_usable() -> bool:
        """Return whether obstore works in this process.

        It does not in a forked child, which would wait forever for threads that exist only in the parent.
        """
        return os.getpid() == _IMPORTED_BY

    @staticmethod
    def supports_key(key: str) -> bool:
        """Return whether obstore leaves a key unchanged; it refuses or normalises some that S3 allows."""
        is_normal = not any(part in ("", ".", "..") for part in key.split("/"))
        return is_normal and not _CONTROL_CHARACTER.search(key)

    def get_object(
        self, bucket: str, key: str, *, etag: str | None, span: tuple[int, int] | int | None, limit: int
    ) -> GetResult:
        """Return an object or a range of it; see `Boto3Client.get_object`.

        Raises:
            OverflowError: The object has more than `limit` bytes, none of which were read. The error's
                argument is the size.
        """
        import obstore

        options: Any = {}
        if etag:
            options["if_match"] = f'"{etag}"'
        if span is not None:
            options["range"] = {"suffix": span} if isinstance(span, int) else span
        with _obstore_errors_as_os_errors(f"s3://{bucket}/{key}"):
            answer = obstore.get(self._store(bucket), key, options=options)
            size = answer.meta["size"]
            if span is None and size > limit:
                raise OverflowError(size)
            return GetResult(answer.bytes().to_bytes(), (answer.meta["e_tag"] or "").strip('"'), size)

    def put_if_absent(self, bucket: str, key: str, data: bytes) -> None:
        """Create an object; see `Boto3Client.put_if_absent`."""
        import obstore

        with _obstore_errors_as_os_errors(f"s3://{bucket}/{key}"):
            obstore.put(self._store(bucket), key, data, mode="create", use_multipart=False)

    def _store(self, bucket: str) -> Any:
        with self._lock:
            if bucket not in self._stores:
                self._stores[bucket] = self._create_store(bucket)
            return self._stores[bucket]

    def _create_store(self, bucket: str) -> Any:
        from botocore.exceptions import NoCredentialsError
        from obstore.store import S3Store

        session = self._boto3.session()
        with boto3_errors_as_os_errors(f"s3://{bucket}"):
            credentials = session.get_credentials()
            if credentials is None:
                raise NoCredentialsError
            endpoint, region = self._endpoint_and_region(bucket)

        def provide_credentials() -> Any:
            frozen = credentials.get_frozen_credentials()
            return {
                "access_key_id": frozen.access_key,
                "secret_access_key": frozen.secret_key,
                "token": frozen.token,
                "expires_at": datetime.now(UTC) + _CREDENTIALS_VALID_FOR,
            }

        options: Any = {
            "allow_http": endpoint.startswith("http://"),
            "connect_timeout": timedelta(seconds=CONNECT_SECONDS),
            "read_timeout": timedelta(seconds=READ_SECONDS),
            "timeout": _ATTEMPT_TIMEOUT,
        }
        if certificates := session.get_config_variable("ca_bundle"):
            with open(certificates, "rb") as file:
                options["root_certificate"] = file.read()
        return S3Store(
            bucket,
            endpoint=endpoint,
            region=region,
            virtual_hosted_style_request=False,
            credential_provider=provide_credentials,
            client_options=options,
            retry_config=_RETRY,
        )

    def _endpoint_and_region(self, bucket: str) -> tuple[str, str]:
        """Return the endpoint and region of a bucket.

        Buckets at Amazon belong to one region each. boto3 follows redirects to it, obstore does not.
        """
        settings = self._boto3.client().meta
        endpoint, region = str(settings.endpoint_url), str(settings.region_name)
        host = urlsplit(endpoint).hostname or ""
        if host.endswith((".amazonaws.com", ".amazonaws.com.cn")):
            bucket_region = self._boto3.bucket_region(bucket) or region
            if bucket_region != region:
                return self._boto3.regional_endpoint(bucket_region), bucket_region
        return endpoint, region


@contextmanager
def _obstore_errors_as_os_errors(uri: str) -> Iterator[None]:
    """Raise the errors of obstore as those of a file system.

    The causes are suppressed: the text of an answer may contain the request that was signed.
    """
    from obstore import exceptions

    try:
        yield
    except (exceptions.AlreadyExistsError, exceptions.PreconditionError) as error:
        raise FileExistsError(f"{uri}: {_reason(error)}") from None
    except (exceptions.BaseError, FileNotFoundError) as error:
        text = str(error)
        codes = [match[1] for match in (_CODE.search(text), _STATUS.search(text)) if match]
        is_unreachable = not codes and "HTTP error" in text
        kind = ConnectionError if is_unreachable else error_class(*codes)
        raise kind(f"{uri}: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    """Return one line: the HTTP status and error code of the answer, or the failure of the connection."""
    text = str(error)
    status, code = _STATUS.search(text), _CODE.search(text)
    if status:
        return f"the server answered {status[1]}{f' ({code[1]})' if code else ''}"
    if "error sending request" in text:
        return "Could not connect to the server"
    return first_line(error)
