"""A seekable file over ranged reads: reading one row group of a Parquet file fetches little else."""

import io
from collections.abc import Callable
from typing import Final

# Bytes at the end of a file that are read at once and kept, because Parquet keeps its footer there.
TAIL: Final = 2**17
# The bytes that a smaller read fetches and keeps.
BLOCK: Final = 2**14


class RangedFile(io.RawIOBase):
    """A read-only file whose bytes come from a function that returns a range of them.

    A read of at least `BLOCK` bytes fetches exactly these; a smaller one fetches and keeps a block. Several
    threads must not use an instance at once.

    Args:
        read_range: Returns the bytes from its first argument up to, without, its second.
        size: The size of the file in bytes.
        tail: The last bytes of the file, already known.
    """

    def __init__(self, read_range: Callable[[int, int], bytes], size: int, tail: bytes) -> None:
        self._read_range = read_range
        self._size = size
        self._tail = size - len(tail), tail
        self._block = 0, b""
        self._position = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Set the position, which may lie beyond the end, and return it."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if start + offset < 0:
            raise ValueError(f"there is no byte {start + offset}")
        self._position = start + offset
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        """Return the next `size` bytes, fewer only at the end of the file; all that are left by default."""
        left = max(0, self._size - self._position)
        start = self._position
        stop = start + (left if size is None or size < 0 else min(size, left))
        data = self._between(start, stop) if stop > start else b""
        self._position += len(data)
        return data

    def readall(self) -> bytes:
        """Return the bytes from the position to the end of the file."""
        return self.read()

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # RawIOBase takes any buffer.
        """Fill a buffer from the position and return the number of bytes written to it."""
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def _between(self, start: int, stop: int) -> bytes:
        for first, known in (self._tail, self._block):
            if first <= start and stop <= first + len(known):
                return known[start - first : stop - first]
        tail_start, tail = self._tail
        if stop > tail_start > start:  # The tail is known and not fetched again.
            return self._between(start, tail_start) + tail[: stop - tail_start]
        if stop - start >= BLOCK:
            return self._read_range(start, stop)
        self._block = start, self._read_range(start, min(start + BLOCK, tail_start))
        return self._block[1][: stop - start]
