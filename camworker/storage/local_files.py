"""Local files: walked, identified, read when they are what was expected; folders that outlast a crash."""

import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from camworker.errors import ChangedError, UsageError

REPLACED: Final = "the file was replaced after it was planned"


@dataclass(frozen=True, slots=True)
class Entry:
    """One listed object. identity changes when the content does.

    It is size-mtime_ns of a local file, and ETag-size of an object in S3.
    """

    key: str
    size: int
    identity: str


def iter_files(folder: Path, prefix: str, above: tuple[tuple[int, int], ...]) -> Iterator[Entry]:
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
            yield from iter_files(Path(entry.path), f"{prefix}{entry.name}/", (*above, here))
        elif stat.S_ISREG(status.st_mode):
            yield Entry(prefix + entry.name, status.st_size, identity_of_file(status))


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        return sorted(os.scandir(folder), key=lambda entry: entry.name)
    except PermissionError as error:
        raise UsageError(f"cannot list {folder}: {error.strerror}") from error


def durable_mkdir(folder: Path) -> None:
    """mkdir -p, so that what it made outlasts a power failure."""
    if not folder.is_dir():
        durable_mkdir(folder.parent)
        folder.mkdir(exist_ok=True)
        fsync_folder(folder.parent)


def open_file(path: str | Path, identity: str | None) -> IO[bytes]:
    """Open to read. Raises ChangedError when identity is given and differs."""
    file = open(path, "rb")  # noqa: SIM115 the caller closes it
    if identity is not None and identity_of_file(os.fstat(file.fileno())) != identity:
        file.close()
        raise ChangedError(REPLACED)
    return file


def read_file(path: str | Path, identity: str | None, limit: int | None = None) -> bytes:
    """All bytes. Raises as open_file does; OSError with errno EFBIG, unread, for more than limit bytes."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if limit is not None and size > limit:
            raise OSError(errno.EFBIG, f"the file has {size} bytes, over {limit}")
        data = file.read()
        # After reading, so that a write before or during it shows.
        if identity is not None and identity_of_file(os.fstat(file.fileno())) != identity:
            raise ChangedError(REPLACED)
        return data


def identity_of_file(status: os.stat_result) -> str:
    """What changes when a file's content does."""
    return f"{status.st_size}-{status.st_mtime_ns}"


def fsync_folder(folder: Path) -> None:
    """Make the names in a folder outlast a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
