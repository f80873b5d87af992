"""Copy the current rows of a recipe into a new Parquet data set, which is either complete or absent."""

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

# The file metadata that is the same in all parts of a recipe; the other entries describe one shard.
_METADATA: Final = (b"schema_version", b"recipe", b"cam_shape", b"refined_shape", b"frame")
_FILE_BYTES: Final = 128 * 2**20
_GROUP_BYTES: Final = 32 * 2**20  # in memory, before a row group is encoded

OpenFile = Callable[[str], AbstractContextManager[IO[bytes]]]


@dataclass(frozen=True, slots=True)
class DataFile:
    """A file of a data set.

    Attributes:
        name: Name of the file in the data set.
        rows: Number of rows.
        bytes: Size in bytes.
        sha256: SHA-256 of its content, as hex digits.
    """

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
    """Write the current row of every image to a new data set.

    Rows are in the order of generations and shards. One part and one row group are in memory at a time, and
    for S3 one file as well. Every byte of every part is compared with its run record.

    Args:
        snapshot: What the recipe holds.
        to: The folder or s3:// prefix to create.
        rows_per_file: Number of rows of a file; by default as many as make about 128 MB.
        on_rows: Called with the number of rows that are written so far.

    Returns:
        The files of the data set.

    Raises:
        UsageError: `to` exists or cannot be written, or nothing is committed yet.
        CorruptedError: A part is not as it was committed.
    """
    check_target(to)
    tables = snapshot.iter_latest(hashed=True)
    first = next(tables)
    kept = {name: value for name, value in (first.schema.metadata or {}).items() if name in _METADATA}
    schema = first.schema.with_metadata(kept)
    groups = row_groups(_checked(first, tables, schema), rows_per_file)
    try:
        with _prefix(to, snapshot.ledger.recipe) if is_s3(to) else _folder(to) as (open_file, written):
            written += _write_files(groups, schema, rows_per_file, open_file, on_rows)
    except OSError as error:
        raise UsageError(f"{to} cannot be written: {error}") from error
    return written


def check_target(to: str) -> None:
    """Check that a data set can be created.

    Raises:
        UsageError: There is something at `to`.
    """
    if is_s3(to):
        store = open_store(to)
        exists = next(iter(store.list()), None) is not None
        if exists and not store.exists(MANIFEST):
            raise UsageError(
                f"{to} holds objects without {MANIFEST}: delete them or choose another location",
                parameter="to",
            )
    else:
        exists = os.path.lexists(to)
    if exists:
        raise UsageError(
            f"{to} exists already, and nothing is replaced: choose another location", parameter="to"
        )


def row_groups(tables: Iterable[pa.Table], rows_per_file: int | None) -> Iterator[pa.Table]:
    """Yield the rows of tables, in their order, in row groups of about 32 MB.

    Args:
        tables: Tables of one schema.
        rows_per_file: With this, a row group also ends after every `rows_per_file` rows.

    Yields:
        Tables with at least one row.
    """
    group: list[pa.Table] = []
    rows_left = rows_per_file
    for table in tables:
        while table.num_rows:
            piece = table if rows_left is None else table.slice(0, rows_left)
            table = table.slice(piece.num_rows)
            group.append(piece)
            rows_left = None if rows_left is None else rows_left - piece.num_rows
            if rows_left == 0 or sum(piece.nbytes for piece in group) >= _GROUP_BYTES:
                yield pa.concat_tables(group)
                group, rows_left = [], rows_left or rows_per_file
    if group:
        yield pa.concat_tables(group)


def _checked(first: pa.Table, others: Iterable[pa.Table], schema: pa.Schema) -> Iterator[pa.Table]:
    """Yield the tables with the metadata of a schema; raise CorruptedError if one has other columns."""
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
    """Write files of `rows_per_file` rows or about 128 MB each; there is one even without rows."""
    rows_before = 0

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
                    on_rows(rows_before + rows)
                    group = next(groups, None)
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            data_file = DataFile(name, rows, size, sha256_of(file))
        yield data_file
        rows_before += rows
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
    """Create the files as objects, and at the end the manifest that names them.

    The data set is incomplete until it has the manifest.
    """
    store = open_store(to)

    def create(name: str, data: bytes) -> None:
        if not store.create(name, data):
            raise UsageError(
                f"{to}/{name} exists already: something else writes there, choose another location"
            )

    @contextlib.contextmanager
    def open_file(name: str) -> Iterator[IO[bytes]]:
        file = io.BytesIO()
        yield file
        create(name, file.getvalue())

    written: list[DataFile] = []
    yield open_file, written
    manifest = {
        "recipe": recipe,
        "rows": sum(file.rows for file in written),
        "files": [asdict(file) for file in written],
    }
    create(MANIFEST, json.dumps(manifest, indent=1).encode())
