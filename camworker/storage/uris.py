"""Locations (local paths and s3:// URIs): how they are checked, and the files and stores that they name.

Both are plain text: nothing in a key or a path is parsed, unquoted or normalised as a URL.
"""

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Final

from camworker.errors import UsageError
from camworker.storage.local import LocalStore, identity_of_file, open_local_file, read_local_file
from camworker.storage.s3 import S3Client, S3Store
from camworker.storage.store import Entry, Store, folder_prefix

S3_SCHEME: Final = "s3://"

# RE2 and Python's re read these patterns alike; pyarrow searches whole columns with them.
ANY_SCHEME: Final = r"^[A-Za-z][A-Za-z0-9+.\-]*://"
# Matches s3://key:secret@bucket/... and the parameters of signed URLs.
CREDENTIALS: Final = (
    r"^[A-Za-z][A-Za-z0-9+.\-]*://([^/]*@|.*[?&](?i:x-amz-signature|x-amz-credential|x-amz-security-token"
    r"|awsaccesskeyid|signature|sig)=)|^s3://[^/]*:"
)


def is_s3(location: str) -> bool:
    """Return whether a location is in S3 rather than on this machine."""
    return location.startswith(S3_SCHEME)


def check_location_form(location: str, context: str = "") -> None:
    """Refuse schemes other than s3:// and locations that hold credentials.

    Args:
        location: A path or URI.
        context: The start of the message, such as a file and its row.

    Raises:
        UsageError: The location is refused; the message does not repeat credentials.
    """
    if re.search(CREDENTIALS, location):
        raise UsageError(
            f"{context}a URI holds credentials or a signature: write s3://bucket/key, and leave credentials "
            "to AWS_PROFILE, the environment or the machine's role"
        )
    scheme = re.match(ANY_SCHEME, location)
    if scheme and not is_s3(location):
        raise UsageError(
            f"{context}{scheme[0]}... cannot be read or written: name a local path or s3://bucket/key"
        )


def split_s3_uri(uri: str) -> tuple[str, str]:
    """Split s3://bucket/some/key into the bucket and the key, which may be empty.

    Raises:
        UsageError: The URI names no bucket or holds credentials.
    """
    bucket, _, key = uri.removeprefix(S3_SCHEME).partition("/")
    if not bucket:
        raise UsageError(f"{uri} names no bucket: s3://bucket/prefix")
    if "@" in bucket or ":" in bucket:
        check_location_form(uri)
    return bucket, key


def normalize_location(location: str) -> str:
    """Return the absolute path, or the s3:// URI without a slash at its end.

    Raises:
        UsageError: See `check_location_form`.
    """
    check_location_form(location)
    if not is_s3(location):
        return os.path.abspath(location)
    split_s3_uri(location)
    return location.rstrip("/")


def is_below(location: str, folder: str) -> bool:
    """Return whether a normalized location is the folder or lies in it, judged by the names alone."""
    return location == folder or location.startswith(f"{folder.rstrip('/')}/")


def find_outside(paths: Sequence[str], roots: Sequence[str]) -> int | None:
    """Return the index of the first path that lies below none of the roots, or None if all do.

    A path lies below a root if its name does, or if the folder that its symbolic links lead to does. A link
    below a root that leads out of it is accepted: the owner of the root made it.

    Args:
        paths: Absolute paths of files.
        roots: Absolute paths of folders.
    """
    real_roots = [os.path.realpath(root) for root in roots]
    real_folders: dict[str, str] = {}
    for index, path in enumerate(paths):
        if any(is_below(path, root) for root in roots):
            continue
        folder, name = os.path.split(path)
        if folder not in real_folders:
            real_folders[folder] = os.path.realpath(folder)
        if not any(is_below(os.path.join(real_folders[folder], name), root) for root in real_roots):
            return index
    return None


def join_uri(folder: str, name: str) -> str:
    """Return the location of a file in a folder."""
    return f"{folder.rstrip('/')}/{name}" if is_s3(folder) else os.path.join(folder, name)


def local_path(location: str) -> str:
    """Return the absolute path of a location on this machine.

    Raises:
        UsageError: The location is not on this machine.
    """
    check_location_form(location)
    if is_s3(location):
        raise UsageError(f"{location}: this has to be a local path")
    return os.path.abspath(location)


@dataclass(frozen=True)
class Connections:
    """The connections of a process to object stores, opened on first use.

    Opening one takes some tenths of a second. Code that reads many objects therefore keeps one instance,
    which all its threads may use. A pickled instance, or one in a forked child, opens its own.

    Attributes:
        s3: The client for s3:// URIs.
    """

    s3: S3Client = field(default_factory=S3Client)


def open_store(root: str, connections: Connections | None = None) -> Store:
    """Return the store below a local folder or an s3:// prefix.

    Args:
        root: The folder or prefix.
        connections: The connections that the store uses; None for connections of its own.

    Raises:
        UsageError: No store can be there, for instance because the root is a file.
    """
    location = normalize_location(root)
    if is_s3(location):
        return S3Store(*split_s3_uri(location), _s3(connections))
    path = Path(location)
    if path.exists() and not path.is_dir():
        raise UsageError(f"{root} is a file: name a folder")
    return LocalStore(path)


def read_uri(
    uri: str,
    identity: str | None = None,
    limit: int | None = None,
    *,
    connections: Connections | None = None,
) -> bytes:
    """Return the bytes of a file.

    Raises:
        ChangedError: An identity is given and the file has another one.
        OSError: The file cannot be read. With more than `limit` bytes errno is EFBIG and nothing was read.
    """
    if is_s3(uri):
        return _s3(connections).read(*split_s3_uri(uri), identity, limit)
    return read_local_file(local_path(uri), identity, limit)


@contextlib.contextmanager
def open_uri(
    uri: str, identity: str | None = None, *, connections: Connections | None = None
) -> Iterator[IO[bytes]]:
    """Open a seekable file, for formats that are read in pieces.

    Only the bytes that are read are fetched from S3, so the file's methods may raise ChangedError as well.

    Raises:
        ChangedError: An identity is given and the file has another one.
        OSError: The file cannot be read.
    """
    if is_s3(uri):
        opened = _s3(connections).open(*split_s3_uri(uri), identity)
    else:
        opened = open_local_file(local_path(uri), identity)
    with opened as file:
        yield file


def exists_uri(uri: str, *, connections: Connections | None = None) -> bool:
    """Return whether a file exists.

    Raises:
        OSError: The store does not say.
    """
    return _s3(connections).exists(*split_s3_uri(uri)) if is_s3(uri) else os.path.isfile(uri)


def exists_location(location: str, *, connections: Connections | None = None) -> bool:
    """Return whether a file or a folder exists.

    Raises:
        OSError: The store does not say.
    """
    if not is_s3(location):
        return os.path.exists(location)
    bucket, key = split_s3_uri(location)
    client = _s3(connections)
    return client.is_any_below(bucket, folder_prefix(key)) or (bool(key) and client.exists(bucket, key))


def entry_of(uri: str, *, connections: Connections | None = None) -> Entry:
    """Return the entry of one file; its key is the absolute path or the s3:// URI.

    Raises:
        OSError: The file does not exist or cannot be examined.
    """
    if is_s3(uri):
        return replace(_s3(connections).entry(*split_s3_uri(uri)), key=uri)
    path = local_path(uri)
    status = os.stat(path)
    return Entry(path, status.st_size, identity_of_file(status))


def _s3(connections: Connections | None) -> S3Client:
    return (connections or Connections()).s3
