"""Read the required columns of a user's Parquet or CSV file; a missing column is a one-line UsageError."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO, Final

import pyarrow as pa
import pyarrow.csv

from camworker.errors import ChangedError, UsageError, first_line
from camworker.storage.parquet import open_parquet
from camworker.storage.uris import Connections, check_location_form, open_uri

_ROWS_PER_BATCH: Final = 65_536


def column_types(path: str, connections: Connections | None = None) -> dict[str, pa.DataType]:
    """Return the names and types of the columns of a Parquet or CSV file.

    The types of a CSV file are those of its first block.

    Raises:
        UsageError: The file cannot be read.
    """
    with _open_table(path, connections) as file:
        schema = pa.csv.open_csv(file).schema if _is_csv(path) else open_parquet(file).schema_arrow
        return dict(zip(schema.names, schema.types, strict=True))


def read_columns(
    path: str,
    columns: Sequence[str],
    *,
    text: Sequence[str] = (),
    connections: Connections | None = None,
) -> pa.Table:
    """Read columns of a Parquet or CSV file.

    Args:
        path: A path or s3:// URI; files that do not end in .csv are Parquet.
        columns: Names of the columns to read.
        text: Those of the columns that are returned as strings, whatever their values look like.
        connections: Connections to object stores; by default they are opened for this call.

    Returns:
        A table with these columns, in this order.

    Raises:
        UsageError: The file cannot be read, or a column is missing.
    """
    _require_columns(path, columns, connections)
    with _open_table(path, connections) as file:
        if _is_csv(path):
            options = _csv_options(columns, dict.fromkeys(text, pa.string()))
            table = pa.csv.read_csv(file, convert_options=options)
        else:
            table = open_parquet(file).read(columns=list(columns))
        table = _with_text(table, text)
    return table.select(list(columns))


def column_batches(
    path: str,
    columns: Sequence[str],
    *,
    text: Sequence[str] = (),
    connections: Connections | None = None,
) -> Iterator[pa.Table]:
    """Yield columns of a Parquet or CSV file in batches of some ten thousand rows.

    Memory does not grow with the size of the file, except for CSV columns that are not text: their types are
    known only when all of their values have been read.

    The arguments and errors are those of `read_columns`.
    """
    _require_columns(path, columns, connections)
    types: dict[str, pa.DataType] = {}
    if _is_csv(path) and (typed := [name for name in columns if name not in text]):
        # A column of numbers may end in words, so the types come from a pass over the whole file.
        types = dict(zip(typed, read_columns(path, typed, connections=connections).schema.types, strict=True))
    with _open_table(path, connections) as file:
        if _is_csv(path):
            options = _csv_options(columns, types | dict.fromkeys(text, pa.string()))
            batches: Iterable[pa.RecordBatch] = pa.csv.open_csv(file, convert_options=options)
        else:
            batches = open_parquet(file).iter_batches(_ROWS_PER_BATCH, columns=list(columns))
        for batch in batches:
            yield _with_text(pa.Table.from_batches([batch]), text).select(list(columns))


def parquet_rows(path: str, connections: Connections | None = None) -> int:
    """Return the number of rows of a Parquet file.

    Raises:
        UsageError: The file cannot be read.
    """
    with _open_table(path, connections) as file:
        return open_parquet(file).metadata.num_rows


def _require_columns(path: str, columns: Sequence[str], connections: Connections | None) -> None:
    present = column_types(path, connections=connections)
    if missing := [name for name in columns if name not in present]:
        raise UsageError(f"{path} has no column {missing[0]!r}: it has {', '.join(present)}")


def _csv_options(columns: Sequence[str], types: Mapping[str, pa.DataType]) -> pa.csv.ConvertOptions:
    # Types are set before parsing, so that the id 007 keeps its zeros and the id NA is not read as null.
    return pa.csv.ConvertOptions(
        include_columns=list(columns), column_types=dict(types), null_values=[""], strings_can_be_null=True
    )


def _with_text(table: pa.Table, names: Sequence[str]) -> pa.Table:
    for name in names:
        table = table.set_column(table.schema.get_field_index(name), name, table[name].cast(pa.string()))
    return table


@contextmanager
def _open_table(path: str, connections: Connections | None) -> Iterator[IO[bytes]]:
    """Open a table's file and turn errors of opening and reading it into a one-line UsageError."""
    check_location_form(path)
    try:
        with open_uri(path, connections=connections) as file:
            yield file
    except (OSError, ChangedError, pa.ArrowException) as error:
        kind = "CSV" if _is_csv(path) else "Parquet"
        raise UsageError(f"{path} cannot be read as {kind}: {first_line(error)}") from error


def _is_csv(path: str) -> bool:
    return path.lower().endswith(".csv")
