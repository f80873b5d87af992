"""INPUT -> items: what there is to localize, and its known labels. Their bytes are fetch.py's."""

import os
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from camworker.classes import Classes
from camworker.errors import UsageError
from camworker.fetch import bytes_column
from camworker.records import ITEMS
from camworker.store import Entry, LocalStore, entry_of, local_path
from camworker.tables import column_types, read_columns

IMAGE_SUFFIXES: Final = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff"),
    ".avif",
)


@dataclass(frozen=True)
class Source:
    """Items in listing order (schema ITEMS).

    verifiable: identities are the files' own, so that a reader can tell one that has changed; not so
    where a table names them. tables: Parquet files that hold images -> the file's own identity.
    """

    items: pa.Table
    verifiable: bool
    tables: dict[str, str] = field(default_factory=dict)


def open_source(
    location: str,
    classes: Classes,
    *,
    image_labels: str | None = None,
    id_column: str | None = None,
    identity_column: str | None = None,
    leave_out: str | None = None,
) -> Source:
    """List what there is at location: a folder of images, Parquet, or a manifest (CSV or Parquet).

    image_labels: a Parquet or CSV file of image_id and label. leave_out: an absolute path below which
    nothing is listed, for an output that lies inside its input. Raises UsageError for what cannot be
    planned: nothing there, a missing column, an id twice, a label that classes lacks.
    """
    path = check_location(location)
    if os.path.isfile(path):
        if not path.lower().endswith((".parquet", ".csv")):
            raise UsageError(f"{location} is one file: name its folder, a Parquet file or a CSV manifest")
        entries, images = [entry_of(path)], []
    else:
        found = list(LocalStore(path).list())
        if leave_out:
            below = os.path.relpath(leave_out, path) + os.sep
            found = [entry for entry in found if not entry.key.startswith(below)]
        images = [e for e in found if e.key.lower().endswith(IMAGE_SUFFIXES)]
        entries = [
            Entry(os.path.join(path, e.key), e.size, e.identity)
            for e in found
            if e.key.lower().endswith(".parquet")
        ]
    if images and (id_column or identity_column):
        raise UsageError(
            f"{location} is a folder of images: --id-column and --identity-column are for tables"
        )
    if images:
        source = _images_of_folder(path, images)
    elif entries:
        source = _rows_of_tables(entries, classes, id_column, identity_column)
    else:
        raise UsageError(f"{location} holds neither images ({', '.join(IMAGE_SUFFIXES)}) nor .parquet files")
    _refuse_duplicates(source.items["image_id"], location)
    if image_labels:
        source = replace(source, items=_with_labels(source.items, image_labels, classes))
    return source


def check_location(location: str) -> str:
    """The absolute path of what is to be listed. Raises UsageError when nothing is there."""
    path = local_path(location)
    if not os.path.exists(path):
        raise UsageError(f"{location} does not exist: name a folder of images, a Parquet or a CSV file")
    try:
        path.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"{path!r} is no UTF-8, and its rows could not name it: rename it") from error
    return path


