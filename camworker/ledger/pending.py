"""Which items are pending: the listing against all earlier generations, as one join that need not fit memory.

The rules are SQL over these tables:

items       image_id, uri, source_row, identity, labels, size, row     what is listed now; row: its place
planned     image_id, uri, source_row, identity, labels, shard, generation     identity null: as removed
failed      image_id, identity, generation, status     rows that are neither "ok" nor "removed"
lost        generation, shard     parts that a run record names and the store lacks
unfinished  generation, shard     shards that are planned and are to be told as pending
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
_COPIED_AT_ONCE: Final = 4 * 2**20
_FAILED: Final = pa.schema(
    [
        *(pa.field(name, pa.string()) for name in ("image_id", "identity", "status")),
        pa.field("generation", pa.int32()),
    ]
)
_NO_FAILURE: Final = {"ok", "removed"}

# Labels are compared by their hash: of one image's, lists of any length in a few bytes.
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
        or removed.generation > known.generation                -- came back
        or gone.generation is not null                          -- its part is lost
        or (failed.status = 'read_error' and known.times < 3)   -- could not be read, which may pass
        or (failed.status is not null and getvariable('retry_failed'))
        or waiting.image_id is not null
"""
# What the latest view holds and the listing lacks; and removals that are lost with their part.
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
    """The items that no generation holds as they are now, in their order, in a file beside that of items.

    An item is pending when no generation has its (image_id, identity); when the last one that has it
    planned it with other labels, or a later one removed the image; and when its row of that generation is
    lost with its part, or is a "read_error" that fewer than three generations have met, or with
    retry_failed any failure. remove_missing: what is current and not listed comes last, without an
    identity. unfinished: (generation, shard) whose items are told too. include_retries: False leaves out what is lost
    or failed. Raises CorruptedError where a plan, a run record or a part is not as it was written.
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
    """The query for what is pending in this connection, which has the tables that it needs."""
    connection.execute(f"set variable retry_failed = {retry_failed}").fetchall()
    return _IN_ORDER.format(rows=f"({_LISTED}) union all ({_MISSING})" if remove_missing else _LISTED)


def unfinished_shards(ledger: Ledger, *, committed: bool) -> list[tuple[int, int]]:
    """(generation, shard) of the unfinished generations; with committed also those whose parts are there."""
    parts = ledger.parts()
    return [
        (plan.generation, shard)
        for plan in ledger.unfinished()
        for shard in range(plan.shards)
        if committed or (plan.generation, shard) not in parts
    ]


def _create_planned(connection: duckdb.DuckDBPyConnection, snapshot: Snapshot, folder: Path) -> None:
    """Copy the plans that are not in folder yet: DuckDB reads them there, again and again."""
    home = folder / "planned"
    with ThreadPoolExecutor(_THREADS) as threads:
        plans = threads.map(snapshot.plan, snapshot.generations)
        files = [(plan.generation, file) for plan in plans for file in plan.files]
        targets = [home / f"generation={g}" / Path(file.key).name for g, file in files]
        list(threads.map(partial(_fetch, snapshot.ledger), (file for _, file in files), targets))
    if files:
        rows = (
            f"read_parquet('{quoted(home)}/*/*.parquet', hive_partitioning = true, "
            "hive_types = {'generation': integer})"
        )
        connection.execute(f"create view planned as from {rows}").fetchall()
        return
    schema = PLAN.append(pa.field("generation", pa.int32()))
    connection.register("planned", schema.empty_table())


def _fetch(ledger: Ledger, file: PlanFile, target: Path) -> None:
    """Copy a plan file. Raises CorruptedError where it is not as it was written."""
    if target.exists():
        return
    digest = hashlib.sha256()
    try:
        with ledger.store.open(file.key) as source, write_then_rename(target) as draft:
            with open(draft, "xb") as copied:
                while data := source.read(_COPIED_AT_ONCE):
                    digest.update(data)
                    copied.write(data)
            if digest.hexdigest() != file.sha256:
                raise CorruptedError(f"{file.key} is not as it was written: run camworker verify OUT")
    except FileNotFoundError as error:
        raise CorruptedError(f"{file.key} is gone: run camworker verify OUT") from error


def _create_shards(
    connection: duckdb.DuckDBPyConnection, name: str, shards: Iterable[tuple[int, int]]
) -> None:
    generations, numbers = zip(*shards, strict=True) if (shards := list(shards)) else ((), ())
    columns = {"generation": pa.array(generations, pa.int32()), "shard": pa.array(numbers, pa.int32())}
    connection.register(name, pa.table(columns))


def _failed_parts(snapshot: Snapshot, *, retry_failed: bool) -> list[str]:
    """Keys of the parts that may hold rows to be tried again: by their run records, or for want of one."""
    keys = []
    for place, key in snapshot.parts.items():
        recorded = snapshot.inventory.recorded.get(place)
        statuses = recorded.images.keys() - _NO_FAILURE if recorded else {"read_error"}
        if statuses and (retry_failed or "read_error" in statuses):
            keys.append(key)
    return keys


def _failed_rows(ledger: Ledger, keys: list[str]) -> Iterator[pa.Table]:
    def read(key: str) -> pa.Table:
        table = read_latest(ledger, key, None, _FAILED.names)
        return table.filter(pc.not_equal(table["status"], "ok")).replace_schema_metadata(None)

    with ThreadPoolExecutor(_THREADS) as threads:
        yield from threads.map(read, keys)
