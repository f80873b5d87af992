"""Queries over items that need not fit into memory: files of items in, a file of items out."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from camworker.classes import Classes
from camworker.errors import UsageError
from camworker.inputs.duckdb_scratch import ItemsFile, TableWriter, copy, open_duckdb, parquet
from camworker.inputs.image_labels import LABELS, read_labels
from camworker.inputs.sampling import sample_hash
from camworker.schemas import ITEMS
from camworker.storage.uris import Connections

_SELECT: Final = "select * exclude row from {items}"
_DUPLICATES: Final = "select image_id from {items} group by image_id having count(*) > 1"
_WITH_LABELS: Final = """
    select items.* exclude row replace (
        case when known.labels is null then items.labels
        else list_sort(list_distinct(list_concat(items.labels, known.labels))) end as labels
    )
    from {items} items left join (
        select image_id, list(label) as labels from {labels} where label >= 0 group by image_id
    ) known using (image_id)
    order by row
"""


@dataclass(frozen=True, slots=True)
class ItemStats:
    """Statistics of items.

    Attributes:
        count: Number of items.
        present: Number of items whose images exist; the others are to be removed.
        bytes: Total size of the images that exist; None if the size of one is unknown.
        max_labels: Largest number of known labels of one item.
    """

    count: int
    present: int
    bytes: int | None
    max_labels: int


def concatenate(pieces: Sequence[ItemsFile]) -> ItemsFile:
    """Return the items of all pieces, one piece after another."""
    if len(pieces) == 1:
        return pieces[0]
    whole = ItemsFile(pieces[0].path.with_name("joined.parquet"))
    with TableWriter(whole.path, ITEMS) as writer:
        for piece in pieces:
            for batch in piece.batches():
                writer.write(batch)
    return whole


def by_image_id(items: ItemsFile) -> ItemsFile:
    """Return the items sorted by the code points of their ids."""
    return _transformed(items, "sorted", _SELECT + " order by image_id")


def refuse_duplicates(items: ItemsFile, location: str) -> None:
    """Check that every image id occurs once.

    Raises:
        UsageError: An image id occurs more than once.
    """
    with open_duckdb(items.path.parent) as connection:
        query = f"select count(*), min(image_id) from ({_DUPLICATES.format(items=parquet(items.path))})"
        ((count, example),) = connection.execute(query).fetchall()
    if count:
        raise UsageError(f"{location}: {count} image ids occur more than once (for example {example!r})")


def with_labels(
    items: ItemsFile, path: str, classes: Classes, *, connections: Connections | None = None
) -> ItemsFile:
    """Return the items with the labels of a file added to the labels that they have.

    Args:
        items: The items.
        path: Parquet or CSV file with columns image_id and label.
        classes: Classes of the network, to look up the labels.
        connections: Connections to object stores; by default they are opened for this call.

    Raises:
        UsageError: The file cannot be used, or none of its image ids is among the items.
    """
    labels = items.path.with_name("labels.parquet")
    with TableWriter(labels, LABELS) as writer:
        for table in read_labels(path, classes, connections=connections):
            writer.write(table)
    tables = {"items": parquet(items.path), "labels": parquet(labels)}
    labelled = ItemsFile(items.path.with_name("labelled.parquet"))
    with open_duckdb(labelled.path.parent) as connection:
        shared_ids = "from {labels} semi join {items} items using (image_id) limit 1".format(**tables)
        if not connection.execute(shared_ids).fetchall():
            label_ids, item_ids = (
                connection.execute(f"select image_id from {table} order by row limit 1").fetchall()
                for table in (tables["labels"], tables["items"])
            )
            if label_ids:
                example = repr(item_ids[0][0]) if item_ids else "none"
                raise UsageError(
                    f"{path}: none of its image ids is among the input's "
                    f"({label_ids[0][0]!r} against {example})"
                )
        copy(connection, _WITH_LABELS.format(**tables), labelled.path)
    return labelled


def select_items(items: ItemsFile, *, limit: int | None, sample: int | None, seed: int) -> ItemsFile:
    """Return the items that `sampling.select` takes."""
    if limit is not None:
        items = _transformed(items, "limited", f"{_SELECT} where row < {limit:d} order by row")
    if sample is not None and sample < items.count:
        drawn = f"select row from {{items}} order by sample_hash(image_id) limit {sample:d}"
        items = _transformed(items, "sample", f"{_SELECT} semi join ({drawn}) using (row) order by row", seed)
    return items


def measure(items: ItemsFile) -> ItemStats:
    """Return the statistics of items."""
    query = f"""
        select count(*), count(identity), coalesce(sum(size), 0), count(size),
            coalesce(max(len(labels)), 0) from {parquet(items.path)}
    """
    with open_duckdb(items.path.parent) as connection:
        ((count, present, size, sized, max_labels),) = connection.execute(query).fetchall()
    return ItemStats(count, present, int(size) if sized == present else None, max_labels)


def _transformed(items: ItemsFile, name: str, query: str, seed: int = 0) -> ItemsFile:
    """Return the result of a query over {items}, which may call sample_hash(image_id) with this seed."""
    result = ItemsFile(items.path.with_name(f"{name}.parquet"))
    with open_duckdb(items.path.parent) as connection:
        connection.create_function("sample_hash", partial(sample_hash, seed), ["VARCHAR"], "BLOB")
        copy(connection, query.format(items=parquet(items.path)), result.path)
    return result
