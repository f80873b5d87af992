"""Objects in S3: a client that reads and creates them, and the store below a prefix.

Errors are those of a file system. boto3 finds credentials, region and endpoint. The bytes of images and
parts go through obstore, which reached two to three times the throughput of boto3 at a sixth of its CPU time
(110 KB objects, 16 threads). boto3 handles the keys that obstore does not support, and every request in a
forked child.
"""

import errno
import random
import time
from collections.abc import Iterator
from typing import IO, Final, cast

from camworker.errors import ChangedError, UsageError
from camworker.storage.ranged_file import TAIL, RangedFile
from camworker.storage.s3_boto3 import ATTEMPTS, Boto3Client, GetResult, NoBucketError
from camworker.storage.s3_listing import list_objects
from camworker.storage.s3_obstore import ObstoreClient
from camworker.storage.store import Entry, folder_prefix

_ANY_SIZE: Final = 2**63
_FIRST_PAUSE: Final = 0.1  # Seconds, doubled each time.
_REPLACED: Final = "the object was replaced after it was planned"

# Errors that persist until the user changes the credentials, the endpoint or the bucket.
_CONFIGURATION_ERRORS: Final = (PermissionError, ConnectionError, NoBucketError)


class S3Client:
    """The connections of one process to S3; all threads may use it.

    Connections are opened on first use, which takes some tenths of a second, so a process keeps its client. A
    pickled client opens connections of its own, and so does a forked child.
    """

    def __init__(self) -> None:
        self._boto3 = Boto3Client()
        self._obstore = ObstoreClient(self._boto3)

    def __reduce__(self) -> tuple[type["S3Client"], tuple[()]]:
        return S3Client, ()

    def read(self, bucket: str, key: str, identity: str | None = None, limit: int | None = None) -> bytes:
        """Return the bytes of an object.

        Raises:
            ChangedError: An identity is given and the object has another one.
            OSError: The object cannot be read; errno is EFBIG, and nothing was read, if it has more than
                `limit` bytes.
        """
        return self._get(bucket, key, identity, limit=_ANY_SIZE if limit is None else limit).data

    def open(self, bucket: str, key: str, identity: str | None = None) -> IO[bytes]:
        """Open an object as a seekable file that fetches its end at once and other ranges when they are read.

        Raises:
            ChangedError: The object has another identity. The methods of the file raise it if the object is
                replaced while it is read.
            OSError: The object cannot be read.
        """
        try:
            tail = self._get(bucket, key, identity, span=TAIL)
        except IndexError:  # An empty object has no last bytes.
            tail = self._get(bucket, key, identity)
        version = _identity(tail.etag, tail.size)

        def read_range(start: int, stop: int) -> bytes:
            return self._get(bucket, key, version, span=(start, stop)).data

        return cast(IO[bytes], RangedFile(read_range, tail.size, tail.data))

    def exists(self, bucket: str, key: str) -> bool:
        """Return whether an object exists.

        Raises:
            OSError: The server does not say.
        """
        try:
            self._boto3.head_object(bucket, key)
        except FileNotFoundError:
            return False
        return True

    def entry(self, bucket: str, key: str) -> Entry:
        """Return the key, size and identity of an object.

        Raises:
            OSError: The request failed; FileNotFoundError if the object does not exist.
        """
        info = self._boto3.head_object(bucket, key)
        return Entry(key, info.size, _identity(info.etag, info.size))

    def create(self, bucket: str, key: str, data: bytes) -> bool:
        """Create an object; return False and change nothing if another one exists.

        The server refuses with 412 if the object exists, possibly written by an earlier attempt of this
        call whose answer was lost, and with 409 if another request is writing it, which may still fail. The
        content of the object decides.

        Raises:
            OSError: The object cannot be written.
        """
        for attempt in range(ATTEMPTS):
            try:
                if self._uses_obstore(key):
                    self._obstore.put_if_absent(bucket, key, data)
                else:
                    self._boto3.put_if_absent(bucket, key, data)
                return True
            except FileExistsError:
                try:
                    return self.read(bucket, key) == data
                except FileNotFoundError:
                    time.sleep(_FIRST_PAUSE * 2**attempt * random.uniform(0.5, 1))
        raise OSError(f"s3://{bucket}/{key}: the object does not exist, and the server refuses to create it")

    def list(self, bucket: str, prefix: str) -> Iterator[Entry]:
        """Yield every object whose key starts with a prefix, once, in no particular order.

        Raises:
            OSError: The listing broke off; what was yielded before is incomplete.
        """
        for info in list_objects(self._boto3, bucket, prefix):
            yield Entry(info.key, info.size, _identity(info.etag, info.size))

    def is_any_below(self, bucket: str, prefix: str) -> bool:
        """Return whether the key of any object starts with a prefix.

        Raises:
            OSError: The request failed.
        """
        return bool(self._boto3.list_page(bucket, prefix, limit=1).objects)

    def _get(
        self,
        bucket: str,
        key: str,
        identity: str | None,
        *,
        span: tuple[int, int] | int | None = None,
        limit: int = _ANY_SIZE,
    ) -> GetResult:
        etag, _, size = identity.rpartition("-") if identity is not None else ("", "", "")
        try:
            if self._uses_obstore(key):
                result = self._obstore.get_object(bucket, key, etag=etag, span=span, limit=limit)
            else:
                if limit < _ANY_SIZE and (actual := self._boto3.head_object(bucket, key).size) > limit:
                    raise OverflowError(actual)
                result = self._boto3.get_object(bucket, key, etag=etag, span=span)
        except FileExistsError:
            raise ChangedError(_REPLACED) from None
        except OverflowError as error:
            raise OSError(errno.EFBIG, f"the file has {error} bytes, over {limit}") from None
        if identity is not None and str(result.size) != size:
            raise ChangedError(_REPLACED)
        return result

    def _uses_obstore(self, key: str) -> bool:
        return self._obstore.is_usable() and self._obstore.supports_key(key)


class S3Store:
    """The objects below a prefix in a bucket.

    Args:
        bucket: The bucket.
        prefix: The prefix, without a slash at its end; empty for the whole bucket.
        client: The connections to use.
    """

    def __init__(self, bucket: str, prefix: str, client: S3Client) -> None:
        self._bucket = bucket
        self._prefix = folder_prefix(prefix)
        self._client = client

    def list(self, prefix: str = "", start: str = "") -> Iterator[Entry]:
        """List the objects in a folder and below; see `Store.list`."""
        try:
            for entry in self._client.list(self._bucket, self._prefix + folder_prefix(prefix) + start):
                # Some tools create an object for a folder; its key is empty here.
                if key := entry.key.removeprefix(self._prefix):
                    yield Entry(key, entry.size, entry.identity)
        except _CONFIGURATION_ERRORS as error:
            raise UsageError(f"cannot list {error}") from error

    def read(self, key: str, identity: str | None = None) -> bytes:
        """Return the bytes of an object; see `Store.read`."""
        return self._client.read(self._bucket, self._prefix + key, identity)

    def open(self, key: str, identity: str | None = None) -> IO[bytes]:
        """Open an object as a seekable file; see `Store.open`."""
        return self._client.open(self._bucket, self._prefix + key, identity)

    def create(self, key: str, data: bytes) -> bool:
        """Create an object; return False and change nothing if it exists."""
        return self._client.create(self._bucket, self._prefix + key, data)

    def exists(self, key: str) -> bool:
        """Return whether the object exists."""
        return self._client.exists(self._bucket, self._prefix + key)


def _identity(etag: str, size: int) -> str:
    return f"{etag}-{size}"
