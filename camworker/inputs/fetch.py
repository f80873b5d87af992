"""Items -> the bytes of their images, from files or from rows of Parquet."""

import errno
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import groupby
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from camworker.errors import ChangedError, Failure, UsageError, first_line
from camworker.inputs.read_policy import ReadPolicy
from camworker.storage.parquet import open_parquet
from camworker.storage.uris import Connections, is_s3, open_uri, read_uri

# More than 100 megapixels of 16-bit RGBA; what is larger would cost a worker its memory.
MAX_FILE_BYTES: Final = 2**30
_ROWS_AT_ONCE: Final = 64
# Of a row group's column, so that its size does not decide how much memory it takes to read.
_BYTES_AT_ONCE: Final = 2**23
# An answer of S3 takes a hundredth of a second to come, in which a core decodes ten images.
_REQUESTS_AT_ONCE: Final = 32

_REMOVED: Final = Failure("removed", "it is no longer listed")

Fetcher = Callable[[], bytes | Failure]


def open_fetchers(
    items: pa.Table, policy: ReadPolicy, connections: Connections | None = None
) -> Iterator[Fetcher]:
    """For each item, in order, a function that returns its bytes or the Failure that its row becomes.

    Local files are read when the function is called, by whatever thread calls it; those in S3 from when
    it is given, by threads of their own, so that whoever takes functions ahead has their bytes ahead.
    Rows of Parquet files are read ahead, a few dozen at a time, from the row groups that hold them. An
    item is "changed" when its file no longer has the planned identity: the item's own with
    policy.check_identity, the table's in policy.tables. One without an identity is "removed", and nothing
    is read.
    """
    rows = items.select(["uri", "source_row", "identity"]).to_pylist()
    connections = connections or Connections()
    requests = ThreadPoolExecutor(_REQUESTS_AT_ONCE)
    try:
        for (uri, in_table, removed), group in groupby(rows, _source):
            if removed:
                yield from (partial(_value, _REMOVED) for _ in group)
                continue
            if in_table:
                group_rows = [row["source_row"] for row in group]
                yield from _table_fetches(uri, group_rows, policy.tables.get(uri), connections)
                continue
            for row in group:
                identity = row["identity"] if policy.check_identity else None
                read = partial(read_file, uri, identity, connections)
                yield requests.submit(read).result if is_s3(uri) else read
    except GeneratorExit:
        requests.shutdown(wait=False, cancel_futures=True)  # nobody wants the rest
        raise
    requests.shutdown(wait=False)


def _source(row: dict[str, Any]) -> tuple[str, bool, bool]:
    """What is read in one go: a file or table, whether it is a table, and whether not to read it."""
    return row["uri"], row["source_row"] is not None, row["identity"] is None


def read_file(
    uri: str, identity: str | None = None, connections: Connections | None = None
) -> bytes | Failure:
    """All bytes of a file, or why there are none; identity: what it has to be, where that is known."""
    try:
        return read_uri(uri, identity, MAX_FILE_BYTES, connections=connections)
    except ChangedError as error:
        return Failure("changed", str(error))
    except (OSError, UsageError, ValueError) as error:  # ValueError: a NUL in a path
        if isinstance(error, OSError) and error.errno == errno.EFBIG:
            return Failure("too_large", str(error.strerror))
        return Failure("read_error", str(error))


def _table_fetches(
    uri: str, wanted: list[int], identity: str | None, connections: Connections
) -> Iterator[Fetcher]:
    given = 0
    failure = Failure("changed", "the table has fewer rows than when it was planned")
    try:
        with open_uri(uri, identity, connections=connections) as file:
            table = open_parquet(file, buffer_size=_BYTES_AT_ONCE)
            for data in _column_values(table, np.array(wanted)):
                yield partial(_value, data)
                given += 1
    except (ChangedError, OSError, pa.ArrowException, KeyError) as error:
        reason = first_line(error)
        failure = Failure("changed" if isinstance(error, ChangedError) else "read_error", reason)
    yield from (partial(_value, failure) for _ in wanted[given:])


def _value(value: bytes | Failure) -> bytes | Failure:
    return value


def _column_values(file: pq.ParquetFile, wanted: NDArray[np.int64]) -> Iterator[bytes | Failure]:
    """The bytes in these rows (ascending) of the column image, in order; whole row groups skipped.

    A row group that does not read costs its own rows.
    """
    column = bytes_column(file.schema_arrow.field("image").type)
    if column is None:
        raise OSError("its column image holds no bytes")
    first = 0
    for group in range(file.metadata.num_row_groups):
        rows = file.metadata.row_group(group).num_rows
        here = wanted[(wanted >= first) & (wanted < first + rows)] - first
        given = 0
        try:
            for data in _row_group_values(file, group, column, here):
                yield data
                given += 1
        except (pa.ArrowException, OSError) as error:
            failure = Failure("read_error", first_line(error))
            yield from [failure] * (len(here) - given)
        first += rows


def _row_group_values(
    file: pq.ParquetFile, group: int, column: str, wanted: NDArray[np.int64]
) -> Iterator[bytes | Failure]:
    if not len(wanted):
        return
    first = 0
    for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE, row_groups=[group], columns=[column]):
        values = batch.column(0)
        if pa.types.is_struct(values.type):
            values = values.field("bytes")
        for row in wanted[(wanted >= first) & (wanted < first + len(values))] - first:
            data = values[int(row)].as_py()
            yield data if data is not None else Failure("read_error", "the row holds no bytes")
        first += len(values)


def bytes_column(kind: pa.DataType | None) -> str | None:
    """Which column to read for the bytes of a column image of this type; None if it has none."""
    if kind is not None and pa.types.is_struct(kind):
        names = [field.name for field in kind]
        return "image.bytes" if "bytes" in names and bytes_column(kind.field("bytes").type) else None
    if kind is not None and pa.types.is_dictionary(kind):
        kind = kind.value_type
    tests = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)
    return "image" if kind is not None and any(test(kind) for test in tests) else None
