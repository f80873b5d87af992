"""Localize one shard of a plan and commit its part."""

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import pyarrow as pa

from camworker.errors import Status
from camworker.inference.arrow import predictions_table
from camworker.inference.localizer import Localizer
from camworker.inference.out_of_memory import AdaptiveForward
from camworker.inference.pipeline import localize_items
from camworker.inference.predictions import Predictions
from camworker.inference.stage_timer import StageTimer, StageTimes
from camworker.ledger.ledger import Ledger
from camworker.ledger.parts import adopt_part, commit_part, planned_metadata
from camworker.ledger.plan import read_shard
from camworker.ledger.records import Part, Plan
from camworker.storage.uris import Connections

_LOG: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ShardResult:
    """A committed shard.

    Attributes:
        part: The record of its part.
        seconds: How long this process took for it; 0 for a part that was committed before.
        stage_times: How this process spent that time.
    """

    part: Part
    seconds: float
    stage_times: StageTimes = field(default_factory=StageTimes)

    @property
    def images(self) -> dict[str, int]:
        """The number of images by status."""
        return self.part.images


def run_shard(
    ledger: Ledger,
    plan: Plan,
    shard: int,
    localizer: Localizer,
    connections: Connections | None = None,
    *,
    decode_threads: int,
    inference_streams: int = 1,
    runtime_info: Mapping[str, object],
    on_batch: Callable[[Sequence[Status]], None],
    on_image: Callable[[], None] = lambda: None,
    stage_timer: StageTimer | None = None,
    isolate: bool = False,
) -> ShardResult:
    """Localize the items of a shard and commit its part, or adopt the part if it is committed already.

    Args:
        ledger: Where the part is committed.
        plan: The generation that the shard belongs to.
        shard: Number of the shard in its plan.
        localizer: The network; not used when the part is committed already.
        connections: Connections to object stores, for reading the images; None opens some for this call.
        decode_threads: Number of threads that read and decode, see `ThreadBudget`.
        inference_streams: Number of batches in the network at a time, see `ThreadBudget`.
        runtime_info: What was resolved at run time (precision, versions, ...), for the part's metadata. It
            has to be serializable as JSON.
        on_batch: Called with the statuses of the rows of each finished batch.
        on_image: Called after each image that was read and decoded, from the thread that did so.
        stage_timer: Counts the time of each stage.
        isolate: Decode in a child process, so that an image that crashes the decoder does not crash this one.

    Raises:
        CommitError: The part cannot be committed, or the committed part is not the planned one.
        MemoryError: There is not enough memory for a single image.
        OSError: The output cannot be read or written.
    """
    items = read_shard(ledger, plan, shard)
    if ledger.store.exists(ledger.layout.part_key(plan.generation, shard)):
        return ShardResult(adopt_part(ledger, plan, shard, items), 0.0)
    stage_timer = stage_timer or StageTimer()
    started, times_before = time.perf_counter(), stage_timer.spent
    tables, forward = [], AdaptiveForward(localizer)
    for rows, predictions in localize_items(
        items,
        localizer,
        plan.policy,
        connections,
        decode_threads=decode_threads,
        inference_streams=inference_streams,
        isolate=isolate,
        on_image=on_image,
        forward=forward,
        stage_timer=stage_timer,
    ):
        with stage_timer.timed("boxes"):
            tables.append(predictions_table(rows, plan.generation, predictions))
        on_batch(predictions.statuses)
        _log_failures(rows, predictions)
    if forward.limit < localizer.batch_size:
        runtime_info = {**runtime_info, "batch_size_after_out_of_memory": forward.limit}
    metadata = {**planned_metadata(plan, shard), **_localizer_metadata(localizer, runtime_info)}
    with stage_timer.timed("commit"):
        table = pa.concat_tables(tables).replace_schema_metadata(metadata)
        part = commit_part(ledger, plan, shard, items, table)
    return ShardResult(part, time.perf_counter() - started, stage_timer.spent - times_before)


def _log_failures(rows: pa.Table, predictions: Predictions) -> None:
    """Log one line for each failed image, at debug level only: the rows carry the same information."""
    if not _LOG.isEnabledFor(logging.DEBUG):
        return
    for image_id, failure in zip(rows["image_id"].to_pylist(), predictions.failures, strict=True):
        if failure is not None:
            _LOG.debug(
                "image failed",
                extra={"image_id": image_id, "status": failure.status, "error": failure.reason},
            )


def _localizer_metadata(localizer: Localizer, runtime_info: Mapping[str, object]) -> dict[str, str]:
    refined = localizer.refined_shape
    return {
        "cam_shape": localizer.cam_shape.to_json(),
        "refined_shape": "null" if refined is None else refined.to_json(),
        "frame": json.dumps(localizer.frame_spec.to_json()),
        "resolved": json.dumps(runtime_info),
    }
