"""INPUT -> items: what there is to localize, and its known labels. Their bytes are fetch.py's."""

import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Final, Generic, TypeVar

import pyarrow as pa

from camworker.classes import Classes
from camworker.errors import UsageError, first_line
from camworker.images.formats import IMAGE_EXTENSIONS
from camworker.inputs.duckdb_scratch import ItemsFile, TableWriter
from camworker.inputs.image_labels import no_labels
from camworker.inputs.item_queries import by_image_id, concatenate, refuse_duplicates, with_labels
from camworker.inputs.manifests import TableFacts, TableOptions, list_table
from camworker.inputs.read_policy import ReadPolicy
from camworker.schemas import ITEMS
from camworker.storage.store import Entry
from camworker.storage.uris import (
    Connections,
    entry_of,
    exists_location,
    is_below,
    is_s3,
    join_uri,
    normalize_location,
    open_store,
)

_TABLE_SUFFIXES: Final = (".parquet", ".csv")
_TABLES_AT_ONCE: Final = 8
_ENTRIES_AT_ONCE: Final = 65_536


Items = TypeVar("Items", pa.Table, ItemsFile)


@dataclass(frozen=True)
class ItemListing(Generic[Items]):
    """The items of an input.

    Attributes:
        items: Items (schema ITEMS): a table, or a scratch file where there may be millions of them. Local
            files and tables are in listing order, objects of S3 in the order of their image ids.
        policy: How the files of the items are read. Its tables are the Parquet files of the input that hold
            images.
    """

    items: Items
    policy: ReadPolicy


def open_source(
    location: str,
    classes: Classes,
    *,
    image_labels: str | None = None,
    id_column: str | None = None,
    identity_column: str | None = None,
    leave_out: str | None = None,
    policy: ReadPolicy = ReadPolicy(),
) -> ItemListing[pa.Table]:
    """List the items at a location as a table in memory.

    The arguments and errors are those of `list_source`.
    """
    with tempfile.TemporaryDirectory(prefix="camworker-") as folder:
        listing = list_source(
            location,
            classes,
            Path(folder),
            image_labels=image_labels,
            id_column=id_column,
            identity_column=identity_column,
            leave_out=leave_out,
            policy=policy,
        )
        return ItemListing(listing.items.read(), listing.policy)


def list_source(
    location: str,
    classes: Classes,
    scratch: Path,
    *,
    image_labels: str | None = None,
    id_column: str | None = None,
    identity_column: str | None = None,
    leave_out: str | None = None,
    policy: ReadPolicy = ReadPolicy(),
) -> ItemListing[ItemsFile]:
    """List the items at a location.

    Args:
        location: A folder or an s3:// prefix with images or with Parquet files that hold images, one such
            Parquet file, or a manifest of image URIs (CSV or Parquet).
        classes: Classes of the network, to look up labels by name.
        scratch: Folder for temporary files; the items are returned in a file in this folder.
        image_labels: Parquet or CSV file with columns image_id and label, added to the labels of the items.
        id_column: Column of a table that holds image ids; by default image_id, id or uri.
        identity_column: Column of a table that holds the identities of the images; by default they are
            derived from the files.
        leave_out: Absolute path or s3:// prefix below which nothing is listed, for an output that lies inside
            its input.
        policy: `roots` are further local folders in which a manifest may name files.

    Returns:
        The items and a policy for reading them, which checks identities only where they can be checked.

    Raises:
        UsageError: The location holds no images, a column is missing, an image id occurs twice, a label is
            not among the classes, or the listing broke off.
    """
    connections = Connections()
    path = check_location(location, connections)
    roots = tuple(map(os.path.abspath, policy.roots))
    options = TableOptions(classes, id_column, identity_column, roots, connections)
    try:
        listing = _list(path, location, options, leave_out, scratch)
    except OSError as error:
        reason = first_line(error)
        raise UsageError(
            f"{location} could not be listed to its end, nothing was planned: {reason}"
        ) from error
    refuse_duplicates(listing.items, location)
    if image_labels:
        listing = replace(listing, items=with_labels(listing.items, image_labels, classes))
    return replace(listing, policy=replace(listing.policy, roots=policy.roots))


def check_location(location: str, connections: Connections | None = None) -> str:
    """The absolute path or s3:// URI of what is to be listed. Raises UsageError when nothing is there."""
    path = normalize_location(location)
    try:
        there = exists_location(path, connections=connections)
    except OSError as error:
        raise UsageError(f"cannot list {error}") from error
    if not there:
        raise UsageError(f"{location} does not exist: name a folder of images, a Parquet or a CSV file")
    try:
        path.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"{path!r} is no UTF-8, and its rows could not name it: rename it") from error
    return path


