"""A seekable file over ranged reads, so that one row group of a Parquet file costs no more than itself."""

import io
from collections.abc import Callable
from typing import Final

# The end of a file, which is where Parquet keeps its index: read at once, and kept.
TAIL: Final = 2**17
# What a small read takes along.
BLOCK: Final = 2**14


class RangedFile(io.RawIOBase):
    """The bytes that read_range(start, stop) gives, size of them; tail: the last of them, known already.

    A read of BLOCK bytes or more is one range of just these; a smaller one keeps the block that it is in.
    Not for several threads at once.
    """

    def __init__(self, read_range: Callable[[int, int], bytes], size: int, tail: bytes) -> None:
        self._read_range = read_range
        self._size = size
        self._tail = size - len(tail), tail
        self._block = 0, b""
        self._place = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        if start + offset < 0:
            raise ValueError(f"there is no byte {start + offset}")
        self._place = start + offset
        return self._place

    def read(self, size: int | None = -1) -> bytes:
        left = max(0, self._size - self._place)
        start, stop = self._place, self._place + (left if size is None or size < 0 else min(size, left))
        data = self._between(start, stop) if stop > start else b""
        self._place += len(data)
        return data

    def readall(self) -> bytes:
        return self.read()

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def _between(self, start: int, stop: int) -> bytes:
        for first, known in (self._tail, self._block):
            if first <= start and stop <= first + len(known):
                return known[start - first : stop - first]
        end, tail = self._tail
        if stop > end > start:  # what is known is not asked for again
            return self._between(start, end) + tail[: stop - end]
        if stop - start >= BLOCK:
            return self._read_range(start, stop)
        self._block = start, self._read_range(start, min(start + BLOCK, end))
        return self._block[1][: stop - start]
