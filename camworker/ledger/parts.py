"""Parts of an output: encode the rows of a shard, check them against the plan, and commit them once."""

import hashlib
import io
from collections import Counter
from collections.abc import Mapping
from typing import Any, Final, cast

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from camworker.errors import CommitError, CorruptedError
from camworker.ledger.ledger import Ledger
from camworker.ledger.records import Part, Plan
from camworker.schemas import PREDICTIONS, SCHEMA_VERSION, CamShape
from camworker.storage.parquet import open_parquet

# Only these columns repeat their values. Dictionaries of the others would double the time of encoding and
# add a fifth to the size of a part.
_DICTIONARY_COLUMNS: Final = ("generation", "status", "error", "names.list.element")


def planned_metadata(plan: Plan, shard: int) -> dict[str, str]:
    """Return the entries of a part's file metadata that follow from its plan."""
    return {
        "schema_version": str(SCHEMA_VERSION),
        "recipe": plan.recipe,
        "generation": str(plan.generation),
        "shard": str(shard),
        "plan_hash": plan.hash,
    }


def encode_part(table: pa.Table) -> bytes:
    """Return a table as the bytes of a Parquet file: zstd, with a checksum for each page."""
    buffer = io.BytesIO()
    pq.write_table(
        table,
        buffer,
        compression="zstd",
        write_page_checksum=True,
        use_dictionary=list(_DICTIONARY_COLUMNS),  # type: ignore[arg-type]  # the stubs lack a list of columns
    )
    return buffer.getvalue()


def commit_part(ledger: Ledger, plan: Plan, shard: int, items: pa.Table, table: pa.Table) -> Part:
    """Encode, check and commit the rows of a shard.

    Args:
        ledger: Where the part is committed.
        plan: The generation that the shard belongs to.
        shard: Number of the shard in its plan.
        items: The planned items of the shard (schema `PLAN`).
        table: The rows (schema `PREDICTIONS`), with the file metadata of the part.

    Returns:
        The record of the part. If another worker has committed the part in the meantime, that part is
        adopted.

    Raises:
        CommitError: The rows, or those of the part to adopt, are not the planned ones.
    """
    data = encode_part(table)
    statuses = validate_part(data, plan, shard, items)
    key = ledger.layout.part_key(plan.generation, shard)
    if not ledger.store.create(key, data):
        return adopt_part(ledger, plan, shard, items)
    return _record(key, shard, data, statuses)


def adopt_part(ledger: Ledger, plan: Plan, shard: int, items: pa.Table) -> Part:
    """Return the record of a part that is committed already, after checking that it is the planned one.

    The part may differ in its bytes from what this process would write, but not in its recipe, plan, shard or
    image ids.

    Raises:
        CommitError: The part is not the planned one.
    """
    key = ledger.layout.part_key(plan.generation, shard)
    data = ledger.store.read(key)
    return _record(key, shard, data, validate_part(data, plan, shard, items))


def validate_part(data: bytes, plan: Plan, shard: int, items: pa.Table) -> "pa.ChunkedArray[Any]":
    """Reopen the bytes of a part as a reader would, and compare them with the plan.

    Returns:
        The statuses of the rows.

    Raises:
        CommitError: The bytes are no Parquet file, or not the planned part.
    """
    part = f"the part of generation {plan.generation}, shard {shard},"
    try:
        file = open_parquet(io.BytesIO(data))
        schema = file.schema_arrow
        rows = file.read(columns=["image_id", "status", "cams", "refined"])
    except (pa.ArrowException, OSError) as error:
        raise CommitError(f"{part} does not reopen: {error}") from error
    metadata = {k.decode(): v.decode() for k, v in (schema.metadata or {}).items()}
    for name, expected in planned_metadata(plan, shard).items():
        if metadata.get(name) != expected:
            raise CommitError(f"{part} has {name} {metadata.get(name)!r} where {expected!r} was planned")
    if not schema.equals(PREDICTIONS):
        raise CommitError(f"{part} has another schema than this version writes")
    if not _shapes_fit(rows, metadata):
        raise CommitError(f"{part} has maps of another shape than its metadata say")
    if not rows["image_id"].combine_chunks().equals(items["image_id"].combine_chunks()):
        raise CommitError(f"{part} holds other images than the planned ones")
    return rows["status"]


def _shapes_fit(rows: pa.Table, metadata: Mapping[str, str]) -> bool:
    """Return whether the rows that are ok, and only these, have maps of the size that metadata say."""
    try:
        cams = CamShape.from_json(metadata.get("cam_shape", ""))
        refined = CamShape.from_json(metadata.get("refined_shape", ""))
    except CorruptedError:
        return False
    if cams is None:
        return False
    sizes = {"cams": 2 * cams.size, "refined": None if refined is None else refined.size}
    ok = pc.equal(rows["status"], pa.scalar("ok"))
    for name, size in sizes.items():
        expected = pc.if_else(ok, pa.scalar(size, pa.int32()), pa.scalar(None, pa.int32()))
        if not pc.binary_length(rows[name]).equals(expected):
            return False
    return True


def _record(key: str, shard: int, data: bytes, statuses: "pa.ChunkedArray[Any]") -> Part:
    images = Counter(cast(list[str], statuses.to_pylist()))
    return Part(shard, key, len(statuses), len(data), hashlib.sha256(data).hexdigest(), dict(images))
