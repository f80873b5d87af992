"""One shard: read, decode, localize, validate, commit. Where it runs is not its business."""

import hashlib
import io
import json
import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from camworker.errors import CommitError, Failure, Status
from camworker.images.decode import PreprocessedImage
from camworker.inference.localizer import Localizer, Maps, Received
from camworker.inference.out_of_memory import AdaptiveForward
from camworker.inference.predictions import Predictions
from camworker.inference.prefetch import prepared_batches
from camworker.inference.stage_timer import StageTimer, StageTimes
from camworker.inputs import ReadPolicy
from camworker.ledger.ledger import Ledger, Part, Plan
from camworker.ledger.plan import read_shard
from camworker.schemas import SCHEMA_VERSION, CamShape, predictions_schema, predictions_table
from camworker.storage.parquet import open_parquet

_log = logging.getLogger(__name__)

# Dictionaries of numbers, which hardly repeat, take half of the time of encoding and a fifth of the bytes.
_REPEATED: Final = ("generation", "status", "error", "names.list.element")

OnBatch = Callable[[Sequence[Status]], None]


@dataclass(frozen=True, slots=True)
class Done:
    """A committed shard. seconds: how long it took here; 0 when it was there already. spent: on what."""

    part: Part
    seconds: float
    spent: StageTimes = field(default_factory=StageTimes)

    @property
    def images(self) -> dict[str, int]:
        """Count by status."""
        return self.part.images


def run_shard(
    ledger: Ledger,
    plan: Plan,
    shard: int,
    localizer: Localizer,
    *,
    decoders: int,
    streams: int = 1,
    about: dict[str, Any],
    on_batch: OnBatch,
    on_image: Callable[[], None] = lambda: None,
    stages: StageTimer | None = None,
    isolate: bool = False,
) -> Done:
    """Localize one shard's items and commit its part, or adopt the part that is there.

    decoders, streams: threads that read and decode, and that run the network: see threads.py. about: what
    was resolved where it ran (precision, versions and the like), for the part's metadata. on_batch is told
    the statuses of rows as they are finished, on_image of each image that is read and decoded; stages counts
    what all of it takes. isolate: decode in a child process, for a shard that has killed a worker. Raises
    CommitError when a part cannot be committed, MemoryError when there is not enough for one image; OSError.
    """
    key = ledger.part_key(plan.generation, shard)
    items = read_shard(ledger, plan, shard)
    if ledger.store.exists(key):
        return Done(adopt(ledger, plan, shard, items), 0.0)
    stages = stages or StageTimer()
    started, before = time.perf_counter(), stages.spent
    tables, forward = [], AdaptiveForward(localizer)
    for rows, predictions in localize_items(
        items,
        localizer,
        plan.policy,
        decoders=decoders,
        streams=streams,
        isolate=isolate,
        on_image=on_image,
        forward=forward,
        stages=stages,
    ):
        with stages.timed("boxes"):
            tables.append(predictions_table(rows, plan.generation, predictions, localizer.cam_shape))
        on_batch(predictions.statuses)
        _log_failures(rows, predictions)
    if forward.limit < localizer.batch_size:
        about = {**about, "batch_size_after_out_of_memory": forward.limit}
    table = pa.concat_tables(tables).replace_schema_metadata(_metadata(plan, shard, localizer, about))
    with stages.timed("commit"):
        data = encode(table)
        _validate(data, plan, shard, items)
        if ledger.store.create(key, data):
            part = _part(key, shard, data, table["status"])
        else:
            part = adopt(ledger, plan, shard, items)
    return Done(part, time.perf_counter() - started, stages.spent - before)


def localize_items(
    items: pa.Table,
    localizer: Localizer,
    policy: ReadPolicy,
    *,
    decoders: int,
    streams: int = 1,
    isolate: bool = False,
    on_image: Callable[[], None] = lambda: None,
    forward: AdaptiveForward | None = None,
    stages: StageTimer | None = None,
) -> Iterator[tuple[pa.Table, Predictions]]:
    """Predictions for items (schema PLAN or ITEMS), batch by batch, in order.

    Threads fetch and decode a few batches ahead, others take a batch each through the network, and one
    makes the boxes of the batch before, so that memory is bounded by batches, whatever the number of items.
    streams: batches in the network at a time. forward: given to learn from it how many images the network
    had memory for; stages: to learn what all of it takes.
    """
    forward = forward or AdaptiveForward(localizer)
    stages = stages or StageTimer()
    batches = prepared_batches(
        items,
        localizer,
        policy,
        decoders=decoders,
        isolate=isolate,
        on_image=on_image,
        stages=stages,
    )

    def look(received: Sequence[Received], labels: Sequence[Sequence[int]]) -> Future[list[Predictions]]:
        with stages.timed("network"), localizer.stream():
            pieces = forward(localizer.prepare_together(received), labels)
        return finisher.submit(finish, pieces)

    def finish(pieces: list[tuple[Maps | None, Sequence[PreprocessedImage | Failure]]]) -> list[Predictions]:
        with stages.timed("boxes"):
            return [localizer.finish(maps, piece) for maps, piece in pieces]

    with closing(batches), ThreadPoolExecutor(1) as finisher, ThreadPoolExecutor(streams) as lookers:
        waiting: deque[tuple[pa.Table, Future[Future[list[Predictions]]]]] = deque()
        for rows, received in batches:
            waiting.append((rows, lookers.submit(look, received, rows["labels"].to_pylist())))
            if len(waiting) > streams:
                done, future = waiting.popleft()
                yield from _beside(done, future.result().result())
        for done, future in waiting:
            yield from _beside(done, future.result().result())