def _images_of_folder(path: str, images: list[Entry]) -> Source:
    # A name that is no UTF-8 cannot be a string; escaped it stays one row, which then cannot be read.
    keys = [e.key.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace") for e in images]
    table = pa.table(
        {
            "image_id": keys,
            "uri": [os.path.join(path, key) for key in keys],
            "source_row": pa.nulls(len(images), pa.int64()),
            "identity": [entry.identity for entry in images],
            "labels": _no_labels(len(images)),
            "size": [entry.size for entry in images],
        },
        ITEMS,
    )
    return Source(table, verifiable=True)


def _rows_of_tables(
    entries: list[Entry], classes: Classes, id_column: str | None, identity_column: str | None
) -> Source:
    tables = [_rows_of_table(entry, classes, id_column, identity_column) for entry in entries]
    items = pa.concat_tables([source.items for source in tables])
    return Source(
        items, verifiable=False, tables={uri: i for source in tables for uri, i in source.tables.items()}
    )


def _rows_of_table(
    entry: Entry, classes: Classes, id_column: str | None, identity_column: str | None
) -> Source:
    path, have = entry.key, column_types(entry.key)
    by_uri = path.lower().endswith(".csv") or bytes_column(have.get("image")) is None
    if by_uri and "uri" not in have:
        image = f"'image' holds no bytes but {have['image']}" if "image" in have else "there is no 'image'"
        raise UsageError(f"{path} needs a column 'image' (bytes) or 'uri': {image}; it has {', '.join(have)}")
    ids = id_column or next((name for name in ("image_id", "id") if name in have), None)
    if ids is None and not by_uri:
        raise UsageError(f"{path} has no column 'image_id' or 'id': name one with --id-column")
    ids = ids or "uri"
    needed = {ids, *(["uri"] if by_uri else []), *([identity_column] if identity_column else [])}
    has_etag = by_uri and {"etag", "size"} <= set(have)
    text = sorted(needed | ({"etag", "size"} if has_etag else set()))
    labelled = "label" in have and "label" not in text
    table = read_columns(path, [*text, *(["label"] if labelled else [])], text=text)
    for name in text:
        if table[name].null_count:
            raise UsageError(f"{path}: column {name!r} has {table[name].null_count} empty values")
    count = table.num_rows
    sizes = pa.nulls(count, pa.int64())
    if by_uri:
        base = os.path.dirname(path)
        uris = pa.array([_resolve(base, uri) for uri in table["uri"].to_pylist()], pa.string())
        if (remote := pc.index(pc.match_substring(uris, "://"), True).as_py()) >= 0:
            raise UsageError(f"{path}: {uris[remote]}: only local files can be read so far")
        identity, source_rows = table["uri"], pa.nulls(count, pa.int64())
        if has_etag:
            identity = pc.binary_join_element_wise(table["etag"], table["size"], "-")
            sizes = _whole_numbers(table["size"], path)
    else:
        uris, source_rows = pa.repeat(path, count), pa.array(np.arange(count))
        identity = pa.array([f"{entry.identity}#{row}" for row in range(count)], pa.string())
        sizes = pa.repeat(entry.size // max(count, 1), count)
    if identity_column:
        identity = table[identity_column]
    labels = _label_lists(table["label"], classes, path) if labelled else _no_labels(count)
    columns = [table[ids], uris, source_rows, identity, labels, sizes]
    items = pa.table([_one_chunk(column) for column in columns], schema=ITEMS)
    # The table's identity stands for its rows', so that the rows' own need no check.
    return Source(items, verifiable=False, tables={} if by_uri else {path: entry.identity})


def _whole_numbers(sizes: pa.ChunkedArray, path: str) -> pa.ChunkedArray:
    try:
        return sizes.cast(pa.int64())
    except pa.ArrowInvalid as error:
        raise UsageError(f"{path}, column 'size': {str(error).splitlines()[0]}") from error


def _resolve(base: str, uri: str) -> str:
    """A URI as the table's author meant it: a relative path starts at the table's folder."""
    return uri if "://" in uri else os.path.abspath(os.path.join(base, uri))


def _refuse_duplicates(ids: pa.ChunkedArray, location: str) -> None:
    counts = pc.value_counts(ids)
    twice = counts.filter(pc.greater(counts.field("counts"), 1))
    if len(twice):
        example = twice[0]["values"].as_py()
        raise UsageError(f"{location}: {len(twice)} image ids occur more than once ({example!r} for one)")


def _with_labels(items: pa.Table, path: str, classes: Classes) -> pa.Table:
    """items with the labels of a file added to those that they have."""
    table = read_columns(path, ["image_id", "label"], text=["image_id"])
    labels = classes.indices(table["label"], f"{path}, column 'label'")
    rows = pc.fill_null(pc.index_in(table["image_id"], items["image_id"].combine_chunks()), -1)
    rows = rows.to_numpy().astype(np.int64)
    if table.num_rows and not (rows >= 0).any():
        theirs, ours = (str(t["image_id"][:1].to_pylist()).strip("[]") for t in (table, items))
        raise UsageError(f"{path}: no image_id is among the input's ({theirs} against {ours or 'none'})")
    column = items["labels"].combine_chunks()
    lengths = pc.list_value_length(column).to_numpy()
    rows = np.concatenate([np.repeat(np.arange(len(column)), lengths), rows])
    labels = np.concatenate([column.flatten().to_numpy(), labels])
    position = ITEMS.get_field_index("labels")
    return items.set_column(position, ITEMS.field(position), _grouped(rows, labels, len(column)))


def _label_lists(column: pa.ChunkedArray, classes: Classes, path: str) -> pa.Array:
    """A table's column of labels, one or a list a row -> lists of class indices."""
    column, where = _one_chunk(column), f"{path}, column 'label'"
    count = len(column)
    rows = np.arange(count)
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        rows = np.repeat(rows, pc.fill_null(pc.list_value_length(column), 0).to_numpy())
        column = column.flatten()
    return _grouped(rows, classes.indices(column, where), count)


def _grouped(rows: NDArray, labels: NDArray, count: int) -> pa.Array:
    """Pairs of row and label -> for each of count rows its distinct labels, ascending."""
    real = (rows >= 0) & (labels >= 0)
    pairs = np.unique(np.stack([rows[real], labels[real].astype(np.int64)]), axis=1)
    offsets = np.searchsorted(pairs[0], np.arange(count + 1))
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(pairs[1], pa.int32()))


def _no_labels(count: int) -> pa.Array:
    return _grouped(np.empty(0, np.int64), np.empty(0, np.int64), count)


def _one_chunk(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
