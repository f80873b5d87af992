"""Items -> batches of prepared images: fetched and decoded by threads, a few batches ahead of the network."""

import threading
from collections import deque
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import Final

import pyarrow as pa

from camworker.careful import CarefulDecoder
from camworker.errors import Failure
from camworker.fetch import NO_TABLES, Fetch, fetches
from camworker.localizer import Localizer, Prepared

_BATCHES_AHEAD: Final = 3


def prepared_batches(
    items: pa.Table,
    localizer: Localizer,
    *,
    decoders: int,
    verify: bool,
    tables: Mapping[str, str] = NO_TABLES,
    careful: bool = False,
    on_image: Callable[[], None] = lambda: None,
) -> Generator[tuple[pa.Table, list[Prepared | Failure]], None, None]:
    """Slices of items (uri, source_row, identity at least), each with its images prepared, in order.

    decoders: how many threads. Memory is bounded by batches, whatever the number of items. careful:
    decode in a child process, so that an image that kills its decoder kills nothing else. on_image is
    told of each image that is prepared, by the thread that did it. An image for which there is not enough
    memory beside the others is tried again alone, and then "too_large".
    """
    size = localizer.batch_size
    with ExitStack() as stack:
        prepare_bytes = localizer.prepare
        if careful:
            decoder = CarefulDecoder(localizer.frame_size, localizer.resize)
            decoders, prepare_bytes = 1, stack.enter_context(decoder).prepare
        pool = stack.enter_context(ThreadPoolExecutor(decoders))

        def prepare(fetch: Fetch) -> Prepared | Failure:
            data = fetch()
            prepared = data if isinstance(data, Failure) else prepare_bytes(data)
            on_image()
            return prepared

        alone = threading.Lock()

        def prepare_in_turn(fetch: Fetch) -> Prepared | Failure:
            try:
                return prepare(fetch)
            except MemoryError:
                pass  # outside, so that what the error's frames hold is free
            with alone:
                try:
                    return prepare(fetch)
                except MemoryError as error:
                    return Failure("too_large", f"there is not enough memory for it: {error}")

        ahead: deque[Future[Prepared | Failure]] = deque()
        sources = fetches(items, verify=verify, tables=tables)
        for start in range(0, items.num_rows, size):
            for fetch in sources:
                ahead.append(pool.submit(prepare_in_turn, fetch))
                if len(ahead) >= _BATCHES_AHEAD * size:
                    break
            rows = items.slice(start, size)
            yield rows, [ahead.popleft().result() for _ in range(rows.num_rows)]
