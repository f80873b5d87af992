"""Objects as files in a local folder."""

import errno
import os
import stat
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final

from camworker.errors import ChangedError, UsageError
from camworker.storage.store import Entry, folder_prefix

_REPLACED: Final = "the file was replaced after it was planned"
_SCRATCH: Final = ".scratch/"


class LocalStore:
    """A folder whose files are the objects.

    A killed writer leaves at most a draft in the folder `.scratch`, never a part of an object.

    Args:
        root: The folder; it is created with the first object.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).absolute()

    def list(self, prefix: str = "", start: str = "") -> Iterator[Entry]:
        """List the files in a folder and below, sorted within each folder; see `Store.list`."""
        folder = self.root / prefix
        if folder.is_dir():
            parent_key = folder_prefix(prefix)
            for entry in iter_files(folder, parent_key):
                if entry.key.startswith(parent_key + start) and not entry.key.startswith(_SCRATCH):
                    yield entry

    def read(self, key: str, identity: str | None = None) -> bytes:
        """Return the bytes of a file; see `Store.read`."""
        return read_local_file(self.root / key, identity)

    def open(self, key: str, identity: str | None = None) -> IO[bytes]:
        """Open a file for reading; see `Store.open`."""
        return open_local_file(self.root / key, identity)

    def create(self, key: str, data: bytes) -> bool:
        """Create a file durably; return False and change nothing if it exists."""
        target, scratch = self.root / key, self.root / _SCRATCH
        durable_mkdir(target.parent)
        scratch.mkdir(exist_ok=True)
        draft = scratch / uuid.uuid4().hex
        try:
            with open(draft, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            # This is the commit: a hard link fails if the name exists, whereas a rename replaces the file.
            os.link(draft, target)
        except FileExistsError:
            return False
        finally:
            draft.unlink(missing_ok=True)
        fsync_path(target.parent)
        return True

    def exists(self, key: str) -> bool:
        """Return whether the file exists."""
        return (self.root / key).is_file()


def iter_files(folder: Path, prefix: str, ancestors: tuple[tuple[int, int], ...] = ()) -> Iterator[Entry]:
    """Walk a folder and yield an entry for each regular file, following symbolic links.

    Args:
        folder: The folder to walk.
        prefix: The text before each key, empty or ending in a slash.
        ancestors: Device and inode of the folders that the walk is in, so that a link to one of them ends it.

    Raises:
        UsageError: A folder or file cannot be read.
    """
    status = os.stat(folder)
    folder_id = (status.st_dev, status.st_ino)
    if folder_id in ancestors:
        return
    for entry in _sorted_entries(folder):
        try:
            status = entry.stat()
        except FileNotFoundError:
            continue  # The file was deleted during the walk, or the symbolic link is broken.
        except OSError as error:
            if entry.is_symlink():
                continue  # The link leads to itself.
            raise UsageError(f"cannot list {entry.path}: {error.strerror}") from error
        if stat.S_ISDIR(status.st_mode):
            yield from iter_files(Path(entry.path), f"{prefix}{entry.name}/", (*ancestors, folder_id))
        elif stat.S_ISREG(status.st_mode):
            yield Entry(prefix + entry.name, status.st_size, identity_of_file(status))


def _sorted_entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        return sorted(os.scandir(folder), key=lambda entry: entry.name)
    except PermissionError as error:
        raise UsageError(f"cannot list {folder}: {error.strerror}") from error


def open_local_file(path: str | Path, identity: str | None) -> IO[bytes]:
    """Open a file for reading.

    Raises:
        ChangedError: An identity is given and the file has another one.
    """
    file = open(path, "rb")  # noqa: SIM115  The caller closes it.
    if identity is not None and identity_of_file(os.fstat(file.fileno())) != identity:
        file.close()
        raise ChangedError(_REPLACED)
    return file


def read_local_file(path: str | Path, identity: str | None, limit: int | None = None) -> bytes:
    """Return the bytes of a file.

    Raises:
        ChangedError: An identity is given and the file has another one.
        OSError: The file cannot be read. With more than `limit` bytes errno is EFBIG and nothing was read.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if limit is not None and size > limit:
            raise OSError(errno.EFBIG, f"the file has {size} bytes, over {limit}")
        data = file.read()
        # The identity is checked after reading, so that a write before or during the read is noticed.
        if identity is not None and identity_of_file(os.fstat(file.fileno())) != identity:
            raise ChangedError(_REPLACED)
        return data


def identity_of_file(status: os.stat_result) -> str:
    """Return the identity of a local file: its size and modification time."""
    return f"{status.st_size}-{status.st_mtime_ns}"


def durable_mkdir(folder: Path) -> None:
    """Create a folder and its parents so that they survive a power failure."""
    if not folder.is_dir():
        durable_mkdir(folder.parent)
        folder.mkdir(exist_ok=True)
        fsync_path(folder.parent)


def fsync_path(path: Path) -> None:
    """Make the content of a file, or the names in a folder, survive a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
