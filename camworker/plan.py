"""What to do: the recipe, which items are pending, and how they become a generation of shards."""

import hashlib
import io
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from camworker.errors import CommitError, UsageError
from camworker.ledger import Ledger, Plan, PlanFile
from camworker.records import PLAN, SCHEMA_VERSION, CamShape

# Raised whenever the same recipe would give other rows than before.
ALGORITHM: Final = 1

_LARGEST_SHARD: Final = 4096
_PART_BYTES: Final = 64_000_000
_OTHER_BYTES: Final = 2048  # of a row beside its maps: a generous guess
_SHARDS_PER_WORKER: Final = 4
_ITEMS_PER_FILE: Final = 1_000_000
_READ_ATTEMPTS: Final = 3


def make_recipe(asked: dict[str, Any]) -> dict[str, Any]:
    """All that decides a row's content: what was asked for, the schema and the algorithm's number."""
    return {"schema_version": SCHEMA_VERSION, "algorithm": ALGORITHM, **asked}


def select(items: pa.Table, *, limit: int | None, sample: int | None, seed: int) -> pa.Table:
    """The first limit items, then of these the sample items with the smallest hash(seed, image_id).

    The listing's order is kept. The same sample is drawn wherever and whenever the ids are the same.
    """
    if limit is not None:
        items = items.slice(0, limit)
    if sample is not None and sample < items.num_rows:
        hashes = [
            hashlib.blake2b(f"{seed}/{image_id}".encode(), digest_size=16).digest()
            for image_id in items["image_id"].to_pylist()
        ]
        items = items.take(sorted(sorted(range(len(hashes)), key=hashes.__getitem__)[:sample]))
    return items


def pending(
    items: pa.Table,
    planned: pa.Table,
    failed: pa.Table | None = None,
    *,
    lost: pa.Table | None = None,
    retry_failed: bool = False,
) -> pa.Table:
    """The items that no generation holds as they are now.

    planned: what read_planned gives. An item is pending when no generation has its (image_id,
    identity), or when the last one that has it planned it with other labels. failed (image_id,
    identity, status, generation: the current rows that are not ok): those of status "read_error" are
    pending again until three generations hold them, all of them with retry_failed. lost: what lost_items
    gives; always pending again.
    """
    planned = planned.sort_by([("generation", "descending")])
    keys, known = _key(items), _key(planned)
    latest = pc.index_in(keys, known)  # the first of equal keys, so the last generation's
    same_labels = pc.equal(_text(planned["labels"]).take(latest), _text(items["labels"]))
    wanted = np.array(pc.invert(pc.fill_null(same_labels, False)))
    failed, lost = (_of_last_generation(some, planned, known) for some in (failed, lost))
    if lost is not None:
        wanted |= np.array(pc.is_in(keys, _key(lost)))
    if failed is not None and failed.num_rows:
        if not retry_failed:
            attempts = pc.value_counts(known)
            spent = attempts.field("values").filter(
                pc.greater_equal(attempts.field("counts"), _READ_ATTEMPTS)
            )
            failed = failed.filter(pc.equal(failed["status"], "read_error"))
            failed = failed.filter(pc.invert(pc.is_in(_key(failed), spent)))
        wanted |= np.array(pc.is_in(keys, _key(failed)))
    return items.filter(pa.array(wanted))


def _of_last_generation(some: pa.Table | None, planned: pa.Table, known: pa.Array) -> pa.Table | None:
    """Without what a later generation holds: that is planned again already, and has to end first."""
    if some is None:
        return None
    last = planned["generation"].take(pc.index_in(_key(some), known))
    return some.filter(pc.equal(some["generation"], last))


def lost_items(ledger: Ledger) -> pa.Table:
    """image_id, identity and generation of what was committed and is gone: a run record names its part."""
    columns = ["image_id", "identity"]
    schema = pa.schema([*(PLAN.field(name) for name in columns), ("generation", pa.int32())])
    tables, parts = [schema.empty_table()], ledger.parts()
    for generation in ledger.generations():
        run = ledger.read_run(generation)
        named = [part["shard"] for part in run["parts"]] if run is not None else []
        for shard in (shard for shard in named if (generation, shard) not in parts):
            items = read_shard(ledger, ledger.read_plan(generation), shard).select(columns)
            number = pa.array(np.full(items.num_rows, generation, np.int32))
            tables.append(items.append_column(schema.field("generation"), number))
    return pa.concat_tables(tables)


