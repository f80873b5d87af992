"""The one seam for bytes: list, read, create if absent. Local files, S3, and a twin in memory for tests.

Keys and paths are plain text: nothing is parsed or unquoted as a URL.
"""

import contextlib
import io
import os
import stat
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final, Protocol

from camworker import s3
from camworker.errors import ChangedError, UsageError

_SCRATCH: Final = ".scratch/"


@dataclass(frozen=True, slots=True)
class Entry:
    """One listed object. identity changes when the content does: size and mtime_ns of a local file."""

    key: str
    size: int
    identity: str


class Store(Protocol):
    """Objects under one root, each created whole, once, and never changed afterwards."""

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """Objects below the folder prefix, keys relative to the root, in the store's own order."""

    def read(self, key: str) -> bytes:
        """The object's bytes. Raises FileNotFoundError."""

    def open(self, key: str) -> IO[bytes]:
        """The object as a seekable file, for formats that are read in pieces. Raises FileNotFoundError."""

    def create(self, key: str, data: bytes) -> bool:
        """Create the object durably. False, and nothing changed, if it is already there."""

    def exists(self, key: str) -> bool:
        """Whether the object is there."""


class LocalStore:
    """A folder. A killed writer leaves at most a draft in _SCRATCH, never a part of an object."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).absolute()

    def list(self, prefix: str = "") -> Iterator[Entry]:
        folder = self.root / prefix
        if folder.is_dir():
            for entry in _walk(folder, f"{prefix.rstrip('/')}/" if prefix else "", ()):
                if not entry.key.startswith(_SCRATCH):
                    yield entry

    def read(self, key: str) -> bytes:
        return (self.root / key).read_bytes()

    def open(self, key: str) -> IO[bytes]:
        return open(self.root / key, "rb")

    def create(self, key: str, data: bytes) -> bool:
        target, scratch = self.root / key, self.root / _SCRATCH
        _make_folder(target.parent)
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
        _fsync_folder(target.parent)
        return True

    def exists(self, key: str) -> bool:
        return (self.root / key).is_file()


class MemoryStore:
    """The in-memory twin of LocalStore."""

    def __init__(self) -> None:
        self._objects: dict[str, bytes] = {}
        self._lock = threading.Lock()

    def list(self, prefix: str = "") -> Iterator[Entry]:
        folder = f"{prefix.rstrip('/')}/" if prefix else ""
        for key in sorted(self._objects):
            if key.startswith(folder):
                yield Entry(key, len(self._objects[key]), str(len(self._objects[key])))

    def read(self, key: str) -> bytes:
        try:
            return self._objects[key]
        except KeyError:
            raise FileNotFoundError(key) from None

    def open(self, key: str) -> IO[bytes]:
        return io.BytesIO(self.read(key))

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

    def list(self, prefix: str = "") -> Iterator[Entry]:
        above = len(s3.split(f"{self._root}/")[1])
        for key, size, identity in s3.list_objects(self._uri(f"{prefix.rstrip('/')}/" if prefix else "")):
            yield Entry(key[above:], size, identity)

    def read(self, key: str) -> bytes:
        return s3.read(self._uri(key))

    def open(self, key: str) -> IO[bytes]:
        return io.BytesIO(self.read(key))

    def create(self, key: str, data: bytes) -> bool:
        return s3.create(self._uri(key), data)

    def exists(self, key: str) -> bool:
        return s3.exists(self._uri(key))

    def _uri(self, key: str) -> str:
        return f"{self._root}/{key}"


def open_store(root: str) -> Store:
    """The store at a path or s3:// prefix. Raises UsageError where there cannot be one."""
    if root.startswith(s3.SCHEME):
        return S3Store(root)
    path = Path(local_path(root))
    if path.exists() and not path.is_dir():
        raise UsageError(f"{root} is a file: name a folder")
    return LocalStore(path)


def local_path(uri: str) -> str:
    """The absolute path that a URI names. Raises UsageError for what is not on this machine."""
    if "://" in uri:
        raise UsageError(f"{uri}: only local paths can be read and written so far")
    return os.path.abspath(uri)


def read_uri(uri: str, identity: str | None = None) -> bytes:
    """All bytes of a file, local or s3://. Raises OSError; ChangedError if identity is given and differs."""
    if uri.startswith(s3.SCHEME) and identity is None:
        return s3.read(uri)
    with open(local_path(uri), "rb") as file:
        data = file.read()
        # After reading, so that a write before or during it shows.
        if identity is not None and _identity(os.fstat(file.fileno())) != identity:
            raise ChangedError("the file was replaced after it was planned")
        return data


@contextlib.contextmanager
def open_uri(uri: str, identity: str | None = None) -> Iterator[IO[bytes]]:
    """A seekable file, for formats that are read in pieces. Raises as read_uri does."""
    with open(local_path(uri), "rb") as file:
        if identity is not None and _identity(os.fstat(file.fileno())) != identity:
            raise ChangedError("the file was replaced after it was planned")
        yield file


def exists_uri(uri: str) -> bool:
    """Whether a file is there, local or s3://. Raises OSError where that cannot be known."""
    if uri.startswith(s3.SCHEME):
        return s3.exists(uri)
    return os.path.isfile(uri)


def join_uri(folder: str, name: str) -> str:
    """The path of a file in a folder, local or s3://."""
    return f"{folder.rstrip('/')}/{name}" if folder.startswith(s3.SCHEME) else os.path.join(folder, name)


def entry_of(uri: str) -> Entry:
    """The entry of one file, its key the absolute path. Raises OSError."""
    path = local_path(uri)
    status = os.stat(path)
    return Entry(path, status.st_size, _identity(status))


def _walk(folder: Path, prefix: str, above: tuple[tuple[int, int], ...]) -> Iterator[Entry]:
    status = os.stat(folder)
    here = (status.st_dev, status.st_ino)
    if here in above:
        return  # a symbolic link to a folder that we are in
    for entry in _entries(folder):
        try:
            status = entry.stat()
        except FileNotFoundError:
            continue  # it went while we looked, or is a link that leads nowhere
        except OSError as error:
            if entry.is_symlink():
                continue  # it leads to itself
            raise UsageError(f"cannot list {entry.path}: {error.strerror}") from error
        if stat.S_ISDIR(status.st_mode):
            yield from _walk(Path(entry.path), f"{prefix}{entry.name}/", (*above, here))
        elif stat.S_ISREG(status.st_mode):
            yield Entry(prefix + entry.name, status.st_size, _identity(status))


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        return sorted(os.scandir(folder), key=lambda entry: entry.name)
    except PermissionError as error:
        raise UsageError(f"cannot list {folder}: {error.strerror}") from error


def _make_folder(folder: Path) -> None:
    """mkdir -p, so that what it made outlasts a power failure."""
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        _fsync_folder(folder.parent)


def _identity(status: os.stat_result) -> str:
    return f"{status.st_size}-{status.st_mtime_ns}"


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
