"""S3 through obstore: where images are read and parts are written, at a fraction of boto3's work.

What boto3 knows (credentials, region, endpoint, certificates) it is told. It repeats what failed, and
goes on where an answer broke off.
"""

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any, Final
from urllib.parse import urlsplit

from camworker.storage import s3_boto3
from camworker.storage.s3_boto3 import GetResult

_RETRY: Final[Any] = {
    "max_retries": s3_boto3.ATTEMPTS - 1,
    "backoff": {
        "init_backoff": timedelta(milliseconds=100),
        "max_backoff": timedelta(seconds=10),
        "base": 2,
    },
    "retry_timeout": timedelta(minutes=3),
}
# boto3 renews credentials ten minutes before their end, obstore asks again five before what we say.
_CREDENTIALS_FOR: Final = timedelta(minutes=8)
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")
_STATUS: Final = re.compile(r"status code: (\d{3})")
_CODE: Final = re.compile(r"<Code>(\w+)</Code>")

_making = threading.RLock()
_usable = True


def supports_key(key: str) -> bool:
    """Whether obstore takes this key as it is. It refuses or changes some that S3 allows."""
    return not _CONTROL.search(key) and not any(part in ("", ".", "..") for part in key.split("/"))


def is_usable() -> bool:
    """Not in a forked child: obstore's threads stayed behind, and it would wait for them for ever."""
    return _usable


def get(
    bucket: str, key: str, *, etag: str | None, span: tuple[int, int] | int | None, limit: int
) -> GetResult:
    """As s3_boto3.get; nothing is read of an object over limit bytes (OverflowError)."""
    import obstore

    options: Any = {}
    if etag:
        options["if_match"] = f'"{etag}"'
    if span is not None:
        options["range"] = {"suffix": span} if isinstance(span, int) else span
    with _as_os_errors(f"s3://{bucket}/{key}"):
        answer = obstore.get(_store(bucket), key, options=options)
        size = answer.meta["size"]
        if span is None and size > limit:
            raise OverflowError(size)
        return GetResult(answer.bytes().to_bytes(), (answer.meta["e_tag"] or "").strip('"'), size)


def put_new(bucket: str, key: str, data: bytes) -> None:
    """As s3_boto3.put_new."""
    import obstore

    with _as_os_errors(f"s3://{bucket}/{key}"):
        obstore.put(_store(bucket), key, data, mode="create", use_multipart=False)


def reset_clients() -> None:
    """Make stores anew when they are needed."""
    _make_store.cache_clear()


def _store(bucket: str) -> Any:
    with _making:
        return _make_store(bucket)


@cache
def _make_store(bucket: str) -> Any:
    from botocore.exceptions import NoCredentialsError
    from obstore.store import S3Store

    session = s3_boto3.session()
    with s3_boto3.as_os_errors(f"s3://{bucket}"):
        credentials = session.get_credentials()
        if credentials is None:
            raise NoCredentialsError
        endpoint, region = _endpoint_and_region(bucket)

    def provide() -> Any:
        frozen = credentials.get_frozen_credentials()
        return {
            "access_key_id": frozen.access_key,
            "secret_access_key": frozen.secret_key,
            "token": frozen.token,
            "expires_at": datetime.now(UTC) + _CREDENTIALS_FOR,
        }

    options: Any = {
        "allow_http": endpoint.startswith("http://"),
        "connect_timeout": timedelta(seconds=s3_boto3.CONNECT_SECONDS),
        "read_timeout": timedelta(seconds=s3_boto3.READ_SECONDS),
        "timeout": timedelta(minutes=10),  # of one attempt: 64 MB over a slow line
    }
    if certificates := session.get_config_variable("ca_bundle"):
        with open(certificates, "rb") as file:
            options["root_certificate"] = file.read()
    return S3Store(
        bucket,
        endpoint=endpoint,
        region=region,
        virtual_hosted_style_request=False,
        credential_provider=provide,
        client_options=options,
        retry_config=_RETRY,
    )


def _endpoint_and_region(bucket: str) -> tuple[str, str]:
    """Where a bucket is reached. Amazon's have a region each, and boto3 follows where it is sent to."""
    client = s3_boto3.client()
    endpoint, region = client.meta.endpoint_url, client.meta.region_name
    host = urlsplit(endpoint).hostname or ""
    if host.endswith((".amazonaws.com", ".amazonaws.com.cn")):
        there = s3_boto3.bucket_region(bucket) or region
        if there != region:
            endpoint, region = s3_boto3.make_client(there).meta.endpoint_url, there
    return endpoint, region


@contextmanager
def _as_os_errors(uri: str) -> Iterator[None]:
    """What obstore raises, as what a file system would raise. An answer's text may hold what was signed."""
    from obstore import exceptions

    try:
        yield
    except (exceptions.AlreadyExistsError, exceptions.PreconditionError) as error:
        raise FileExistsError(f"{uri}: {_reason(error)}") from None
    except (exceptions.BaseError, FileNotFoundError) as error:
        text = str(error)
        codes = [match[1] for match in (_CODE.search(text), _STATUS.search(text)) if match]
        unreachable = not codes and "HTTP error" in text
        kind = ConnectionError if unreachable else s3_boto3.error_kind(*codes)
        raise kind(f"{uri}: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    """One line: the HTTP status and S3's code for it, or what became of the connection."""
    text = str(error)
    status, code = _STATUS.search(text), _CODE.search(text)
    if status:
        return f"the server answered {status[1]}{f' ({code[1]})' if code else ''}"
    if "error sending request" in text:
        return "Could not connect to the server"
    return text.splitlines()[0]


def _stop_using() -> None:
    global _usable
    _usable = False


os.register_at_fork(after_in_child=_stop_using)