def _list(
    path: str, location: str, options: TableOptions, leave_out: str | None, scratch: Path
) -> ItemListing[ItemsFile]:
    if entry := _one_file(path, location, options.connections):
        return _rows_of_tables([entry], os.path.dirname(path), options, scratch)
    images, tables = _files_below(path, leave_out, scratch, options.connections)
    if images.count and (options.id_column or options.identity_column):
        raise UsageError(
            f"{location} is a folder of images: --id-column and --identity-column are for tables"
        )
    if images.count:
        # In S3 no order is promised.
        return ItemListing(by_image_id(images) if is_s3(path) else images, ReadPolicy())
    if tables:
        return _rows_of_tables(tables, path, options, scratch)
    raise UsageError(f"{location} holds neither images ({', '.join(IMAGE_EXTENSIONS)}) nor .parquet files")


def _one_file(path: str, location: str, connections: Connections) -> Entry | None:
    """The entry of a table that path names; None for a folder. Raises UsageError for another file."""
    is_table = path.lower().endswith(_TABLE_SUFFIXES)
    if is_s3(path):
        try:
            return entry_of(path, connections=connections) if is_table else None
        except FileNotFoundError:
            return None  # a prefix may be called so as well
    if not os.path.isfile(path):
        return None
    if not is_table:
        raise UsageError(f"{location} is one file: name its folder, a Parquet file or a CSV manifest")
    return entry_of(path, connections=connections)


def _files_below(
    path: str, leave_out: str | None, scratch: Path, connections: Connections
) -> tuple[ItemsFile, list[Entry]]:
    """The images below path as items, as they come, and the Parquet files there, by name."""
    tables: list[Entry] = []
    images, items = _images_below(path, leave_out, tables, connections), ItemsFile(scratch / "files.parquet")
    with TableWriter(items.path, ITEMS) as writer:
        # Columns at once, not objects.
        while some := list(islice(images, _ENTRIES_AT_ONCE)):
            writer.write(_items_of_images(path, some))
    if is_s3(path):
        tables.sort(key=lambda entry: entry.key)
    return items, tables


def _images_below(
    path: str, leave_out: str | None, tables: list[Entry], connections: Connections
) -> Iterator[Entry]:
    """The images below path; the Parquet files on the way go into tables, with whole locations as keys."""
    for entry in open_store(path, connections).list():
        name = entry.key.lower()
        where = join_uri(path, entry.key) if name.endswith((*IMAGE_EXTENSIONS, ".parquet")) else ""
        if not where or (leave_out and is_below(where, leave_out)):
            continue
        if name.endswith(".parquet"):
            tables.append(replace(entry, key=where))
        else:
            yield entry


def _items_of_images(path: str, images: list[Entry]) -> pa.Table:
    # A name that is no UTF-8 cannot be a string; escaped it stays one row, which then cannot be read.
    keys = [e.key.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace") for e in images]
    return pa.table(
        {
            "image_id": keys,
            "uri": [join_uri(path, key) for key in keys],
            "source_row": pa.nulls(len(images), pa.int64()),
            "identity": [entry.identity for entry in images],
            "labels": no_labels(len(images)),
            "size": [entry.size for entry in images],
        },
        ITEMS,
    )


def _rows_of_tables(
    entries: list[Entry], folder: str, options: TableOptions, scratch: Path
) -> ItemListing[ItemsFile]:
    """All rows of tables that lie in folder, which URIs may name files in."""
    if not is_s3(folder):
        options = replace(options, roots=(folder, *options.roots))
    pieces = [ItemsFile(scratch / f"table-{number:06d}.parquet") for number in range(len(entries))]

    def list_one(entry: Entry, piece: ItemsFile) -> TableFacts:
        with TableWriter(piece.path, ITEMS) as writer:
            return list_table(entry, options, writer.write)

    with ThreadPoolExecutor(_TABLES_AT_ONCE) as pool:
        facts = list(pool.map(list_one, entries, pieces))
    policy = ReadPolicy(
        check_identity=all(table.identities_are_checkable for table in facts),
        tables={
            entry.key: entry.identity
            for entry, table in zip(entries, facts, strict=True)
            if table.holds_images
        },
    )
    return ItemListing(concatenate(pieces), policy)
