"""Items to batches of preprocessed images: threads fetch and decode a few batches ahead of the network."""

import threading
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final

import pyarrow as pa

from camworker.errors import Failure
from camworker.images.isolated_decoder import IsolatedDecoder
from camworker.inference.localizer import Localizer
from camworker.inference.preprocessor import ImageInFlight
from camworker.inference.stage_timer import StageTimer
from camworker.inputs import ReadPolicy
from camworker.inputs.fetch import Fetcher, open_fetchers
from camworker.storage.uris import Connections

_BATCHES_AHEAD: Final = 3
_GPU_STREAMS: Final = 2


@dataclass(frozen=True, slots=True)
class ThreadBudget:
    """How the processor cores of a worker are divided between decoding and the network.

    All threads compete for the same cores. Decode threads pause by themselves when they are a few batches
    ahead.

    Attributes:
        decode_threads: Number of threads that read and decode.
        inference_streams: Number of threads that run a batch each through the network.
        intra_op_threads: Number of threads that each of these batches uses inside the network.
    """

    decode_threads: int
    inference_streams: int
    intra_op_threads: int


def divide_threads(cores: int, *, gpu: bool) -> ThreadBudget:
    """Return the threads of a worker that has this number of processor cores.

    Without a GPU each core runs a batch of its own: threads that share a batch wait for each other in every
    layer. With a GPU two batches overlap: one is copied and launched while the other one runs.
    """
    return ThreadBudget(
        decode_threads=cores, inference_streams=_GPU_STREAMS if gpu else cores, intra_op_threads=1
    )


def preprocessed_batches(
    items: pa.Table,
    localizer: Localizer,
    policy: ReadPolicy,
    connections: Connections | None = None,
    *,
    decode_threads: int,
    isolate: bool = False,
    on_image: Callable[[], None] = lambda: None,
    stage_timer: StageTimer | None = None,
) -> Generator[tuple[pa.Table, list[ImageInFlight]], None, None]:
    """Yield slices of items with their preprocessed images, in order.

    JPEGs that the GPU is to decode are only read here; `Localizer.preprocess_on_device` decodes them.
    Memory is bounded by batches, whatever the number of items. An image for which memory runs out while
    others are decoded is tried again alone, and fails as "too_large" if that is not enough.

    Args:
        items: The items; at least the columns uri, source_row and identity.
        localizer: Gives the batch size and how an image is preprocessed.
        policy: How the images are read and checked.
        connections: Connections to object stores; None opens some for this call.
        decode_threads: Number of threads that read and decode.
        isolate: Decode in a child process, so that an image that crashes the decoder does not crash this one.
        on_image: Called after each image, from the thread that preprocessed it.
        stage_timer: Counts the time and the bytes that reading and decoding take.
    """
    size = localizer.batch_size
    stage_timer = stage_timer or StageTimer()
    with ExitStack() as stack:
        stack.callback(stage_timer.empty)
        preprocess: Callable[[bytes], ImageInFlight] = localizer.preprocess
        if isolate:
            decoder = IsolatedDecoder(localizer.frame_spec.size, localizer.frame_spec.resize)
            decode_threads, preprocess = 1, stack.enter_context(decoder).preprocess
        pool = stack.enter_context(ThreadPoolExecutor(decode_threads))

        def fetch_and_preprocess(fetch: Fetcher) -> ImageInFlight:
            with stage_timer.timed("fetch_decode"):
                data = fetch()
                if isinstance(data, Failure):
                    image: ImageInFlight = data
                else:
                    stage_timer.read(data)
                    image = preprocess(data)
            stage_timer.prepared()
            on_image()
            return image

        alone = threading.Lock()

        def preprocess_or_retry_alone(fetch: Fetcher) -> ImageInFlight:
            try:
                return fetch_and_preprocess(fetch)
            except MemoryError:
                pass  # The retry is outside of this block, so that what the error's frames hold is freed.
            with alone:
                try:
                    return fetch_and_preprocess(fetch)
                except MemoryError as error:
                    return Failure("too_large", f"there is not enough memory for it: {error}")

        ahead: deque[Future[ImageInFlight]] = deque()
        # Rows of Parquet files are read here, one after another; files are read by the threads that decode
        # them.
        fetchers = stage_timer.timed_each("fetch_decode", open_fetchers(items, policy, connections))
        for start in range(0, items.num_rows, size):
            for fetch in fetchers:
                ahead.append(pool.submit(preprocess_or_retry_alone, fetch))
                if len(ahead) >= _BATCHES_AHEAD * size:
                    break
            rows = items.slice(start, size)
            batch = [ahead.popleft().result() for _ in range(rows.num_rows)]
            stage_timer.taken(len(batch))
            yield rows, batch
