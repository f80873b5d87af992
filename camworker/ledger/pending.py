"""Find the pending items: those listed now that no earlier generation holds as they are.

The rules are one SQL query, so that neither the listing nor the plans have to fit into memory. It reads these
tables:

```
items       image_id, uri, source_row, identity, labels, size, row           the listing; row: its order
planned     image_id, uri, source_row, identity, labels, shard, generation   identity is null for a removal
failed      image_id, identity, generation, status                           rows neither "ok" nor "removed"
lost        generation, shard              parts that a run record names and that are missing
unfinished  generation, shard              planned shards whose items count as pending
```
"""

import hashlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Final

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from camworker.errors import CorruptedError
from camworker.inputs.duckdb_scratch import ItemsFile, TableWriter, copy, open_duckdb, parquet, quoted
from camworker.ledger.ledger import Ledger
from camworker.ledger.records import PlanFile
from camworker.ledger.snapshot import Snapshot, read_latest
from camworker.schemas import PLAN
from camworker.storage.atomic import write_then_rename

_THREADS: Final = 8
_COPY_BYTES: Final = 4 * 2**20
_FAILED_COLUMNS: Final[dict[str, pa.DataType]] = {
    "image_id": pa.string(),
    "identity": pa.string(),
    "status": pa.string(),
    "generation": pa.int32(),
}
_FAILED: Final = pa.schema(_FAILED_COLUMNS)
_SHARDS: Final = pa.schema([("generation", pa.int32()), ("shard", pa.int32())])
_NO_FAILURE: Final = {"ok", "removed"}

# Labels are compared by hash, so that a list of any length takes eight bytes.
_LISTED: Final = """
    with known as (
        select image_id, identity, max(generation) as generation, count(*) as times,
            arg_max(hash(labels), generation) as labels
        from planned where identity is not null group by image_id, identity
    ), removed as (
        select image_id, max(generation) as generation from planned where identity is null group by image_id
    ), gone as (
        select image_id, identity, generation from planned semi join lost using (generation, shard)
    ), waiting as (
        select image_id from planned semi join unfinished using (generation, shard) group by image_id
    )
    select items.*
    from items
    left join known using (image_id, identity)
    left join removed using (image_id)
    left join failed on failed.image_id = items.image_id and failed.identity = items.identity
        and failed.generation = known.generation
    left join gone on gone.image_id = items.image_id and gone.identity = items.identity
        and gone.generation = known.generation
    left join waiting using (image_id)
    where known.generation is null                              -- new, or changed
        or known.labels <> hash(items.labels)                   -- relabelled
        or removed.generation > known.generation                -- removed, and listed again
        or gone.generation is not null                          -- its part is lost
        or (failed.status = 'read_error' and known.times < 3)   -- a read error may be temporary
        or (failed.status is not null and getvariable('retry_failed'))
        or waiting.image_id is not null
"""
# Images that are current and not listed any more, and removals whose part is lost.
_MISSING: Final = """
    with last as (
        select image_id, max(generation) as generation from planned
        anti join items using (image_id) group by image_id
    )
    select image_id, uri, source_row, null::varchar as identity, []::integer[] as labels,
        null::bigint as size,
        (select count(*) from items) + row_number() over (order by image_id) as row
    from planned semi join last using (image_id, generation)
    where identity is not null or (generation, shard) in (select (generation, shard) from lost)
"""
_IN_ORDER: Final = "select * exclude row from ({rows}) order by row"


def find_pending(
    items: ItemsFile,
    ledger: Ledger,
    *,
    retry_failed: bool = False,
    remove_missing: bool = False,
    unfinished: Iterable[tuple[int, int]] = (),
    include_retries: bool = True,
) -> ItemsFile:
    """Return the pending items, in the order of the listing.

    An item is pending if one of these holds:

    - No generation has its (image_id, identity).
    - The last generation that has it planned it with other labels, or a later one removed the image.
    - The part with its row of that generation is lost.
    - That row is a "read_error" and fewer than three generations have planned the item; with `retry_failed`,
      any failure.

    Args:
        items: The listing.
        ledger: The ledger of the recipe.
        retry_failed: Whether every failed item is pending.
        remove_missing: Whether to append images that are current and not listed, without an identity.
        unfinished: The (generation, shard) of shards whose items are pending too.
        include_retries: Whether items whose row is lost or failed are pending.

    Returns:
        A file in the folder of `items`.

    Raises:
        CorruptedError: A plan, a run record or a part is not as it was written.
    """
    folder = items.path.parent
    snapshot = Snapshot.load(ledger)
    with open_duckdb(folder) as connection:
        connection.execute(f"create view items as from {parquet(items.path)}").fetchall()
        _create_planned(connection, snapshot, folder)
        _create_shards(connection, "lost", snapshot.inventory.absent if include_retries else ())
        _create_shards(connection, "unfinished", unfinished)
        keys = _failed_parts(snapshot, retry_failed=retry_failed) if include_retries else []
        with TableWriter(folder / "failed.parquet", _FAILED) as writer:
            for table in _failed_rows(ledger, keys):
                writer.write(table)
        connection.execute(f"create view failed as from {parquet(folder / 'failed.parquet')}").fetchall()
        pending = ItemsFile(folder / "pending.parquet")
        copy(connection, pending_query(connection, retry_failed, remove_missing), pending.path)
    return pending