def read_planned(ledger: Ledger) -> pa.Table:
    """Every planned item of a recipe: image_id, identity, labels, generation."""
    columns = ["image_id", "identity", "labels"]
    schema = pa.schema([PLAN.field(name) for name in columns])
    tables = [schema.empty_table().append_column("generation", pa.array([], pa.int32()))]
    for generation in ledger.generations():
        for file in ledger.read_plan(generation).files:
            with ledger.store.open(file.key) as opened:
                table = pq.read_table(opened, columns=columns, schema=schema)
            number = pa.array(np.full(table.num_rows, generation, np.int32))
            tables.append(table.append_column("generation", number))
    return pa.concat_tables(tables)


def shard_size(items: int, workers: int, row_bytes: int, asked: int | None = None) -> int:
    """Items a shard: as asked, else 4096, or less so that each worker gets four shards.

    row_bytes: what a row's maps take uncompressed: a part has to stay below 64 MB. Raises UsageError
    when what was asked for would not.
    """
    most = max(1, _PART_BYTES // (row_bytes + _OTHER_BYTES))
    if asked is not None and asked > most:
        raise UsageError(f"--shard-size {asked}: parts would be over 64 MB, {most} images is the most here")
    return asked or max(1, min(_LARGEST_SHARD, most, -(-items // (_SHARDS_PER_WORKER * workers))))


def row_bytes(items: pa.Table, shape: CamShape) -> int:
    """The bytes of the maps in the row of the item with most known labels."""
    known = pc.max(pc.list_value_length(items["labels"])).as_py() or 0
    return 2 * (shape.k + known) * shape.h * shape.w


def write_generation(
    ledger: Ledger,
    generation: int,
    items: pa.Table,
    size: int,
    *,
    verify: bool,
    tables: Mapping[str, str] = MappingProxyType({}),
) -> Plan:
    """Cut items into shards of size and commit them as a generation; verify, tables: as in Plan.

    Returns the generation's plan, which is another planner's when that one was first.
    """
    per_file = max(1, _ITEMS_PER_FILE // size) * size
    files: list[PlanFile] = []
    number = 0
    for start in range(0, items.num_rows, per_file):
        first_shard = start // size
        data, rows = _plan_file(items.slice(start, per_file), first_shard, size)
        # A number may be taken by a planner that died or that races with us; what it left is never
        # referred to unless it also commits the plan.
        while not ledger.store.create(key := ledger.plan_file_key(generation, number), data):
            number += 1
        files.append(PlanFile(key, hashlib.sha256(data).hexdigest(), first_shard, rows))
        number += 1
    plan = Plan(ledger.recipe, generation, tuple(files), verify, dict(tables))
    return plan if ledger.commit_plan(plan) else ledger.read_plan(generation)


def read_shard(ledger: Ledger, plan: Plan, shard: int) -> pa.Table:
    """The planned items of one shard (schema PLAN). Raises CommitError where the plan lacks it.

    A damaged plan file is noticed by its checksums (OSError).
    """
    for file in plan.files:
        if file.first_shard <= shard < file.first_shard + len(file.rows):
            with ledger.store.open(file.key) as opened:
                parquet = pq.ParquetFile(opened, page_checksum_verification=True)
                items = parquet.read_row_group(shard - file.first_shard)
            if items["shard"].unique().to_pylist() != [shard]:
                break
            return items
    raise CommitError(f"the plan of generation {plan.generation} does not hold shard {shard}")


def unfinished_ids(ledger: Ledger, *, committed: bool) -> pa.ChunkedArray:
    """Image ids of the unfinished generations; with committed also those whose parts are there."""
    parts = ledger.parts()
    ids = [
        read_shard(ledger, plan, shard)["image_id"]
        for plan in ledger.unfinished()
        for shard in range(plan.shards)
        if committed or (plan.generation, shard) not in parts
    ]
    return pa.chunked_array([chunk for column in ids for chunk in column.chunks], pa.string())


def _plan_file(items: pa.Table, first_shard: int, size: int) -> tuple[bytes, tuple[int, ...]]:
    shards: NDArray[np.int32] = (first_shard + np.arange(items.num_rows) // size).astype(np.int32)
    table = items.drop_columns("size").append_column(PLAN.field("shard"), pa.array(shards))
    buffer, rows = io.BytesIO(), []
    with pq.ParquetWriter(buffer, PLAN, compression="zstd", write_page_checksum=True) as writer:
        for start in range(0, table.num_rows, size):
            group = table.slice(start, size)
            writer.write_table(group, row_group_size=size)
            rows.append(group.num_rows)
    return buffer.getvalue(), tuple(rows)


def _key(table: pa.Table) -> pa.Array:
    joined = pc.binary_join_element_wise(table["image_id"], table["identity"], "\x00")
    return joined.combine_chunks()


def _text(labels: pa.ChunkedArray) -> pa.Array:
    return pc.binary_join(labels.combine_chunks().cast(pa.list_(pa.string())), ",")
