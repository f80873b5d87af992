"""Reading Parquet files that may be damaged or hostile, and their columns as single arrays."""

from typing import IO, Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

# Reading a damaged file raises one of these: pyarrow's own errors, or those of text that is not UTF-8 and of
# counts that are out of range.
READ_ERRORS: Final = (pa.ArrowException, OSError, ValueError, KeyError, OverflowError, MemoryError)

# A footer states the lengths of its strings and lists, and memory is allocated before they are read. In an
# honest footer the longest string is the schema or a JSON document, and the longest list has an entry for
# each row group.
_STRING_BYTES: Final = 16 * 2**20
_LIST_LENGTH: Final = 1_000_000


def open_parquet(file: IO[bytes], *, buffer_size: int = 0) -> pq.ParquetFile:
    """Open a Parquet file with page checksums verified and the lengths in its footer limited.

    Args:
        file: The file; it has to be seekable.
        buffer_size: The bytes of a column that are read at a time; 0 reads a whole column chunk.

    Raises:
        pyarrow.ArrowException: The footer is damaged or exceeds the limits. Reading raises this or an OSError
            for a page with a wrong checksum.
        OSError: The file cannot be read.
    """
    return pq.ParquetFile(
        file,
        page_checksum_verification=True,
        buffer_size=buffer_size,
        thrift_string_size_limit=_STRING_BYTES,
        thrift_container_size_limit=_LIST_LENGTH,
    )


def combine_chunks(column: "pa.Array[Any] | pa.ChunkedArray[Any]") -> "pa.Array[Any]":
    """Return a column as one array; an array is returned unchanged."""
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
