"""Opening a Parquet file, whoever wrote it: page checksums looked at, a footer's claims bounded."""

from typing import IO, Final

import pyarrow.parquet as pq

# A footer says how long its strings and lists are before they are there. The longest string of an honest one
# is its schema, or a JSON of what it holds; the longest list its row groups.
_STRING_BYTES: Final = 16 * 2**20
_LIST_LENGTH: Final = 1_000_000


def open_parquet(file: IO[bytes], *, buffer_size: int = 0) -> pq.ParquetFile:
    """The Parquet file in file. buffer_size: bytes that are read of a column at a time; 0: a whole chunk.

    Raises pyarrow.ArrowException or OSError for a footer that is damaged, or claims too much; reading raises
    the same for a page whose checksum is wrong.
    """
    return pq.ParquetFile(
        file,
        page_checksum_verification=True,
        buffer_size=buffer_size,
        thrift_string_size_limit=_STRING_BYTES,
        thrift_container_size_limit=_LIST_LENGTH,
    )
