"""What to do: the recipe, a selection of items, and how items become a generation of shards."""

import hashlib
import io
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from camworker.errors import CommitError, UsageError
from camworker.inputs import ReadPolicy
from camworker.ledger.ledger import Ledger
from camworker.ledger.records import Plan, PlanFile
from camworker.schemas import ITEMS, PLAN, CamShape
from camworker.storage.parquet import open_parquet

_LARGEST_SHARD: Final = 4096
_PART_BYTES: Final = 64_000_000
_OTHER_BYTES: Final = 2048  # of a row beside its maps: a generous guess
_SHARDS_PER_WORKER: Final = 4
_ITEMS_PER_FILE: Final = 1_000_000


def choose_shard_size(items: int, workers: int, row_bytes: int, asked: int | None = None) -> int:
    """Items a shard: as asked, else 4096, or less so that each worker gets four shards.

    row_bytes: what a row's maps take uncompressed: a part has to stay below 64 MB. Raises UsageError
    when what was asked for would not.
    """
    most = max(1, _PART_BYTES // (row_bytes + _OTHER_BYTES))
    if asked is not None and asked > most:
        raise UsageError(f"--shard-size {asked}: parts would be over 64 MB, {most} images is the most here")
    return asked or max(1, min(_LARGEST_SHARD, most, -(-items // (_SHARDS_PER_WORKER * workers))))


def row_bytes(labels: int, shape: CamShape) -> int:
    """The bytes of the maps in a row of an item with so many known labels."""
    return 2 * (shape.k + labels) * shape.h * shape.w


def write_generation(
    ledger: Ledger,
    generation: int,
    items: pa.Table | Iterable[pa.Table],
    size: int,
    policy: ReadPolicy,
) -> Plan:
    """Cut items (schema ITEMS, whole or in pieces) into shards of size and commit them as a generation.

    policy: how the items' files are read. Of items in pieces a plan file is in memory at a time. Returns the
    generation's plan, which is another planner's when that one was first.
    """
    shards = _shards([items] if isinstance(items, pa.Table) else items, size)
    per_file = max(1, _ITEMS_PER_FILE // size)
    files: list[PlanFile] = []
    number = first_shard = 0
    while some := _plan_file(islice(shards, per_file), first_shard):
        data, rows = some
        # A number may be taken by a planner that died or that races with us; what it left is never
        # referred to unless it also commits the plan.
        while not ledger.store.create(key := ledger.layout.plan_file_key(generation, number), data):
            number += 1
        files.append(PlanFile(key, hashlib.sha256(data).hexdigest(), first_shard, rows))
        number += 1
        first_shard += len(rows)
    plan = Plan(ledger.recipe, generation, tuple(files), policy)
    return plan if ledger.commit_plan(plan) else ledger.read_plan(generation)


def read_shard(ledger: Ledger, plan: Plan, shard: int) -> pa.Table:
    """The planned items of one shard (schema PLAN). Raises CommitError where the plan lacks it.

    A damaged plan file is noticed by its checksums (OSError).
    """
    for file in plan.files:
        if file.first_shard <= shard < file.first_shard + len(file.rows):
            with ledger.store.open(file.key) as opened:
                parquet = open_parquet(opened)
                items = parquet.read_row_group(shard - file.first_shard)
            if items["shard"].unique().to_pylist() != [shard]:
                break
            return items
    raise CommitError(f"the plan of generation {plan.generation} does not hold shard {shard}")


def _shards(pieces: Iterable[pa.Table], size: int) -> Iterator[pa.Table]:
    """Items cut anew: size in each table, in the last one what is left."""
    left = ITEMS.empty_table()
    for piece in pieces:
        left = pa.concat_tables([left, piece])
        while left.num_rows >= size:
            yield left.slice(0, size)
            left = left.slice(size)
    if left.num_rows:
        yield left


def _plan_file(shards: Iterator[pa.Table], first_shard: int) -> tuple[bytes, tuple[int, ...]] | None:
    """A file of these shards, a row group each, and how many items each has; None without shards."""
    buffer, rows = io.BytesIO(), []
    with pq.ParquetWriter(buffer, PLAN, compression="zstd", write_page_checksum=True) as writer:
        for number, items in enumerate(shards, first_shard):
            shard = pa.array(np.full(items.num_rows, number, np.int32))
            group = items.drop_columns("size").append_column(PLAN.field("shard"), shard)
            writer.write_table(group, row_group_size=group.num_rows)
            rows.append(group.num_rows)
    return (buffer.getvalue(), tuple(rows)) if rows else None
