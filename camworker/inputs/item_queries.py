"""Operations on items that need not fit into memory: files of items in, a file of items out."""

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

_ROWS: Final = "select * exclude row from {items}"
_TWICE: Final = "select image_id from {items} group by image_id having count(*) > 1"
_KNOWN: Final = """
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
    """Of items: how many, how many of them are there (and not to be removed), and most labels of one.

    bytes: of those that are there; None where one's size is not known.
    """

    count: int
    there: int
    bytes: int | None
    labels: int


def concatenate(pieces: Sequence[ItemsFile]) -> ItemsFile:
    """The items of all pieces, one after another."""
    if len(pieces) == 1:
        return pieces[0]
    whole = ItemsFile(pieces[0].path.with_name("joined.parquet"))
    with TableWriter(whole.path, ITEMS) as writer:
        for piece in pieces:
            for batch in piece.batches():
                writer.write(batch)
    return whole


def by_image_id(items: ItemsFile) -> ItemsFile:
    """The items in the order of their ids, by code points."""
    return _transformed(items, "sorted", _ROWS + " order by image_id")


def refuse_duplicates(items: ItemsFile, location: str) -> None:
    """Raises UsageError where an image_id occurs more than once."""
    with open_duckdb(items.path.parent) as connection:
        query = f"select count(*), min(image_id) from ({_TWICE.format(items=parquet(items.path))})"
        ((count, example),) = connection.execute(query).fetchall()
    if count:
        raise UsageError(f"{location}: {count} image ids occur more than once ({example!r} for one)")


def with_labels(items: ItemsFile, path: str, classes: Classes) -> ItemsFile:
    """The items with the labels of a file (Parquet or CSV: image_id, label) added to those that they have.

    Raises UsageError where the file cannot be used, and where it knows none of the items.
    """
    labels = items.path.with_name("labels.parquet")
    with TableWriter(labels, LABELS) as writer:
        for table in read_labels(path, classes):
            writer.write(table)
    tables = {"items": parquet(items.path), "labels": parquet(labels)}
    labelled = ItemsFile(items.path.with_name("labelled.parquet"))
    with open_duckdb(labelled.path.parent) as connection:
        in_common = "from {labels} semi join {items} items using (image_id) limit 1".format(**tables)
        if not connection.execute(in_common).fetchall():
            theirs, ours = (
                connection.execute(f"select image_id from {table} order by row limit 1").fetchall()
                for table in (tables["labels"], tables["items"])
            )
            if theirs:
                against = repr(ours[0][0]) if ours else "none"
                raise UsageError(
                    f"{path}: no image_id is among the input's ({theirs[0][0]!r} against {against})"
                )
        copy(connection, _KNOWN.format(**tables), labelled.path)
    return labelled


def select_items(items: ItemsFile, *, limit: int | None, sample: int | None, seed: int) -> ItemsFile:
    """What sampling.select takes of a table."""
    if limit is not None:
        items = _transformed(items, "limited", f"{_ROWS} where row < {limit:d} order by row")
    if sample is not None and sample < items.count:
        drawn = f"select row from {{items}} order by sample_hash(image_id) limit {sample:d}"
        items = _transformed(items, "sample", f"{_ROWS} semi join ({drawn}) using (row) order by row", seed)
    return items


def measure(items: ItemsFile) -> ItemStats:
    """Count, bytes and labels of items."""
    query = f"""
        select count(*), count(identity), coalesce(sum(size), 0), count(size),
            coalesce(max(len(labels)), 0) from {parquet(items.path)}
    """
    with open_duckdb(items.path.parent) as connection:
        ((count, there, size, sized, labels),) = connection.execute(query).fetchall()
    return ItemStats(count, there, int(size) if sized == there else None, labels)


def _transformed(items: ItemsFile, name: str, query: str, seed: int = 0) -> ItemsFile:
    """What a query over items gives. seed: of sample_hash, which the query may call."""
    result = ItemsFile(items.path.with_name(f"{name}.parquet"))
    with open_duckdb(items.path.parent) as connection:
        connection.create_function("sample_hash", partial(sample_hash, seed), ["VARCHAR"], "BLOB")
        copy(connection, query.format(items=parquet(items.path)), result.path)
    return result
