"""Items -> batches of prepared images: fetched and decoded by threads, a few batches ahead of the network."""

import threading
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import Final

import pyarrow as pa

from camworker.errors import Failure
from camworker.images.isolated_decoder import IsolatedDecoder
from camworker.inference.localizer import Localizer, Received
from camworker.inference.stage_timer import StageTimer
from camworker.inputs import ReadPolicy
from camworker.inputs.fetch import Fetcher, open_fetchers

_BATCHES_AHEAD: Final = 3


def prepared_batches(
    items: pa.Table,
    localizer: Localizer,
    policy: ReadPolicy,
    *,
    decoders: int,
    isolate: bool = False,
    on_image: Callable[[], None] = lambda: None,
    stages: StageTimer | None = None,
) -> Generator[tuple[pa.Table, list[Received]], None, None]:
    """Slices of items (uri, source_row, identity at least), each with its images prepared, in order.

    On CUDA only received: Localizer.prepare_together does the rest, on whatever thread has the device.

    decoders: how many threads. Memory is bounded by batches, whatever the number of items. isolate:
    decode in a child process, so that an image that kills its decoder kills nothing else. on_image is
    told of each image that is prepared, by the thread that did it; stages counts what that took. An image
    for which there is not enough memory beside the others is tried again alone, and then "too_large".
    """
    size = localizer.batch_size
    stages = stages or StageTimer()
    with ExitStack() as stack:
        stack.callback(stages.empty)
        prepare_bytes: Callable[[bytes], Received] = localizer.receive
        if isolate:
            decoder = IsolatedDecoder(localizer.frame_size, localizer.resize)
            decoders, prepare_bytes = 1, stack.enter_context(decoder).prepare
        pool = stack.enter_context(ThreadPoolExecutor(decoders))

        def prepare(fetch: Fetcher) -> Received:
            with stages.timed("fetch_decode"):
                data = fetch()
                if isinstance(data, Failure):
                    prepared: Received = data
                else:
                    stages.read(data)
                    prepared = prepare_bytes(data)
            stages.prepared()
            on_image()
            return prepared

        alone = threading.Lock()

        def prepare_in_turn(fetch: Fetcher) -> Received:
            try:
                return prepare(fetch)
            except MemoryError:
                pass  # outside, so that what the error's frames hold is free
            with alone:
                try:
                    return prepare(fetch)
                except MemoryError as error:
                    return Failure("too_large", f"there is not enough memory for it: {error}")

        ahead: deque[Future[Received]] = deque()
        # Rows of Parquet are read here, as they come; files by whoever prepares them.
        sources = stages.timed_each("fetch_decode", open_fetchers(items, policy))
        for start in range(0, items.num_rows, size):
            for fetch in sources:
                ahead.append(pool.submit(prepare_in_turn, fetch))
                if len(ahead) >= _BATCHES_AHEAD * size:
                    break
            rows = items.slice(start, size)
            batch = [ahead.popleft().result() for _ in range(rows.num_rows)]
            stages.taken(len(batch))
            yield rows, batch
