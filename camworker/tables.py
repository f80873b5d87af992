"""Tables that users hand in, Parquet or CSV: only the needed columns, and one line where one lacks."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from camworker.errors import ChangedError, UsageError
from camworker.locations import check_location_form
from camworker.store import open_uri


def column_types(path: str) -> dict[str, pa.DataType]:
    """The columns of a Parquet or CSV file. Raises UsageError when it cannot be read as one."""
    with _open_table(path) as file:
        schema = pa.csv.open_csv(file).schema if _is_csv(path) else pq.read_schema(file)
        return dict(zip(schema.names, schema.types, strict=True))


def read_columns(path: str, columns: Sequence[str], *, text: Sequence[str] = ()) -> pa.Table:
    """These columns of a Parquet or CSV file; those in text as strings, whatever they look like.

    Raises UsageError when the file cannot be read or a column is missing.
    """
    have = column_types(path)
    if missing := [name for name in columns if name not in have]:
        raise UsageError(f"{path} has no column {missing[0]!r}: it has {', '.join(have)}")
    with _open_table(path) as file:
        if _is_csv(path):
            # Typed on reading: an id of 007 has to stay what it is, and one of NA too.
            options = pa.csv.ConvertOptions(
                include_columns=columns,
                column_types={name: pa.string() for name in text},
                null_values=[""],
                strings_can_be_null=True,
            )
            table = pa.csv.read_csv(file, convert_options=options)
        else:
            table = pq.ParquetFile(file).read(columns=list(columns))
        for name in text:
            position = table.schema.get_field_index(name)
            table = table.set_column(position, name, table[name].cast(pa.string()))
    return table.select(list(columns))


@contextmanager
def _open_table(path: str) -> Iterator[IO[bytes]]:
    """Open a table's file; what goes wrong while it is read is one line."""
    check_location_form(path)
    try:
        with open_uri(path) as file:
            yield file
    except (OSError, ChangedError, pa.ArrowException) as error:
        raise UsageError(f"{path} cannot be read as {_kind(path)}: {_first_line(error)}") from error


def _is_csv(path: str) -> bool:
    return path.lower().endswith(".csv")


def _kind(path: str) -> str:
    return "CSV" if _is_csv(path) else "Parquet"


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
