"""Tables that need not fit into memory: Parquet files in a temporary folder, queried with DuckDB."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from camworker.errors import UsageError, first_line
from camworker.schemas import ITEMS

_MEMORY: Final = "1GB"  # DuckDB spills to disk beyond this limit.
_MAX_THREADS: Final = 4  # Each thread has buffers of its own.
_ROWS_PER_BATCH: Final = 65_536


@dataclass(frozen=True, slots=True)
class ItemsFile:
    """Items (schema ITEMS) in a Parquet file of a scratch folder.

    Attributes:
        path: The file; its rows are in the order of the items.
    """

    path: Path

    @property
    def count(self) -> int:
        """Number of items."""
        return pq.read_metadata(self.path).num_rows

    def batches(self) -> Iterator[pa.Table]:
        """Yield the items in tables of some ten thousand rows."""
        with pq.ParquetFile(self.path) as file:
            for batch in file.iter_batches(_ROWS_PER_BATCH, use_threads=False):
                yield pa.Table.from_batches([batch]).cast(ITEMS)

    def first(self, count: int) -> pa.Table:
        """Return the first `count` items, at most one batch."""
        return next(self.batches(), ITEMS.empty_table()).slice(0, count)

    def read(self) -> pa.Table:
        """Return all items in memory."""
        return pa.concat_tables([ITEMS.empty_table(), *self.batches()])


class TableWriter:
    """Writes tables of one schema to a Parquet file. Use as a context manager.

    Args:
        path: The file to write.
        schema: Schema of the file; tables are cast to it.
    """

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._schema = schema
        self._writer = pq.ParquetWriter(path, schema)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.close()

    def write(self, table: pa.Table) -> None:
        """Append the rows of a table."""
        for start in range(0, table.num_rows, _ROWS_PER_BATCH):
            self._writer.write_table(table.slice(start, _ROWS_PER_BATCH).cast(self._schema))


@contextmanager
def open_duckdb(folder: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open an in-memory DuckDB database with bounded memory.

    Args:
        folder: Folder in which DuckDB spills what exceeds its memory.

    Raises:
        UsageError: A query needs more than the memory limit and the space in the folder.
    """
    connection = duckdb.connect(
        config={
            "memory_limit": _MEMORY,
            "threads": min(_MAX_THREADS, len(os.sched_getaffinity(0))),
            "temp_directory": str(folder / "spilled"),
            # DuckDB must not download extensions.
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
        }
    )
    try:
        yield connection
    except (duckdb.OutOfMemoryException, duckdb.IOException) as error:
        raise UsageError(
            f"there is not enough space in {folder} to plan: set TMPDIR to a folder on a larger disk "
            f"({first_line(error)})"
        ) from error
    finally:
        connection.close()


def release_memory() -> None:
    """Return the free memory of the allocators to the operating system.

    Planning needs much memory for a short time, and the process then waits for workers for hours.
    """
    pa.default_memory_pool().release_unused()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # Only glibc has it.
    if trim is not None:
        trim(0)


def parquet(path: Path) -> str:
    """Return an SQL subquery that reads a Parquet file and numbers its rows from 0 in a column row."""
    rows = f"read_parquet('{quoted(path)}', file_row_number = true)"
    return f"(select * exclude file_row_number, file_row_number as row from {rows})"


def quoted(path: Path) -> str:
    """Return a path escaped for use in an SQL string literal."""
    return str(path).replace("'", "''")


def copy(connection: duckdb.DuckDBPyConnection, query: str, path: Path) -> None:
    """Write the result of a query to a Parquet file, in order."""
    connection.execute(f"copy ({query}) to '{quoted(path)}' (format parquet)").fetchall()
