"""A store in memory, for tests."""

import io
import threading
from collections.abc import Iterator
from typing import IO

from camworker.errors import ChangedError
from camworker.storage.store import Entry, folder_prefix


class MemoryStore:
    """Objects in a dictionary; their identity is their size."""

    def __init__(self) -> None:
        self._objects: dict[str, bytes] = {}
        self._lock = threading.Lock()

    def list(self, prefix: str = "", start: str = "") -> Iterator[Entry]:
        """List the objects in a folder and below; see `Store.list`."""
        for key in sorted(self._objects):
            if key.startswith(folder_prefix(prefix) + start):
                yield Entry(key, len(self._objects[key]), str(len(self._objects[key])))

    def read(self, key: str, identity: str | None = None) -> bytes:
        """Return the bytes of an object; see `Store.read`."""
        try:
            data = self._objects[key]
        except KeyError:
            raise FileNotFoundError(key) from None
        if identity not in (None, str(len(data))):
            raise ChangedError("the object was replaced after it was planned")
        return data

    def open(self, key: str, identity: str | None = None) -> IO[bytes]:
        """Open an object as a seekable file; see `Store.open`."""
        return io.BytesIO(self.read(key, identity))

    def create(self, key: str, data: bytes) -> bool:
        """Create an object; return False and change nothing if it exists."""
        with self._lock:
            if key in self._objects:
                return False
            self._objects[key] = data
            return True

    def exists(self, key: str) -> bool:
        """Return whether the object exists."""
        return key in self._objects