def pending_query(
    connection: duckdb.DuckDBPyConnection, retry_failed: bool = False, remove_missing: bool = False
) -> str:
    """Return the query for pending items.

    Args:
        connection: A connection that has the tables described above.
        retry_failed: See `find_pending`.
        remove_missing: See `find_pending`.
    """
    connection.execute(f"set variable retry_failed = {retry_failed}").fetchall()
    return _IN_ORDER.format(rows=f"({_LISTED}) union all ({_MISSING})" if remove_missing else _LISTED)


def unfinished_shards(ledger: Ledger, *, committed: bool) -> list[tuple[int, int]]:
    """Return the (generation, shard) of the shards of unfinished generations.

    Args:
        ledger: The ledger of the recipe.
        committed: Whether to include shards whose part is committed.
    """
    parts = ledger.parts()
    return [
        (plan.generation, shard)
        for plan in ledger.unfinished()
        for shard in range(plan.shards)
        if committed or (plan.generation, shard) not in parts
    ]


def _create_planned(connection: duckdb.DuckDBPyConnection, snapshot: Snapshot, folder: Path) -> None:
    """Create the table `planned`. Plan files are copied once, since DuckDB reads them several times."""
    copies = folder / "planned"
    with ThreadPoolExecutor(_THREADS) as threads:
        plans = threads.map(snapshot.plan, snapshot.generations)
        files = [(plan.generation, file) for plan in plans for file in plan.files]
        targets = [copies / f"generation={g}" / Path(file.key).name for g, file in files]
        list(threads.map(partial(_fetch, snapshot.ledger), (file for _, file in files), targets))
    if files:
        rows = (
            f"read_parquet('{quoted(copies)}/*/*.parquet', hive_partitioning = true, "
            "hive_types = {'generation': integer})"
        )
        connection.execute(f"create view planned as from {rows}").fetchall()
        return
    schema = PLAN.append(pa.field("generation", pa.int32()))
    connection.register("planned", schema.empty_table())


def _fetch(ledger: Ledger, file: PlanFile, target: Path) -> None:
    """Copy a plan file unless it is copied already; raise CorruptedError if it is not as it was written."""
    if target.exists():
        return
    digest = hashlib.sha256()
    try:
        with ledger.store.open(file.key) as source, write_then_rename(target) as draft:
            with open(draft, "xb") as copied:
                while data := source.read(_COPY_BYTES):
                    digest.update(data)
                    copied.write(data)
            if digest.hexdigest() != file.sha256:
                raise CorruptedError(f"{file.key} has changed since it was written: run camworker verify OUT")
    except FileNotFoundError as error:
        raise CorruptedError(f"{file.key} is missing: run camworker verify OUT") from error


def _create_shards(
    connection: duckdb.DuckDBPyConnection, name: str, shards: Iterable[tuple[int, int]]
) -> None:
    rows = [{"generation": generation, "shard": shard} for generation, shard in shards]
    connection.register(name, pa.Table.from_pylist(rows, _SHARDS))


def _failed_parts(snapshot: Snapshot, *, retry_failed: bool) -> list[str]:
    """Return the keys of parts that may hold rows to retry, by the counts of their run records.

    A part that no run record names may hold any status, so it is included.
    """
    keys = []
    for shard_id, key in snapshot.parts.items():
        part = snapshot.inventory.recorded.get(shard_id)
        statuses = part.images.keys() - _NO_FAILURE if part else {"read_error"}
        if statuses and (retry_failed or "read_error" in statuses):
            keys.append(key)
    return keys


def _failed_rows(ledger: Ledger, keys: list[str]) -> Iterator[pa.Table]:
    """Yield the failed rows of these parts."""

    def read(key: str) -> pa.Table:
        table = read_latest(ledger, key, None, _FAILED.names)
        return table.filter(pc.not_equal(table["status"], pa.scalar("ok"))).replace_schema_metadata(None)

    with ThreadPoolExecutor(_THREADS) as threads:
        yield from threads.map(read, keys)
