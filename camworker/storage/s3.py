"""Objects in S3 by their URIs: read, in ranges too, listed, created once. Errors are a file system's.

boto3 says who we are and where S3 is; the bytes of images and parts go through obstore, which measured
two to three times boto3's throughput at a sixth of its work (110 KB, 16 threads). Keys that obstore
cannot name, and forked children, are boto3's.
"""

import errno
import random
import time
from collections.abc import Iterator
from typing import IO, Final, cast

from camworker.errors import ChangedError
from camworker.storage import s3_boto3, s3_listing, s3_obstore
from camworker.storage.locations import split
from camworker.storage.ranged_file import TAIL, RangedFile
from camworker.storage.s3_boto3 import GetResult, NoBucketError, ObjectInfo

_ANY_SIZE: Final = 2**63
_FIRST_PAUSE: Final = 0.1  # seconds, doubled each time

# What somebody has to mend before it can work: who we are, where S3 is, which bucket.
MISTAKES: Final = (PermissionError, ConnectionError, NoBucketError)


def read(uri: str, identity: str | None = None, limit: int = _ANY_SIZE) -> bytes:
    """An object's bytes. identity: what it has to be, as list_objects gives it.

    Raises ChangedError when it is another, FileNotFoundError, OSError; errno EFBIG for more than limit
    bytes, of which none are read.
    """
    return _get(uri, identity, limit=limit).data


def open_file(uri: str, identity: str | None = None) -> IO[bytes]:
    """A seekable file that reads what it is asked for and its end, all of it of one version of the object.

    Raises as read does; its own methods too, ChangedError when the object is replaced while it is read.
    """
    try:
        end = _get(uri, identity, span=TAIL)
    except IndexError:  # it is empty, and has no end
        end = _get(uri, identity)
    version = identity_of(end.etag, end.size)

    def read_range(start: int, stop: int) -> bytes:
        return _get(uri, version, span=(start, stop)).data

    return cast(IO[bytes], RangedFile(read_range, end.size, end.data))


def exists(uri: str) -> bool:
    """Whether an object is there. Raises OSError where that cannot be known."""
    try:
        s3_boto3.head(*split(uri))
    except FileNotFoundError:
        return False
    return True


def head(uri: str) -> ObjectInfo:
    """Key, size and ETag of an object. Raises OSError, FileNotFoundError where there is none."""
    return s3_boto3.head(*split(uri))


def create(uri: str, data: bytes) -> bool:
    """Create an object; False, and nothing changed, if another one is already there. Raises OSError.

    A refusal says that something is there (412), which may be ours, written by an attempt whose answer
    was lost; or that somebody else was writing (409), who may have failed. What is there decides.
    """
    bucket, key = split(uri)
    for attempt in range(s3_boto3.ATTEMPTS):
        try:
            if _through_obstore(key):
                s3_obstore.put_new(bucket, key, data)
            else:
                s3_boto3.put_new(bucket, key, data)
            return True
        except FileExistsError:
            try:
                return read(uri) == data
            except FileNotFoundError:
                time.sleep(_FIRST_PAUSE * 2**attempt * random.uniform(0.5, 1))
    raise OSError(f"{uri}: nothing is there, and the server refuses to create it")


def list_objects(uri: str) -> Iterator[ObjectInfo]:
    """Every object whose key starts so, once, in no particular order. Raises OSError, halfway too."""
    return s3_listing.list_objects(*split(uri))


def is_any_below(uri: str) -> bool:
    """Whether there is any object whose key starts so. Raises OSError."""
    bucket, prefix = split(uri)
    return bool(s3_boto3.list_page(bucket, prefix, limit=1).objects)


def identity_of(etag: str, size: int) -> str:
    """What changes when an object's content does."""
    return f"{etag}-{size}"


def reset_clients() -> None:
    """Ask boto3 again who we are and where S3 is."""
    s3_boto3.reset_clients()
    s3_obstore.reset_clients()


def _get(
    uri: str, identity: str | None, *, span: tuple[int, int] | int | None = None, limit: int = _ANY_SIZE
) -> GetResult:
    bucket, key = split(uri)
    etag, _, size = identity.rpartition("-") if identity is not None else ("", "", "")
    try:
        if _through_obstore(key):
            got = s3_obstore.get(bucket, key, etag=etag, span=span, limit=limit)
        else:
            if limit < _ANY_SIZE and (there := s3_boto3.head(bucket, key).size) > limit:
                raise OverflowError(there)
            got = s3_boto3.get(bucket, key, etag=etag, span=span)
    except FileExistsError:
        raise ChangedError("the object was replaced after it was planned") from None
    except OverflowError as error:
        raise OSError(errno.EFBIG, f"the file has {error} bytes, over {limit}") from None
    if identity is not None and str(got.size) != size:
        raise ChangedError("the object was replaced after it was planned")
    return got


def _through_obstore(key: str) -> bool:
    return s3_obstore.is_usable() and s3_obstore.supports_key(key)
