"""The interface of every store: list objects, read them, and create them if they are absent."""

import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Final, Protocol

from camworker.errors import UsageError, first_line

# The probe belongs to no recipe, so no reader looks at it. Once it exists, a probe costs one request.
_PROBE_KEY: Final = "ledger/probe"


@dataclass(frozen=True, slots=True)
class Entry:
    """One listed object.

    Attributes:
        key: The key below the root of the store.
        size: The size in bytes.
        identity: A string that changes when the content does: size-mtime_ns of a local file, ETag-size of an
            object in S3.
    """

    key: str
    size: int
    identity: str


class Store(Protocol):
    """Objects below one root. Each is created once, as a whole, and never changed afterwards.

    Keys are plain text: no store parses, unquotes or normalises them. A reader that passes an identity gets a
    ChangedError if the object has another one.
    """

    def list(self, prefix: str = "", start: str = "") -> Iterator[Entry]:
        """List the objects in a folder and below, in no particular order.

        Args:
            prefix: The folder, with or without a slash at its end; empty for the root.
            start: Only objects whose key, after the folder, starts with this text.

        Yields:
            Entries whose keys are relative to the root, not to the folder.

        Raises:
            OSError: The listing broke off; what was yielded before is incomplete.
            UsageError: The folder cannot be listed until its user changes something, such as credentials.
        """

    def read(self, key: str, identity: str | None = None) -> bytes:
        """Return the bytes of an object.

        Raises:
            FileNotFoundError: There is no such object.
            ChangedError: The object has another identity.
        """

    def open(self, key: str, identity: str | None = None) -> IO[bytes]:
        """Open an object as a seekable file, for formats that are read in pieces.

        Raises:
            FileNotFoundError: There is no such object.
            ChangedError: The object has another identity; the methods of the file may raise it as well.
        """

    def create(self, key: str, data: bytes) -> bool:
        """Create an object durably; return False and change nothing if it exists."""

    def exists(self, key: str) -> bool:
        """Return whether the object exists."""


def folder_prefix(folder: str) -> str:
    """Return the text that the keys of all objects in a folder start with."""
    return f"{folder.rstrip('/')}/" if folder else ""


def require_conditional_writes(store: Store, location: str) -> None:
    """Create one object twice, with different bytes, and require that the store refuses the second attempt.

    Without conditional writes two runs could replace each other's parts.

    Raises:
        UsageError: The store replaced the object, or nothing can be written to it.
    """
    try:
        for _ in range(2):
            if not store.create(_PROBE_KEY, uuid.uuid4().hex.encode()):
                return
    except OSError as error:
        raise UsageError(f"cannot write to {location}: {first_line(error)}") from error
    raise UsageError(
        f"the store of {location} replaces objects that should be created only if absent (it ignores "
        "If-None-Match): use another store, or declare that no other run ever writes there",
        parameter="single_writer",
    )
