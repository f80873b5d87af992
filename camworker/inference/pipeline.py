"""Items to predictions: fetch, decode, run the network and make boxes, batch by batch, overlapped."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import cast

import pyarrow as pa

from camworker.inference.localizer import Localizer
from camworker.inference.out_of_memory import AdaptiveForward, ForwardPiece
from camworker.inference.predictions import Predictions
from camworker.inference.prefetch import preprocessed_batches
from camworker.inference.preprocessor import ImageInFlight
from camworker.inference.stage_timer import StageTimer
from camworker.inputs import ReadPolicy
from camworker.storage.uris import Connections


def localize_items(
    items: pa.Table,
    localizer: Localizer,
    policy: ReadPolicy,
    connections: Connections | None = None,
    *,
    decode_threads: int,
    inference_streams: int = 1,
    isolate: bool = False,
    on_image: Callable[[], None] = lambda: None,
    forward: AdaptiveForward | None = None,
    stage_timer: StageTimer | None = None,
) -> Iterator[tuple[pa.Table, Predictions]]:
    """Localize items, and yield slices of them with their predictions, in order.

    `decode_threads` threads fetch and decode a few batches ahead, `inference_streams` threads run a batch
    each through the network, and one more thread makes the boxes of finished batches. Memory is bounded by
    batches, whatever the number of items.

    Args:
        items: The items (schema `PLAN` or `ITEMS`).
        localizer: The network.
        policy: How the images are read and checked.
        connections: Connections to object stores; None opens some for this call.
        decode_threads: Number of threads that read and decode.
        inference_streams: Number of batches in the network at a time.
        isolate: Decode in a child process, so that an image that crashes the decoder does not crash this one.
        on_image: Called after each image that was read and decoded, from the thread that did so.
        forward: Runs the network; passed by callers that want to know its batch size afterwards.
        stage_timer: Counts the time of each stage.
    """
    forward = forward or AdaptiveForward(localizer)
    stage_timer = stage_timer or StageTimer()
    batches = preprocessed_batches(
        items,
        localizer,
        policy,
        connections,
        decode_threads=decode_threads,
        isolate=isolate,
        on_image=on_image,
        stage_timer=stage_timer,
    )

    def run_network(
        received: Sequence[ImageInFlight], labels: Sequence[Sequence[int]]
    ) -> Future[list[Predictions]]:
        with stage_timer.timed("network"), localizer.stream():
            pieces = forward(localizer.preprocess_on_device(received), labels)
        return postprocess_thread.submit(postprocess, pieces)

    def postprocess(pieces: Sequence[ForwardPiece]) -> list[Predictions]:
        with stage_timer.timed("boxes"):
            return [localizer.postprocess(maps, batch) for maps, batch in pieces]

    with (
        closing(batches),
        ThreadPoolExecutor(1) as postprocess_thread,
        ThreadPoolExecutor(inference_streams) as network_threads,
    ):
        in_network: deque[tuple[pa.Table, Future[Future[list[Predictions]]]]] = deque()
        for rows, received in batches:
            labels = cast("list[list[int]]", rows["labels"].to_pylist())
            in_network.append((rows, network_threads.submit(run_network, received, labels)))
            if len(in_network) > inference_streams:
                done, future = in_network.popleft()
                yield from _slices(done, future.result().result())
        for done, future in in_network:
            yield from _slices(done, future.result().result())


def _slices(rows: pa.Table, pieces: Sequence[Predictions]) -> Iterator[tuple[pa.Table, Predictions]]:
    """Yield the slice of a batch's items for each of its predictions: several after memory ran out."""
    start = 0
    for piece in pieces:
        yield rows.slice(start, len(piece)), piece
        start += len(piece)
