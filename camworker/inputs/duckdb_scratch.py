"""Scratch: tables that need not fit into memory, as Parquet in a temporary folder, and DuckDB over them."""

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

_MEMORY: Final = "1GB"  # beyond it DuckDB goes on in files
_MOST_THREADS: Final = 4  # each holds buffers of its own
_ROWS_AT_ONCE: Final = 65_536


@dataclass(frozen=True, slots=True)
class ItemsFile:
    """Items (schema ITEMS) in a Parquet file of a scratch folder, in their order."""

    path: Path

    @property
    def count(self) -> int:
        return pq.read_metadata(self.path).num_rows

    def batches(self) -> Iterator[pa.Table]:
        """The items, some ten thousand at a time."""
        with pq.ParquetFile(self.path) as file:
            for batch in file.iter_batches(_ROWS_AT_ONCE, use_threads=False):
                yield pa.Table.from_batches([batch]).cast(ITEMS)

    def first(self, count: int) -> pa.Table:
        """The first count items, or all that there are."""
        return next(self.batches(), ITEMS.empty_table()).slice(0, count)

    def read(self) -> pa.Table:
        """All items at once, where they are known to be few."""
        return pa.concat_tables([ITEMS.empty_table(), *self.batches()])


class TableWriter:
    """Writes tables of one schema to a Parquet file, row after row. Use as a context manager."""

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
        for start in range(0, table.num_rows, _ROWS_AT_ONCE):
            self._writer.write_table(table.slice(start, _ROWS_AT_ONCE).cast(self._schema))


@contextmanager
def open_duckdb(folder: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """DuckDB with bounded memory, which spills into folder; what it made ends with it.

    Raises UsageError where neither memory nor disk is enough.
    """
    connection = duckdb.connect(
        config={
            "memory_limit": _MEMORY,
            "threads": min(_MOST_THREADS, len(os.sched_getaffinity(0))),
            "temp_directory": str(folder / "spilled"),
            # Nothing is fetched from anywhere.
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
        }
    )
    try:
        yield connection
    except (duckdb.OutOfMemoryException, duckdb.IOException) as error:
        reason = first_line(error)
        raise UsageError(
            f"planning has no room in {folder}: set TMPDIR to a larger disk ({reason})"
        ) from error
    finally:
        connection.close()


def release_memory() -> None:
    """Give back what allocators keep for later: a driver is to wait for hours with what it needs."""
    pa.default_memory_pool().release_unused()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it
    if trim is not None:
        trim(0)


def parquet(path: Path) -> str:
    """The SQL that reads a Parquet file, with a column row: the place in it."""
    rows = f"read_parquet('{quoted(path)}', file_row_number = true)"
    return f"(select * exclude file_row_number, file_row_number as row from {rows})"


def quoted(path: Path) -> str:
    """A path inside an SQL string."""
    return str(path).replace("'", "''")


def copy(connection: duckdb.DuckDBPyConnection, query: str, path: Path) -> None:
    """Write what a query gives to a Parquet file, in its order."""
    connection.execute(f"copy ({query}) to '{quoted(path)}' (format parquet)").fetchall()
