"""What a reader of OUT opens: the current row of every image of one recipe. Reads, never writes."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from camworker.errors import UsageError
from camworker.ledger import Ledger, open_ledger
from camworker.records import CamShape, predictions_schema
from camworker.store import open_store

_KEYS: Final = ("image_id", "generation", "status")


def latest(out: str, recipe: str | None = None, columns: Sequence[str] | None = None) -> pa.Table:
    """The current row of every image: of the latest generation that has one, removed images left out.

    out: what localize was given as --output. recipe: needed where out holds several. columns:
    default all. Raises UsageError when there is nothing to read or the recipe is not named.
    """
    tables = list(iter_latest(open_ledger(open_store(out), recipe, out), columns))
    return pa.concat_tables(tables).replace_schema_metadata(None)


def iter_latest(ledger: Ledger, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """The rows of latest, a table for each part. Raises UsageError where nothing is committed yet."""
    parts = ledger.parts()
    if not parts:
        raise UsageError(f"recipe {ledger.recipe} has no committed part yet: run localize again")
    newest = _newest(ledger, parts) if len({generation for generation, _ in parts}) > 1 else None
    for key in parts.values():
        table = _read(ledger, key, [*dict.fromkeys([*_KEYS, *columns])] if columns is not None else None)
        current = pc.not_equal(table["status"], "removed")
        if newest is not None:
            rows = pc.index_in(table["image_id"], newest["image_id"])
            current = pc.and_(current, pc.equal(newest["generation_max"].take(rows), table["generation"]))
        table = table.filter(current)
        yield table.select(list(columns)) if columns is not None else table


def failed(ledger: Ledger) -> pa.Table:
    """image_id, identity, status and generation of the current rows that are not ok."""
    columns = ["image_id", "identity", "status", "generation"]
    if not ledger.parts():
        schema = predictions_schema(CamShape(1, 1, 1))
        return pa.schema([schema.field(name) for name in columns]).empty_table()
    tables = [t.filter(pc.not_equal(t["status"], "ok")) for t in iter_latest(ledger, columns)]
    return pa.concat_tables(tables)


def count_statuses(ledger: Ledger, keys: Sequence[str]) -> Counter[str]:
    """Rows by status in these parts."""
    counts = Counter[str]()
    for key in keys:
        counts.update(_read(ledger, key, ["status"])["status"].to_pylist())
    return counts


def _newest(ledger: Ledger, parts: dict[tuple[int, int], str]) -> pa.Table:
    """The last generation of every image_id."""
    keys = pa.concat_tables([_read(ledger, key, ["image_id", "generation"]) for key in parts.values()])
    return keys.group_by("image_id").aggregate([("generation", "max")]).combine_chunks()


def _read(ledger: Ledger, key: str, columns: list[str] | None) -> pa.Table:
    with ledger.store.open(key) as file:
        return pq.ParquetFile(file, page_checksum_verification=True).read(columns=columns)
