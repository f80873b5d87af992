"""Tables that users hand in, Parquet or CSV: only the needed columns, and one line where one lacks."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO, Final

import pyarrow as pa
import pyarrow.csv

from camworker.errors import ChangedError, UsageError, first_line
from camworker.storage.parquet import open_parquet
from camworker.storage.uris import Connections, check_location_form, open_uri

_ROWS_AT_ONCE: Final = 65_536


def column_types(path: str, connections: Connections | None = None) -> dict[str, pa.DataType]:
    """The columns of a Parquet or CSV file. Raises UsageError when it cannot be read as one."""
    with _open_table(path, connections) as file:
        schema = pa.csv.open_csv(file).schema if _is_csv(path) else open_parquet(file).schema_arrow
        return dict(zip(schema.names, schema.types, strict=True))


def read_columns(
    path: str, columns: Sequence[str], *, text: Sequence[str] = (), connections: Connections | None = None
) -> pa.Table:
    """These columns of a Parquet or CSV file; those in text as strings, whatever they look like.

    Raises UsageError when the file cannot be read or a column is missing.
    """
    have = column_types(path, connections)
    if missing := [name for name in columns if name not in have]:
        raise UsageError(f"{path} has no column {missing[0]!r}: it has {', '.join(have)}")
    with _open_table(path, connections) as file:
        if _is_csv(path):
            options = _csv_options(columns, {name: pa.string() for name in text})
            table = pa.csv.read_csv(file, convert_options=options)
        else:
            table = open_parquet(file).read(columns=list(columns))
        table = _as_text(table, text)
    return table.select(list(columns))


def column_batches(
    path: str, columns: Sequence[str], *, text: Sequence[str] = (), connections: Connections | None = None
) -> Iterator[pa.Table]:
    """As read_columns, some ten thousand rows at a time, so that a table's size costs no memory."""
    have = column_types(path, connections)
    if missing := [name for name in columns if name not in have]:
        raise UsageError(f"{path} has no column {missing[0]!r}: it has {', '.join(have)}")
    if _is_csv(path) and (others := [name for name in columns if name not in text]):
        # A CSV's types are known when all of it is read: a column of numbers may end in words.
        kinds = dict(
            zip(others, read_columns(path, others, connections=connections).schema.types, strict=True)
        )
    else:
        kinds = {}
    with _open_table(path, connections) as file:
        if _is_csv(path):
            options = _csv_options(columns, {**kinds, **{name: pa.string() for name in text}})
            batches: Iterable[pa.RecordBatch] = pa.csv.open_csv(file, convert_options=options)
        else:
            batches = open_parquet(file).iter_batches(_ROWS_AT_ONCE, columns=list(columns))
        for batch in batches:
            yield _as_text(pa.Table.from_batches([batch]), text).select(list(columns))


def parquet_rows(path: str, connections: Connections | None = None) -> int:
    """Rows of a Parquet file. Raises UsageError when it cannot be read as one."""
    with _open_table(path, connections) as file:
        return open_parquet(file).metadata.num_rows


def _csv_options(columns: Sequence[str], types: Mapping[str, pa.DataType]) -> pa.csv.ConvertOptions:
    # Typed on reading: an id of 007 has to stay what it is, and one of NA too.
    return pa.csv.ConvertOptions(
        include_columns=list(columns), column_types=types, null_values=[""], strings_can_be_null=True
    )


def _as_text(table: pa.Table, names: Sequence[str]) -> pa.Table:
    for name in names:
        table = table.set_column(table.schema.get_field_index(name), name, table[name].cast(pa.string()))
    return table


@contextmanager
def _open_table(path: str, connections: Connections | None) -> Iterator[IO[bytes]]:
    """Open a table's file; what goes wrong while it is read is one line."""
    check_location_form(path)
    try:
        with open_uri(path, connections=connections) as file:
            yield file
    except (OSError, ChangedError, pa.ArrowException) as error:
        raise UsageError(f"{path} cannot be read as {_kind(path)}: {first_line(error)}") from error


def _is_csv(path: str) -> bool:
    return path.lower().endswith(".csv")


def _kind(path: str) -> str:
    return "CSV" if _is_csv(path) else "Parquet"