def _beside(rows: pa.Table, pieces: list[Predictions]) -> Iterator[tuple[pa.Table, Predictions]]:
    """A batch's items beside their predictions, which are in pieces where memory ran out."""
    start = 0
    for piece in pieces:
        yield rows.slice(start, len(piece)), piece
        start += len(piece)


def _log_failures(rows: pa.Table, predictions: Predictions) -> None:
    """A line for each image that failed, for who asks for so many: the rows hold the same."""
    if not _log.isEnabledFor(logging.DEBUG):
        return
    for image_id, failure in zip(rows["image_id"].to_pylist(), predictions.failures, strict=True):
        if failure is not None:
            _log.debug(
                "image failed",
                extra={"image_id": image_id, "status": failure.status, "error": failure.reason},
            )


def adopt(ledger: Ledger, plan: Plan, shard: int, items: pa.Table) -> Part:
    """The record of a part that is there already, after checking that it is the one planned.

    Its bytes may differ from what we would write; recipe, plan, shard and ids may not. Raises
    CommitError when they do.
    """
    key = ledger.part_key(plan.generation, shard)
    data = ledger.store.read(key)
    return _part(key, shard, data, _validate(data, plan, shard, items))


def _metadata(plan: Plan, shard: int, localizer: Localizer, about: dict[str, Any]) -> dict[str, str]:
    shape = localizer.cam_shape
    frame = {"resize": localizer.resize, "input_size": localizer.input_size, "views": localizer.views}
    return {
        **_planned_metadata(plan, shard),
        "cam_shape": json.dumps([shape.k, shape.h, shape.w]),
        "frame": json.dumps(frame),
        "resolved": json.dumps(about),
    }


def _planned_metadata(plan: Plan, shard: int) -> dict[str, str]:
    return {
        "schema_version": str(SCHEMA_VERSION),
        "recipe": plan.recipe,
        "generation": str(plan.generation),
        "shard": str(shard),
        "plan_hash": plan.hash,
    }


def encode(table: pa.Table) -> bytes:
    """The bytes of a part."""
    buffer = io.BytesIO()
    pq.write_table(
        table, buffer, compression="zstd", write_page_checksum=True, use_dictionary=list(_REPEATED)
    )
    return buffer.getvalue()


def _validate(data: bytes, plan: Plan, shard: int, items: pa.Table) -> pa.ChunkedArray:
    """Reopen a part as a reader would; returns its statuses. Raises CommitError."""
    where = f"the part of generation {plan.generation}, shard {shard},"
    try:
        file = open_parquet(io.BytesIO(data))
        schema = file.schema_arrow
        rows = file.read(columns=["image_id", "status"])
    except (pa.ArrowException, OSError) as error:
        raise CommitError(f"{where} does not reopen: {error}") from error
    metadata = {k.decode(): v.decode() for k, v in (schema.metadata or {}).items()}
    for name, expected in _planned_metadata(plan, shard).items():
        if metadata.get(name) != expected:
            raise CommitError(f"{where} has {name} {metadata.get(name)!r} where {expected!r} was planned")
    shape = json.loads(metadata.get("cam_shape", "null"))
    if shape is None or not schema.equals(predictions_schema(CamShape(*shape))):
        raise CommitError(f"{where} has another schema than this version writes")
    if not rows["image_id"].combine_chunks().equals(items["image_id"].combine_chunks()):
        raise CommitError(f"{where} holds other images than were planned")
    return rows["status"]


def _part(key: str, shard: int, data: bytes, statuses: pa.ChunkedArray) -> Part:
    images = Counter(statuses.to_pylist())
    return Part(shard, key, len(statuses), len(data), hashlib.sha256(data).hexdigest(), dict(images))
