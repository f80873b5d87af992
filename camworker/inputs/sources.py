"""List the items of an INPUT: what there is to localize, and its known labels."""

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

_TABLE_EXTENSIONS: Final = (".parquet", ".csv")
_CONCURRENT_TABLES: Final = 8
_ENTRIES_PER_BATCH: Final = 65_536

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
    exclude: str | None = None,
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
            exclude=exclude,
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
    exclude: str | None = None,
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
        exclude: Absolute path or s3:// prefix below which nothing is listed, for an output that lies inside
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
        listing = _list(path, location, options, exclude, scratch)
    except OSError as error:
        raise UsageError(
            f"{location} could not be listed completely, nothing was planned: {first_line(error)}"
        ) from error
    refuse_duplicates(listing.items, location)
    if image_labels:
        items = with_labels(listing.items, image_labels, classes, connections=connections)
        listing = replace(listing, items=items)
    return replace(listing, policy=replace(listing.policy, roots=policy.roots))


def check_location(location: str, connections: Connections | None = None) -> str:
    """Return the absolute path or s3:// URI of an input.

    Args:
        location: The input as the user names it.
        connections: Connections to object stores; by default they are opened for this call.

    Raises:
        UsageError: The input does not exist, or its path is not UTF-8.
    """
    path = normalize_location(location)
    try:
        exists = exists_location(path, connections=connections)
    except OSError as error:
        raise UsageError(f"cannot list {error}") from error
    if not exists:
        raise UsageError(f"{location} does not exist: name a folder of images, a Parquet or a CSV file")
    try:
        path.encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"{path!r} is not UTF-8, so it cannot be written to the table of results: rename it"
        ) from error
    return path


def _list(
    path: str, location: str, options: TableOptions, exclude: str | None, scratch: Path
) -> ItemListing[ItemsFile]:
    if entry := _table_entry(path, location, options.connections):
        return _list_tables([entry], os.path.dirname(path), options, scratch)
    images, tables = _list_files(path, exclude, scratch, options.connections)
    if images.count:
        for parameter in ("id_column", "identity_column"):
            if getattr(options, parameter):
                raise UsageError(
                    f"{location} is a folder of images, which has no columns", parameter=parameter
                )
        # Object stores do not promise an order.
        return ItemListing(by_image_id(images) if is_s3(path) else images, ReadPolicy())
    if tables:
        return _list_tables(tables, path, options, scratch)
    raise UsageError(f"{location} holds neither images ({', '.join(IMAGE_EXTENSIONS)}) nor .parquet files")


def _table_entry(path: str, location: str, connections: Connections) -> Entry | None:
    """Return the entry of a table, or None for a folder.

    Raises:
        UsageError: The path is a file of another kind.
    """
    is_table = path.lower().endswith(_TABLE_EXTENSIONS)
    if is_s3(path):
        try:
            return entry_of(path, connections=connections) if is_table else None
        except FileNotFoundError:
            return None  # A prefix can have the name of a table.
    if not os.path.isfile(path):
        return None
    if not is_table:
        raise UsageError(f"{location} is one file: name its folder, a Parquet file or a CSV manifest")
    return entry_of(path)


def _list_files(
    path: str, exclude: str | None, scratch: Path, connections: Connections
) -> tuple[ItemsFile, list[Entry]]:
    """Return the images below a folder as items, in listing order, and its Parquet files, sorted in S3."""
    tables: list[Entry] = []
    images = _iter_images(path, exclude, tables, connections)
    items = ItemsFile(scratch / "files.parquet")
    with TableWriter(items.path, ITEMS) as writer:
        # Batches keep at most some ten thousand entries as Python objects.
        while batch := list(islice(images, _ENTRIES_PER_BATCH)):
            writer.write(_items_of_images(path, batch))
    if is_s3(path):
        tables.sort(key=lambda entry: entry.key)
    return items, tables


def _iter_images(
    path: str, exclude: str | None, tables: list[Entry], connections: Connections
) -> Iterator[Entry]:
    """Yield the images below a folder, and append its Parquet files to `tables`, with locations as keys."""
    for entry in open_store(path, connections).list():
        name = entry.key.lower()
        is_table = name.endswith(".parquet")
        if not (is_table or name.endswith(IMAGE_EXTENSIONS)):
            continue
        location = join_uri(path, entry.key)
        if exclude and is_below(location, exclude):
            continue
        if is_table:
            tables.append(replace(entry, key=location))
        else:
            yield entry


def _items_of_images(path: str, images: list[Entry]) -> pa.Table:
    # A file name that is not UTF-8 cannot be stored as a string. With its bytes escaped, the item keeps its
    # row, whose status says that the file cannot be read.
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


def _list_tables(
    entries: list[Entry], folder: str, options: TableOptions, scratch: Path
) -> ItemListing[ItemsFile]:
    """List all rows of tables in a folder; manifests may name local files in this folder."""
    if not is_s3(folder):
        options = replace(options, roots=(folder, *options.roots))
    pieces = [ItemsFile(scratch / f"table-{number:06d}.parquet") for number in range(len(entries))]

    def list_one(entry: Entry, piece: ItemsFile) -> TableFacts:
        with TableWriter(piece.path, ITEMS) as writer:
            return list_table(entry, options, writer.write)

    with ThreadPoolExecutor(_CONCURRENT_TABLES) as pool:
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
