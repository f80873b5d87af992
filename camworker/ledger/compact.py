"""One clean Parquet data set of a recipe's latest rows, elsewhere: there whole, or not at all."""

import contextlib
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from itertools import chain, count
from pathlib import Path
from typing import IO, Final

import pyarrow as pa
import pyarrow.parquet as pq

from camworker.errors import CorruptedError, UsageError
from camworker.ledger.inventory import sha256_of
from camworker.ledger.snapshot import Snapshot
from camworker.storage.atomic import write_then_rename
from camworker.storage.uris import is_s3, open_store

MANIFEST: Final = "_SUCCESS.json"

# What holds for every row of a recipe; the rest of a part's metadata is about its shard.
_METADATA: Final = (b"schema_version", b"recipe", b"cam_shape", b"frame")
_FILE_BYTES: Final = 128 * 2**20
_GROUP_BYTES: Final = 32 * 2**20  # of rows, before they are encoded as a row group

OpenFile = Callable[[str], AbstractContextManager[IO[bytes]]]


@dataclass(frozen=True, slots=True)
class DataFile:
    """A file of a data set."""

    name: str
    rows: int
    bytes: int
    sha256: str


def compact(
    snapshot: Snapshot,
    to: str,
    rows_per_file: int | None = None,
    on_rows: Callable[[int], None] = lambda rows: None,
) -> list[DataFile]:
    """Write the current row of every image to Parquet files in to, a new folder or s3:// prefix.

    The rows' order is that of generations and shards. A part and a row group at a time are in memory, in
    S3 a file as well. rows_per_file: default as many as make about 128 MB. on_rows is told how many rows
    are written so far. Every part is compared with its run record. Raises UsageError where to is there
    already or cannot be written, CorruptedError for a part that is not as it was committed.
    """
    check_target(to)
    tables = snapshot.iter_latest(hashed=True)
    first = next(tables)
    kept = {name: value for name, value in (first.schema.metadata or {}).items() if name in _METADATA}
    schema = first.schema.with_metadata(kept)
    groups = row_groups(_alike(first, tables, schema), rows_per_file)
    try:
        with _prefix(to, snapshot.ledger.recipe) if is_s3(to) else _folder(to) as (open_file, written):
            written += _write_files(groups, schema, rows_per_file, open_file, on_rows)
    except OSError as error:
        raise UsageError(f"{to} cannot be written: {error}") from error
    return written


def check_target(to: str) -> None:
    """Raises UsageError where something is already."""
    if is_s3(to):
        found = next(iter(open_store(to).list()), None)
        if found is not None and not open_store(to).exists(MANIFEST):
            raise UsageError(f"{to} holds objects without {MANIFEST}: delete them, or name another place")
        taken = found is not None
    else:
        taken = os.path.lexists(to)
    if taken:
        raise UsageError(f"{to} exists already, and nothing is replaced: name another place")


def row_groups(tables: Iterable[pa.Table], rows_per_file: int | None) -> Iterator[pa.Table]:
    """The rows of tables in their order, cut into row groups of some 32 MB.

    None is empty, and with rows_per_file one ends after every so many rows.
    """
    group: list[pa.Table] = []
    left = rows_per_file
    for table in tables:
        while table.num_rows:
            piece = table if left is None else table.slice(0, left)
            table = table.slice(piece.num_rows)
            group.append(piece)
            left = None if left is None else left - piece.num_rows
            if left == 0 or sum(piece.nbytes for piece in group) >= _GROUP_BYTES:
                yield pa.concat_tables(group)
                group, left = [], left or rows_per_file
    if group:
        yield pa.concat_tables(group)


def _alike(first: pa.Table, others: Iterable[pa.Table], schema: pa.Schema) -> Iterator[pa.Table]:
    """The tables with one schema. Raises CorruptedError where one has other columns."""
    for table in chain((first,), others):
        if not table.schema.equals(schema):
            raise CorruptedError("the parts of this recipe differ in their columns: run camworker verify OUT")
        yield table.replace_schema_metadata(schema.metadata)


def _write_files(
    groups: Iterator[pa.Table],
    schema: pa.Schema,
    rows_per_file: int | None,
    open_file: OpenFile,
    on_rows: Callable[[int], None],
) -> Iterator[DataFile]:
    """Files of rows_per_file rows or some 128 MB each, named in order; one is there even without rows."""
    done = 0

    def has_room(rows: int, size: int) -> bool:
        return rows < rows_per_file if rows_per_file else size < _FILE_BYTES

    group = next(groups, None)
    for number in count():
        name, rows = f"part-{number:06d}.parquet", 0
        with open_file(name) as file:
            with pq.ParquetWriter(file, schema, compression="zstd", write_page_checksum=True) as writer:
                while group is not None and has_room(rows, file.tell()):
                    writer.write_table(group, row_group_size=group.num_rows)
                    rows += group.num_rows
                    on_rows(done + rows)
                    group = next(groups, None)
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            data_file = DataFile(name, rows, size, sha256_of(file))
        yield data_file
        done += rows
        if group is None:
            return


@contextlib.contextmanager
def _folder(to: str) -> Iterator[tuple[OpenFile, list[DataFile]]]:
    """Create the files in a hidden folder, which is renamed at the end."""
    with write_then_rename(Path(to), durable=True) as draft:
        draft.mkdir()
        yield lambda name: (draft / name).open("x+b"), []
        check_target(to)  # The rename would replace an empty folder that was created in the meantime.


@contextlib.contextmanager
def _prefix(to: str, recipe: str) -> Iterator[tuple[OpenFile, list[DataFile]]]:
    """Objects below to, and at the end the manifest that names them: without it they are no data set."""
    store = open_store(to)

    def create(name: str, data: bytes) -> None:
        if not store.create(name, data):
            raise UsageError(f"{to}/{name} exists already: something else writes there, name another place")

    @contextlib.contextmanager
    def open_file(name: str) -> Iterator[IO[bytes]]:
        file = io.BytesIO()
        yield file
        create(name, file.getvalue())

    written: list[DataFile] = []
    yield open_file, written
    about = {
        "recipe": recipe,
        "rows": sum(file.rows for file in written),
        "files": [asdict(f) for f in written],
    }
    create(MANIFEST, json.dumps(about, indent=1).encode())
