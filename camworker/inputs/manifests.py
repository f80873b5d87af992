"""List the items of Parquet and CSV tables: images inside Parquet, manifests, S3 Inventory reports."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from camworker.classes import Classes
from camworker.errors import UsageError, first_line
from camworker.images.formats import IMAGE_EXTENSIONS
from camworker.inputs.fetch import bytes_column
from camworker.inputs.image_labels import label_lists, no_labels
from camworker.inputs.tabular import column_batches, column_types, parquet_rows
from camworker.schemas import ITEMS
from camworker.storage.parquet import combine_chunks
from camworker.storage.store import Entry
from camworker.storage.uris import (
    ANY_SCHEME,
    CREDENTIALS,
    S3_SCHEME,
    Connections,
    check_location_form,
    find_outside,
    is_s3,
    join_uri,
    split_s3_uri,
)

# Columns of S3 Inventory. For a bucket with versions it lists old and deleted objects too, marked by flags.
_INVENTORY: Final = frozenset({"bucket", "key"})
_INVENTORY_FLAGS: Final = {"is_latest": True, "is_delete_marker": False}

_Column: TypeAlias = "pa.Array[Any] | pa.ChunkedArray[Any]"


@dataclass(frozen=True)
class TableOptions:
    """How the tables of an input are read.

    Attributes:
        classes: Classes of the network, to look up labels.
        id_column: Column that holds image ids; None takes image_id, id or uri.
        identity_column: Column that holds the identities of the images; None derives them from the files.
        roots: Absolute folders in which a manifest may name local files.
        connections: Connections to object stores.
    """

    classes: Classes
    id_column: str | None
    identity_column: str | None
    roots: tuple[str, ...]
    connections: Connections = field(default_factory=Connections)


@dataclass(frozen=True)
class TableFacts:
    """What holds for all items of one table.

    Attributes:
        identities_are_checkable: Whether identities are those of the files (ETags of S3), so that a reader
            can tell that a file was replaced.
        holds_images: Whether the table holds the bytes of the images.
    """

    identities_are_checkable: bool
    holds_images: bool


@dataclass(frozen=True)
class _Columns:
    """The columns of one table that are read.

    Attributes:
        ids: Column of the image ids; None takes the URIs.
        text: Columns that are read as strings.
        flags: Flags of S3 Inventory that the table has.
        has_labels: Whether there is a column label.
        holds_images: Whether there is a column image with bytes.
        is_inventory: Whether the table is an S3 Inventory report.
        etag: Name of the column of ETags.
        has_etag: Whether there are columns for the ETag and the size of each object.
    """

    ids: str | None
    text: list[str]
    flags: list[str]
    has_labels: bool
    holds_images: bool
    is_inventory: bool
    etag: str
    has_etag: bool

    @property
    def names(self) -> list[str]:
        """Names of all columns to read."""
        return [*self.text, *(["label"] if self.has_labels else []), *self.flags]


def list_table(entry: Entry, options: TableOptions, write: Callable[[pa.Table], None]) -> TableFacts:
    """List the items of one Parquet or CSV file.

    Args:
        entry: The file; its key is the absolute path or URI.
        options: How tables are read.
        write: Called with tables of items (schema ITEMS), some ten thousand rows each.

    Raises:
        UsageError: The file cannot be read, a column is missing, a value is empty, or a URI is refused.
    """
    path, connections = entry.key, options.connections
    columns = _find_columns(path, options)
    total_rows = parquet_rows(path, connections=connections) if columns.holds_images else 0
    checkable = columns.has_etag and options.identity_column is None
    first_row = 0
    for table in column_batches(path, columns.names, text=columns.text, connections=connections):
        if columns.is_inventory:
            table = _images_of_inventory(table, columns.flags)
        _refuse_empty_values(table, columns.text, path, first_row)
        if columns.holds_images:
            items = _items_in_table(table, columns, options, entry, first_row, total_rows)
        else:
            items = _items_of_manifest(table, columns, options, path, first_row)
        # Local files have no ETag to compare with.
        checkable = checkable and bool(pc.all(pc.starts_with(items["uri"], S3_SCHEME)).as_py())
        write(items)
        first_row += items.num_rows
    return TableFacts(checkable, columns.holds_images)


def _find_columns(path: str, options: TableOptions) -> _Columns:
    present = column_types(path, connections=options.connections)
    holds_images = not path.lower().endswith(".csv") and bytes_column(present.get("image")) is not None
    is_inventory = not holds_images and "uri" not in present and present.keys() >= _INVENTORY
    if not (holds_images or is_inventory or "uri" in present):
        problem = (
            f"'image' holds {present['image']}, not bytes" if "image" in present else "there is no 'image'"
        )
        raise UsageError(
            f"{path} needs a column 'image' (bytes) or 'uri': {problem}; it has {', '.join(present)}"
        )
    ids = options.id_column or next((name for name in ("image_id", "id") if name in present), None)
    if ids is None and holds_images:
        raise UsageError(
            f"{path} has no column 'image_id' or 'id': name the column of the image ids",
            parameter="id_column",
        )
    etag = "e_tag" if is_inventory else "etag"
    has_etag = not holds_images and {etag, "size"} <= present.keys()
    text = {
        *([ids] if ids else []),
        *(_INVENTORY if is_inventory else [] if holds_images else ["uri"]),
        *([options.identity_column] if options.identity_column else []),
        *([etag, "size"] if has_etag else []),
    }
    return _Columns(
        ids=ids,
        text=sorted(text),
        flags=[name for name in _INVENTORY_FLAGS if name in present] if is_inventory else [],
        has_labels="label" in present and "label" not in text,
        holds_images=holds_images,
        is_inventory=is_inventory,
        etag=etag,
        has_etag=has_etag,
    )


def _refuse_empty_values(table: pa.Table, names: Sequence[str], path: str, first_row: int) -> None:
    for name in names:
        if table[name].null_count:
            row = first_row + pc.index(pc.is_null(table[name]), True).as_py() + 1
            raise UsageError(f"{path}: column {name!r} is empty in row {row}")


def _items_in_table(
    table: pa.Table,
    columns: _Columns,
    options: TableOptions,
    entry: Entry,
    first_row: int,
    total_rows: int,
) -> pa.Table:
    """Return the items of a batch of a Parquet file that holds images.

    Args:
        table: Rows of the file.
        columns: Its columns.
        options: How tables are read.
        entry: The file.
        first_row: Number of the first row of the batch in the file.
        total_rows: Number of rows of the file.
    """
    rows = pa.array(np.arange(first_row, first_row + table.num_rows))
    sizes = pa.repeat(entry.size // max(total_rows, 1), table.num_rows)
    identities = _join("#", entry.identity, rows.cast(pa.string()))
    return _items(
        table, columns, options, entry.key, pa.repeat(entry.key, len(rows)), rows, identities, sizes
    )


def _items_of_manifest(
    table: pa.Table, columns: _Columns, options: TableOptions, path: str, first_row: int
) -> pa.Table:
    """Return the items of a batch of a manifest; first_row is the number of its first row in the manifest."""
    uris = _absolute_uris(path, table["uri"], options.roots, first_row)
    source_rows = pa.nulls(table.num_rows, pa.int64())
    identities: _Column = table["uri"]
    sizes: _Column = source_rows
    if columns.has_etag:
        etags = pc.utf8_trim(table[columns.etag], '"')
        identities = _join("-", etags, table["size"])
        sizes = _integers(table["size"], path)
    return _items(table, columns, options, path, uris, source_rows, identities, sizes)


def _items(
    table: pa.Table,
    columns: _Columns,
    options: TableOptions,
    path: str,
    uris: _Column,
    source_rows: _Column,
    identities: _Column,
    sizes: _Column,
) -> pa.Table:
    if options.identity_column:
        identities = table[options.identity_column]
    if columns.has_labels:
        labels = label_lists(table["label"], options.classes, path)
    else:
        labels = no_labels(table.num_rows)
    values: list[_Column] = [table[columns.ids or "uri"], uris, source_rows, identities, labels, sizes]
    return pa.table([combine_chunks(column) for column in values], schema=ITEMS)


def _images_of_inventory(table: pa.Table, flags: Sequence[str]) -> pa.Table:
    """Return the rows of current objects with the extension of an image, with a column uri."""
    names = pc.utf8_lower(table["key"])
    is_image: _Column = pa.array(np.zeros(table.num_rows, bool))
    for extension in IMAGE_EXTENSIONS:
        is_image = pc.or_(is_image, pc.ends_with(names, extension))
    for name in flags:
        is_image = pc.and_(is_image, pc.equal(table[name], pa.scalar(_INVENTORY_FLAGS[name])))
    table = table.filter(combine_chunks(is_image))
    folders = _join("", S3_SCHEME, table["bucket"])
    return table.append_column("uri", _join("/", folders, table["key"]))


def _absolute_uris(
    path: str, uris: "pa.ChunkedArray[Any]", roots: Sequence[str], first_row: int
) -> "pa.Array[Any]":
    """Return the URIs of a manifest as absolute paths and s3:// URIs.

    A relative path is relative to the folder of the manifest.

    Args:
        path: The manifest.
        uris: URIs of a batch of its rows.
        roots: Folders in which local files must lie.
        first_row: Number of the first row of the batch in the manifest.

    Raises:
        UsageError: A URI has another scheme or holds credentials, or a local file lies in none of the roots.
    """
    is_other = pc.and_(pc.match_substring_regex(uris, ANY_SCHEME), pc.invert(pc.starts_with(uris, S3_SCHEME)))
    is_refused = pc.or_(is_other, pc.match_substring_regex(uris, CREDENTIALS))
    is_refused = pc.or_(is_refused, pc.match_substring_regex(uris, f"^{S3_SCHEME}(/|$)"))
    if (row := pc.index(is_refused, True).as_py()) >= 0:
        # One of the two functions raises the error that says what is wrong.
        check_location_form(uris[row].as_py(), f"{path}, row {first_row + row + 1}: ")
        split_s3_uri(uris[row].as_py())
    if pc.all(pc.starts_with(uris, S3_SCHEME)).as_py():
        return combine_chunks(uris)
    folder = path.rpartition("/")[0] if is_s3(path) else os.path.dirname(path)
    absolute = [_resolve(folder, uri) for uri in cast(list[str], uris.to_pylist())]
    local = [uri for uri in absolute if not is_s3(uri)]
    if (index := find_outside(local, roots)) is not None:
        row = absolute.index(local[index])
        raise UsageError(
            f"{path}, row {first_row + row + 1}: {local[index]} lies in none of the folders that may be read "
            f"({', '.join(roots) or 'none are local'}): name its folder",
            parameter="local_root",
        )
    return pa.array(absolute, pa.string())


def _resolve(folder: str, uri: str) -> str:
    if is_s3(uri):
        return uri
    joined = uri if os.path.isabs(uri) else join_uri(folder, uri)
    return joined if is_s3(joined) else os.path.abspath(joined)


def _join(separator: str, *columns: "_Column | str") -> _Column:
    """Join strings row by row; a str stands for a column of equal values."""
    # The stubs do not allow a mix of columns and scalars.
    joined = pc.binary_join_element_wise(*columns, separator)  # type: ignore[call-overload]
    return cast(_Column, joined)


def _integers(sizes: "pa.ChunkedArray[Any]", path: str) -> "pa.ChunkedArray[Any]":
    try:
        return sizes.cast(pa.int64())
    except pa.ArrowInvalid as error:
        raise UsageError(f"{path}, column 'size': {first_line(error)}") from error
