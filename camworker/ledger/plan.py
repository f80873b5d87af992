"""Cut items into the shards of a generation, commit the plan, and read planned items."""

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
_OTHER_BYTES: Final = 2048  # of a row without its maps: a generous estimate
_SHARDS_PER_WORKER: Final = 4
_ITEMS_PER_FILE: Final = 1_000_000


def choose_shard_size(items: int, workers: int, row_bytes: int, requested: int | None = None) -> int:
    """Return the number of items of a shard: 4096, or fewer so that each worker gets four shards.

    Args:
        items: Number of items to plan.
        workers: Number of workers.
        row_bytes: Size of the maps of a row, see `row_bytes`. A part has to be smaller than 64 MB.
        requested: The number to use instead, if a part of that size is small enough.

    Raises:
        UsageError: A part of `requested` items would be too large.
    """
    largest = max(1, _PART_BYTES // (row_bytes + _OTHER_BYTES))
    if requested is not None and requested > largest:
        raise UsageError(
            f"parts of {requested} images would be larger than 64 MB: use at most {largest}",
            parameter="shard_size",
        )
    return requested or max(1, min(_LARGEST_SHARD, largest, -(-items // (_SHARDS_PER_WORKER * workers))))


def row_bytes(labels: int, cams: CamShape, refined: CamShape | None) -> int:
    """Return the size, in bytes, of the uncompressed maps of a row.

    Args:
        labels: Number of known labels of the image.
        cams: Shape of its class activation maps, which are float16.
        refined: Shape of its refined maps, which are uint8; None without refinement.
    """
    raw = 2 * (cams.k + labels) * cams.h * cams.w
    return raw + (0 if refined is None else (refined.k + labels) * refined.h * refined.w)


def write_generation(
    ledger: Ledger,
    generation: int,
    items: pa.Table | Iterable[pa.Table],
    size: int,
    policy: ReadPolicy,
) -> Plan:
    """Cut items into shards and commit them as a generation.

    Args:
        ledger: The ledger of the recipe.
        generation: Number of the generation.
        items: The items (schema `ITEMS`), in one table or in pieces of any size. Of pieces, only those of one
            plan file are in memory at a time.
        size: Number of items of a shard.
        policy: How the files of the items are read.

    Returns:
        The plan of the generation. If another planner was first, it is the plan of that one.
    """
    shards = _shards([items] if isinstance(items, pa.Table) else items, size)
    per_file = max(1, _ITEMS_PER_FILE // size)
    files: list[PlanFile] = []
    number = first_shard = 0
    while plan_file := _plan_file(islice(shards, per_file), first_shard):
        data, rows = plan_file
        # A planner that died, or a concurrent one, may have taken a number. Its file is not used unless it
        # also commits the plan.
        while not ledger.store.create(key := ledger.layout.plan_file_key(generation, number), data):
            number += 1
        files.append(PlanFile(key, hashlib.sha256(data).hexdigest(), first_shard, rows))
        number += 1
        first_shard += len(rows)
    plan = Plan(ledger.recipe, generation, tuple(files), policy)
    return plan if ledger.commit_plan(plan) else ledger.read_plan(generation)


def read_shard(ledger: Ledger, plan: Plan, shard: int) -> pa.Table:
    """Return the planned items of one shard (schema `PLAN`).

    Raises:
        CommitError: The plan does not hold the shard.
        OSError: The file cannot be read, or a checksum shows that it is damaged.
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
    """Yield the items in tables of `size` rows; the last one may be smaller."""
    rest = ITEMS.empty_table()
    for piece in pieces:
        rest = pa.concat_tables([rest, piece])
        while rest.num_rows >= size:
            yield rest.slice(0, size)
            rest = rest.slice(size)
    if rest.num_rows:
        yield rest


def _plan_file(shards: Iterator[pa.Table], first_shard: int) -> tuple[bytes, tuple[int, ...]] | None:
    """Return a Parquet file with a row group per shard, and their numbers of items; None without shards."""
    buffer, rows = io.BytesIO(), []
    with pq.ParquetWriter(buffer, PLAN, compression="zstd", write_page_checksum=True) as writer:
        for number, items in enumerate(shards, first_shard):
            shard = pa.array(np.full(items.num_rows, number, np.int32))
            group = items.drop_columns("size").append_column(PLAN.field("shard"), shard)
            writer.write_table(group, row_group_size=group.num_rows)
            rows.append(group.num_rows)
    return (buffer.getvalue(), tuple(rows)) if rows else None
