"""The one seam for bytes: list, read, create if absent. Local files, S3, and a twin in memory for tests.

Keys and paths are plain text: nothing is parsed or unquoted as a URL.
"""

import contextlib
import io
import os
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final, Protocol

from camworker.errors import ChangedError, UsageError
from camworker.storage import s3
from camworker.storage.local_files import (
    REPLACED,
    Entry,
    durable_mkdir,
    fsync_folder,
    identity_of_file,
    iter_files,
    open_file,
    read_file,
)
from camworker.storage.locations import check_location_form, is_s3, whole_location

_SCRATCH: Final = ".scratch/"


class Store(Protocol):
    """Objects under one root, each created whole, once, and never changed afterwards.

    Who reads may say which identity is expected: ChangedError tells that there is another object.
    """

    def list(self, prefix: str = "", start: str = "") -> Iterator[Entry]:
        """Objects below the folder prefix, keys relative to the root, in no order that counts.

        start: only those whose key goes on like this after the folder. Raises where it cannot be told to
        the end: what came before is no whole listing.
        """

    def read(self, key: str, identity: str | None = None) -> bytes:
        """The object's bytes. Raises FileNotFoundError."""

    def open(self, key: str, identity: str | None = None) -> IO[bytes]:
        """The object as a seekable file, for formats that are read in pieces. Raises FileNotFoundError."""

    def create(self, key: str, data: bytes) -> bool:
        """Create the object durably. False, and nothing changed, if it is already there."""

    def exists(self, key: str) -> bool:
        """Whether the object is there."""


class LocalStore:
    """A folder. A killed writer leaves at most a draft in _SCRATCH, never a part of an object."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).absolute()

    def list(self, prefix: str = "", start: str = "") -> Iterator[Entry]:
        folder = self.root / prefix
        if folder.is_dir():
            above = _folder(prefix)
            for entry in iter_files(folder, above, ()):
                if entry.key.startswith(above + start) and not entry.key.startswith(_SCRATCH):
                    yield entry

    def read(self, key: str, identity: str | None = None) -> bytes:
        return read_file(self.root / key, identity)

    def open(self, key: str, identity: str | None = None) -> IO[bytes]:
        return open_file(self.root / key, identity)

    def create(self, key: str, data: bytes) -> bool:
        target, scratch = self.root / key, self.root / _SCRATCH
        durable_mkdir(target.parent)
        scratch.mkdir(exist_ok=True)
        draft = scratch / uuid.uuid4().hex
        try:
            with open(draft, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            # A link fails where the name exists, a rename would replace it: this is the commit.
            os.link(draft, target)
        except FileExistsError:
            return False
        finally:
            draft.unlink(missing_ok=True)
        fsync_folder(target.parent)
        return True

    def exists(self, key: str) -> bool:
        return (self.root / key).is_file()


class MemoryStore:
    """The in-memory twin of LocalStore."""

    def __init__(self) -> None:
        self._objects: dict[str, bytes] = {}
        self._lock = threading.Lock()

    def list(self, prefix: str = "", start: str = "") -> Iterator[Entry]:
        for key in sorted(self._objects):
            if key.startswith(_folder(prefix) + start):
                yield Entry(key, len(self._objects[key]), str(len(self._objects[key])))

    def read(self, key: str, identity: str | None = None) -> bytes:
        try:
            data = self._objects[key]
        except KeyError:
            raise FileNotFoundError(key) from None
        if identity not in (None, str(len(data))):
            raise ChangedError(REPLACED)
        return data

    def open(self, key: str, identity: str | None = None) -> IO[bytes]:
        return io.BytesIO(self.read(key, identity))

    def create(self, key: str, data: bytes) -> bool:
        with self._lock:
            if key in self._objects:
                return False
            self._objects[key] = data
            return True

    def exists(self, key: str) -> bool:
        return key in self._objects


class S3Store:
    """A prefix in a bucket."""

    def __init__(self, root: str) -> None:
        self._root = root.rstrip("/")
        s3.split(root)

    def list(self, prefix: str = "", start: str = "") -> Iterator[Entry]:
        above = len(s3.split(f"{self._root}/")[1])
        try:
            for found in s3.list_objects(self._uri(_folder(prefix) + start)):
                if key := found.key[above:]:  # not the folder itself, which some tools make an object of
                    yield Entry(key, found.size, s3.identity_of(found.etag, found.size))
        except s3.MISTAKES as error:
            raise UsageError(f"cannot list {error}") from error

    def read(self, key: str, identity: str | None = None) -> bytes:
        return s3.read(self._uri(key), identity)

    def open(self, key: str, identity: str | None = None) -> IO[bytes]:
        return s3.open_file(self._uri(key), identity)

    def create(self, key: str, data: bytes) -> bool:
        return s3.create(self._uri(key), data)

    def exists(self, key: str) -> bool:
        return s3.exists(self._uri(key))

    def _uri(self, key: str) -> str:
        return f"{self._root}/{key}"


def _folder(prefix: str) -> str:
    """How the keys in a folder begin."""
    return f"{prefix.rstrip('/')}/" if prefix else ""


def open_store(root: str) -> Store:
    """The store at a path or s3:// prefix. Raises UsageError where there cannot be one."""
    where = whole_location(root)
    if is_s3(where):
        return S3Store(where)
    path = Path(where)
    if path.exists() and not path.is_dir():
        raise UsageError(f"{root} is a file: name a folder")
    return LocalStore(path)


def local_path(uri: str) -> str:
    """The absolute path that a URI names. Raises UsageError for what is not on this machine."""
    check_location_form(uri)
    if is_s3(uri):
        raise UsageError(f"{uri}: this has to be a local path")
    return os.path.abspath(uri)


def read_uri(uri: str, identity: str | None = None, limit: int | None = None) -> bytes:
    """All bytes of a file, local or s3://. Raises OSError; ChangedError if identity is given and differs.

    limit: of a file with more bytes nothing is read, and the OSError has errno EFBIG.
    """
    if is_s3(uri):
        return s3.read(uri, identity) if limit is None else s3.read(uri, identity, limit)
    return read_file(local_path(uri), identity, limit)


@contextlib.contextmanager
def open_uri(uri: str, identity: str | None = None) -> Iterator[IO[bytes]]:
    """A seekable file, for formats that are read in pieces. Raises as read_uri does.

    Of one in S3 only what is read is fetched; that it has changed may show then, from its methods.
    """
    with s3.open_file(uri, identity) if is_s3(uri) else open_file(local_path(uri), identity) as file:
        yield file


def exists_uri(uri: str) -> bool:
    """Whether a file is there, local or s3://. Raises OSError where that cannot be known."""
    return s3.exists(uri) if is_s3(uri) else os.path.isfile(uri)


def exists_location(location: str) -> bool:
    """Whether a file or folder is there, local or s3://. Raises OSError where that cannot be known."""
    if not is_s3(location):
        return os.path.exists(location)
    key = s3.split(location)[1]
    return s3.is_any_below(f"{location}/") or (bool(key) and s3.exists(location))


def join_uri(folder: str, name: str) -> str:
    """The path of a file in a folder, local or s3://."""
    return f"{folder.rstrip('/')}/{name}" if is_s3(folder) else os.path.join(folder, name)


def entry_of(uri: str) -> Entry:
    """The entry of one file, its key the absolute path or the s3:// URI. Raises OSError."""
    if is_s3(uri):
        found = s3.head(uri)
        return Entry(uri, found.size, s3.identity_of(found.etag, found.size))
    path = local_path(uri)
    status = os.stat(path)
    return Entry(path, status.st_size, identity_of_file(status))
