"""What a reader of OUT opens: the current row of every image of one recipe. Reads, never writes."""

import hashlib
import io
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import IO, Final

import pyarrow as pa
import pyarrow.compute as pc

from camworker.errors import CorruptedError, UsageError, first_line
from camworker.ledger.inventory import inventory_parts, planned_again, recorded_parts
from camworker.ledger.ledger import Ledger, Part, open_ledger
from camworker.storage.parquet import READ_ERRORS, open_parquet
from camworker.storage.uris import open_store

_KEYS: Final = ("image_id", "generation", "status")


def latest(out: str, recipe: str | None = None, columns: Sequence[str] | None = None) -> pa.Table:
    """The current row of every image: of the latest generation that has one, removed images left out.

    out: what localize was given as --output. recipe: needed where out holds several. columns:
    default all. Raises UsageError when there is nothing to read or the recipe is not named, CorruptedError
    when parts are lost or what is read of them is not as it was written.
    """
    tables = list(iter_latest(open_ledger(open_store(out), recipe, out), columns))
    return pa.concat_tables(tables).replace_schema_metadata(None)


def iter_latest(
    ledger: Ledger, columns: Sequence[str] | None = None, *, hashed: bool = False
) -> Iterator[pa.Table]:
    """The rows of latest, a table for each part. Raises as latest does.

    hashed: compare every byte of a part with its run record, not only what is read by page checksums.
    """
    parts = committed_parts(ledger)
    recorded = recorded_parts(ledger) if hashed else {}
    later = later_rows(ledger, parts)
    for place, key in parts.items():
        yield read_latest(ledger, key, later, columns, recorded.get(place))


def committed_parts(ledger: Ledger) -> dict[tuple[int, int], str]:
    """Parts by (generation, shard).

    Raises UsageError where nothing is committed yet, CorruptedError where a part that a run record names
    is not there (and no later generation holds its images) or has another size.
    """
    stock = inventory_parts(ledger)
    for part in stock.misshapen.values():
        size = stock.listed[part.key]
        raise _damaged(part.key, f"has {size} bytes where its run record says {part.bytes}")
    for (generation, shard), part in stock.absent.items():
        if not planned_again(ledger, generation, shard):
            raise _damaged(part.key, "is gone, and its run record names it")
    if parts := ledger.parts():
        return parts
    raise UsageError(f"recipe {ledger.recipe} has no committed part yet: run localize again")


def later_rows(ledger: Ledger, parts: dict[tuple[int, int], str]) -> pa.Table | None:
    """image_id and last generation of every image that a generation after the first holds; None: no such."""
    first = min(generation for generation, _ in parts)
    later = [key for (generation, _), key in parts.items() if generation > first]
    if not later:
        return None
    keys = pa.concat_tables([_read(ledger, key, ["image_id", "generation"]) for key in later])
    return keys.group_by("image_id").aggregate([("generation", "max")]).combine_chunks()


def read_latest(
    ledger: Ledger,
    key: str,
    later: pa.Table | None,
    columns: Sequence[str] | None = None,
    record: Part | None = None,
) -> pa.Table:
    """The current rows of one part. later: what later_rows gave for all parts.

    record: what a run record says of the part: then every byte of it is compared, read or not.
    """
    needed = [*dict.fromkeys([*_KEYS, *columns])] if columns is not None else None
    table = _read(ledger, key, needed, record)
    current = pc.not_equal(table["status"], "removed")
    if later is not None:
        place = pc.index_in(table["image_id"], later["image_id"])
        last = pc.fill_null(later["generation_max"].take(place), table["generation"])
        current = pc.and_(current, pc.equal(last, table["generation"]))
    table = table.filter(current)
    return table.select(list(columns)) if columns is not None else table


def map_shape(ledger: Ledger, key: str, record: Part | None = None) -> tuple[int, int]:
    """(h, w) of the class activation maps in a part; record as in read_latest."""
    return tuple(_read(ledger, key, ["cams"], record).schema.field("cams").type.shape[1:])


def count_statuses(ledger: Ledger, keys: Sequence[str]) -> Counter[str]:
    """Rows by status in these parts."""
    counts = Counter[str]()
    for key in keys:
        counts.update(_read(ledger, key, ["status"])["status"].to_pylist())
    return counts


def _read(ledger: Ledger, key: str, columns: list[str] | None, record: Part | None = None) -> pa.Table:
    """Columns of a part. Raises CorruptedError where they, or with record any byte, are not as written."""
    try:
        if record is None:
            with ledger.store.open(key) as file:
                return _parse(file, columns)
        data = ledger.store.read(key)
        if hashlib.sha256(data).hexdigest() == record.sha256:
            return _parse(io.BytesIO(data), columns)
    except READ_ERRORS as error:
        raise _damaged(key, f"cannot be read ({first_line(error)})") from error
    raise _damaged(key, "is not as it was committed: its SHA-256 is not its run record's")


def _parse(file: IO[bytes], columns: list[str] | None) -> pa.Table:
    table = open_parquet(file).read(columns=columns)
    if missing := set(columns or ()) - set(table.column_names):
        raise KeyError(f"no column {', '.join(sorted(missing))}")
    return table


def _damaged(key: str, what: str) -> CorruptedError:
    return CorruptedError(f"{key} {what}: run camworker verify OUT")
