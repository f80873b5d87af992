"""Rows of Parquet and CSV -> items: images inside Parquet, manifests of URIs, S3 Inventory's too."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

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

# What S3 Inventory calls them; of a bucket with versions it lists old and deleted ones too.
_INVENTORY: Final = frozenset({"bucket", "key"})
_FLAGS: Final = {"is_latest": True, "is_delete_marker": False}


@dataclass(frozen=True)
class TableOptions:
    """How the tables of an input are read.

    Attributes:
        classes: Classes of the network, to look up labels by name.
        id_column: Column that holds image ids; None takes image_id, id or uri.
        identity_column: Column that holds the identities of the images; None derives them from the files.
        roots: Absolute folders in which a manifest may name local files.
        connections: Connections to object stores.
    """

    classes: Classes
    id_column: str | None
    identity_column: str | None
    roots: tuple[str, ...]
    connections: Connections


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


def list_table(entry: Entry, options: TableOptions, write: Callable[[pa.Table], None]) -> TableFacts:
    """Give the items (schema ITEMS) of one Parquet or CSV file to write, some ten thousand at a time.

    entry.key: where it is. Raises UsageError for a missing column, an empty value, a URI that lies where
    it may not.
    """
    columns = _columns(entry.key, options)
    rows, listed, checkable = (
        parquet_rows(entry.key, options.connections) if columns.holds_images else 0,
        0,
        columns.has_etag,
    )
    for table in column_batches(
        entry.key, columns.needed, text=columns.text, connections=options.connections
    ):
        if columns.inventory:
            table = _images_of_inventory(table, columns.flags)
        items = _items(table, columns, options, entry, listed, rows)
        # Of local files nobody knows an ETag.
        checkable = checkable and bool(pc.all(pc.starts_with(items["uri"], S3_SCHEME)).as_py())
        write(items)
        listed += items.num_rows
    return TableFacts(checkable and options.identity_column is None, columns.holds_images)


@dataclass(frozen=True)
class _Columns:
    """Which columns of a table say what. text: those that are read as strings."""

    ids: str | None
    text: list[str]
    flags: list[str]
    labelled: bool
    holds_images: bool
    inventory: bool
    etag: str
    has_etag: bool

    @property
    def needed(self) -> list[str]:
        return [*self.text, *(["label"] if self.labelled else []), *self.flags]


def _columns(path: str, options: TableOptions) -> _Columns:
    have = column_types(path, options.connections)
    holds_images = not path.lower().endswith(".csv") and bytes_column(have.get("image")) is not None
    inventory = not holds_images and "uri" not in have and have.keys() >= _INVENTORY
    if not (holds_images or inventory or "uri" in have):
        image = f"'image' holds no bytes but {have['image']}" if "image" in have else "there is no 'image'"
        raise UsageError(f"{path} needs a column 'image' (bytes) or 'uri': {image}; it has {', '.join(have)}")
    ids = options.id_column or next((name for name in ("image_id", "id") if name in have), None)
    if ids is None and holds_images:
        raise UsageError(f"{path} has no column 'image_id' or 'id': name one with --id-column")
    etag = "e_tag" if inventory else "etag"
    has_etag = not holds_images and {etag, "size"} <= set(have)
    text = {
        *([ids] if ids else []),
        *(_INVENTORY if inventory else [] if holds_images else ["uri"]),
        *([options.identity_column] if options.identity_column else []),
        *([etag, "size"] if has_etag else []),
    }
    labelled = "label" in have and "label" not in text
    flags = [name for name in _FLAGS if name in have] if inventory else []
    return _Columns(ids, sorted(text), flags, labelled, holds_images, inventory, etag, has_etag)


def _items(
    table: pa.Table, columns: _Columns, options: TableOptions, entry: Entry, first: int, rows: int
) -> pa.Table:
    """Items of a piece of a table. first: the place of its first row; rows: of the whole, with images."""
    path, count = entry.key, table.num_rows
    for name in columns.text:
        if table[name].null_count:
            row = first + pc.index(pc.is_null(table[name]), True).as_py() + 1
            raise UsageError(f"{path}: column {name!r} is empty in row {row}")
    sizes = pa.nulls(count, pa.int64())
    if columns.holds_images:
        places = pa.array(np.arange(first, first + count))
        uris, source_rows = pa.repeat(path, count), places
        identity = pc.binary_join_element_wise(entry.identity, places.cast(pa.string()), "#")
        sizes = pa.repeat(entry.size // max(rows, 1), count)
    else:
        uris = _whole_uris(path, table["uri"], options.roots, first)
        source_rows, identity = pa.nulls(count, pa.int64()), table["uri"]
        if columns.has_etag:
            etags = pc.utf8_trim(table[columns.etag], '"')
            identity = pc.binary_join_element_wise(etags, table["size"], "-")
            sizes = _whole_numbers(table["size"], path)
    if options.identity_column:
        identity = table[options.identity_column]
    labels = label_lists(table["label"], options.classes, path) if columns.labelled else no_labels(count)
    found = [table[columns.ids or "uri"], uris, source_rows, identity, labels, sizes]
    return pa.table([combine_chunks(column) for column in found], schema=ITEMS)


def _images_of_inventory(table: pa.Table, flags: Sequence[str]) -> pa.Table:
    """The current objects that are images by their names, with a column uri."""
    names = pc.utf8_lower(table["key"])
    wanted = pa.array(np.zeros(table.num_rows, bool))
    for extension in IMAGE_EXTENSIONS:
        wanted = pc.or_(wanted, combine_chunks(pc.ends_with(names, extension)))
    for name in flags:
        wanted = pc.and_(wanted, combine_chunks(pc.equal(table[name], _FLAGS[name])))
    table = table.filter(wanted)
    buckets = pc.binary_join_element_wise(S3_SCHEME, table["bucket"], "")
    return table.append_column("uri", pc.binary_join_element_wise(buckets, table["key"], "/"))


def _whole_uris(path: str, uris: pa.ChunkedArray, roots: Sequence[str], first: int) -> pa.Array:
    """URIs as the table's author meant them: a relative path starts at the table's folder.

    first: the place of the first one in the table. Raises UsageError for another scheme, credentials, and
    a local path that is below none of roots.
    """
    scheme = pc.and_(pc.match_substring_regex(uris, ANY_SCHEME), pc.invert(pc.starts_with(uris, S3_SCHEME)))
    refused = pc.or_(scheme, pc.match_substring_regex(uris, CREDENTIALS))
    refused = pc.or_(refused, pc.match_substring_regex(uris, f"^{S3_SCHEME}(/|$)"))
    if (row := pc.index(refused, True).as_py()) >= 0:
        check_location_form(uris[row].as_py(), f"{path}, row {first + row + 1}: ")
        split_s3_uri(uris[row].as_py())
    if pc.all(pc.starts_with(uris, S3_SCHEME)).as_py():
        return combine_chunks(uris)
    base = path.rpartition("/")[0] if is_s3(path) else os.path.dirname(path)
    whole = [_resolve(base, uri) for uri in uris.to_pylist()]
    local = [uri for uri in whole if not is_s3(uri)]
    if (place := find_outside(local, roots)) is not None:
        row = whole.index(local[place])
        raise UsageError(
            f"{path}, row {first + row + 1}: {local[place]} lies in none of "
            f"{', '.join(roots) or 'no local folder'}: name its folder with --local-root"
        )
    return pa.array(whole, pa.string())


def _resolve(base: str, uri: str) -> str:
    if is_s3(uri):
        return uri
    joined = uri if os.path.isabs(uri) else join_uri(base, uri)
    return joined if is_s3(joined) else os.path.abspath(joined)


def _whole_numbers(sizes: pa.ChunkedArray, path: str) -> pa.ChunkedArray:
    try:
        return sizes.cast(pa.int64())
    except pa.ArrowInvalid as error:
        raise UsageError(f"{path}, column 'size': {first_line(error)}") from error
