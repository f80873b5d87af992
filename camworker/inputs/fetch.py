"""Read the bytes of items from files or from rows of Parquet files."""

import errno
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import groupby
from typing import Final, TypedDict, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from camworker.errors import ChangedError, Failure, UsageError, first_line
from camworker.inputs.read_policy import ReadPolicy
from camworker.storage.parquet import open_parquet
from camworker.storage.uris import Connections, is_s3, open_uri, read_uri

# A raw image of 100 megapixels with four 16-bit channels is smaller. Larger files would exhaust the memory of
# a worker.
MAX_FILE_BYTES: Final = 2**30
_ROWS_PER_BATCH: Final = 64
# Read-ahead within a column chunk. It bounds memory whatever the size of a row group is.
_BUFFER_BYTES: Final = 2**23
# The latency of S3 is about 10 ms, in which one core decodes ten images.
_CONCURRENT_REQUESTS: Final = 32

_REMOVED: Final = Failure("removed", "it is no longer listed")

Fetcher = Callable[[], bytes | Failure]


class _ItemRow(TypedDict):
    uri: str
    source_row: int | None
    identity: str | None


def open_fetchers(
    items: pa.Table, policy: ReadPolicy, connections: Connections | None = None
) -> Iterator[Fetcher]:
    """Yield, for each item in order, a function that returns the bytes of its image.

    Local files are read lazily, in the calling thread. S3 reads start on a background pool as soon as the
    function is yielded, so a consumer that looks ahead prefetches. Rows of Parquet files are read before
    their functions are yielded, a few dozen at a time; row groups without an item are skipped.

    A function returns a `Failure` for an image that cannot be read: "changed" if the file no longer has the
    planned identity, "removed" if the item has no identity (nothing is read), "too_large" for files over
    `MAX_FILE_BYTES`, else "read_error".

    Args:
        items: Table with columns uri, source_row and identity. Items in the same Parquet file follow each
            other, with ascending source_row.
        policy: Which identities are checked. An item in a Parquet file is checked by the identity of the
            file.
        connections: Connections to object stores; by default they are opened for this call.
    """
    rows = cast(list[_ItemRow], items.select(["uri", "source_row", "identity"]).to_pylist())
    connections = connections or Connections()
    requests = ThreadPoolExecutor(_CONCURRENT_REQUESTS)
    try:
        for (uri, in_table, is_removed), group in groupby(rows, _source):
            if is_removed:
                yield from (partial(_value, _REMOVED) for _ in group)
                continue
            if in_table:
                source_rows = [row["source_row"] for row in group if row["source_row"] is not None]
                yield from _table_fetchers(uri, source_rows, policy.tables.get(uri), connections)
                continue
            for row in group:
                identity = row["identity"] if policy.check_identity else None
                read = partial(read_file, uri, identity, connections=connections)
                yield requests.submit(read).result if is_s3(uri) else read
    except GeneratorExit:
        # The consumer stopped early: drop the requests that have not started.
        requests.shutdown(wait=False, cancel_futures=True)
        raise
    requests.shutdown(wait=False)


def _source(row: _ItemRow) -> tuple[str, bool, bool]:
    """Return the key by which rows are grouped: URI, whether it is a table, whether the item is removed."""
    return row["uri"], row["source_row"] is not None, row["identity"] is None


def read_file(
    uri: str, identity: str | None = None, connections: Connections | None = None
) -> bytes | Failure:
    """Read a whole file.

    Args:
        uri: An absolute path or an s3:// URI.
        identity: The identity that the file must have; None accepts any.
        connections: Connections to object stores; by default they are opened for this call.

    Returns:
        The bytes, or a Failure: "changed", "too_large" or "read_error".
    """
    try:
        return read_uri(uri, identity, MAX_FILE_BYTES, connections=connections)
    except ChangedError as error:
        return Failure("changed", str(error))
    except (OSError, UsageError, ValueError) as error:  # ValueError: the path contains a NUL character
        if isinstance(error, OSError) and error.errno == errno.EFBIG:
            return Failure("too_large", str(error.strerror))
        return Failure("read_error", str(error))


def _table_fetchers(
    uri: str, rows: list[int], identity: str | None, connections: Connections
) -> Iterator[Fetcher]:
    yielded = 0
    failure = Failure("changed", "the table has fewer rows than when it was planned")
    try:
        with open_uri(uri, identity, connections=connections) as file:
            table = open_parquet(file, buffer_size=_BUFFER_BYTES)
            for data in _column_values(table, np.array(rows)):
                yield partial(_value, data)
                yielded += 1
    except (ChangedError, OSError, pa.ArrowException, KeyError) as error:
        failure = Failure("changed" if isinstance(error, ChangedError) else "read_error", first_line(error))
    yield from (partial(_value, failure) for _ in rows[yielded:])


def _value(value: bytes | Failure) -> bytes | Failure:
    return value


def _column_values(file: pq.ParquetFile, rows: NDArray[np.int64]) -> Iterator[bytes | Failure]:
    """Yield the bytes in the column image of these rows, which are in ascending order.

    An error in a row group affects only the rows of that group.
    """
    column = bytes_column(file.schema_arrow.field("image").type)
    if column is None:
        raise OSError("its column image holds no bytes")
    first = 0
    for group in range(file.metadata.num_row_groups):
        group_size = file.metadata.row_group(group).num_rows
        group_rows = rows[(rows >= first) & (rows < first + group_size)] - first
        yielded = 0
        try:
            for data in _row_group_values(file, group, column, group_rows):
                yield data
                yielded += 1
        except (pa.ArrowException, OSError) as error:
            failure = Failure("read_error", first_line(error))
            yield from [failure] * (len(group_rows) - yielded)
        first += group_size


def _row_group_values(
    file: pq.ParquetFile, group: int, column: str, rows: NDArray[np.int64]
) -> Iterator[bytes | Failure]:
    if not len(rows):
        return
    first = 0
    for batch in file.iter_batches(batch_size=_ROWS_PER_BATCH, row_groups=[group], columns=[column]):
        values = batch.column(0)
        if isinstance(values, pa.StructArray):
            values = values.field("bytes")
        for row in rows[(rows >= first) & (rows < first + len(values))] - first:
            data = cast(bytes | None, values[int(row)].as_py())
            yield data if data is not None else Failure("read_error", "the row holds no bytes")
        first += len(values)


def bytes_column(kind: pa.DataType | None) -> str | None:
    """Return the Parquet column that holds the bytes of a column image, or None if there is none.

    Args:
        kind: Type of the column image: binary, or a struct with a binary field bytes (as Hugging Face's data
            sets have); None if the table has no such column.
    """
    if isinstance(kind, pa.StructType):
        names = [field.name for field in kind]
        return "image.bytes" if "bytes" in names and bytes_column(kind.field("bytes").type) else None
    if isinstance(kind, pa.DictionaryType):
        kind = kind.value_type
    tests = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)
    return "image" if kind is not None and any(test(kind) for test in tests) else None
