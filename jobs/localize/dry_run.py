"""localize --dry-run: what there is to do, and how long it would take by a few images timed here."""

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from jobs.console import DONE, Console
from jobs.localize.worker import WorkerSettings, start
from jobs.progress import format_duration
from jobs.ray_cluster import Workers

if TYPE_CHECKING:
    from camworker.inputs.duckdb_scratch import ItemsFile
    from camworker.inputs.item_queries import ItemStats
    from camworker.inputs.sources import ItemListing

_SECONDS: Final = 10.0
_BATCHES: Final = 16


def dry_run(
    console: Console,
    settings: WorkerSettings,
    pending: "ItemListing[ItemsFile]",
    found: "ItemStats",
    workers: Workers,
    shard_size: int,
) -> int:
    """Time some pending items as one worker would, and tell what all take; nothing is written."""
    count = found.there
    settings = replace(settings, images=-(-count // workers.count))
    rate = _images_per_second(settings, pending, workers.cores) if count else None
    rate = rate * workers.count if rate else None
    seconds = count / rate if rate else None
    summary = {
        "recipe": settings.recipe,
        "planned": found.count,
        "bytes": found.bytes,  # None where a manifest does not say
        "shards": -(-found.count // shard_size),
        "workers": workers.count,
        "images_per_second": round(rate, 2) if rate else None,
        "seconds": round(seconds, 1) if seconds else None,
        "output": settings.out,
    }
    size = f"{found.bytes / 1e6:.1f} MB" if found.bytes is not None else "of unknown size"
    console.out(f"{count} images to localize, {size}, in {summary['shards']} shards")
    if removed := found.count - count:
        console.out(f"{removed} images are no longer listed: their rows will say removed")
    if seconds:
        console.out(
            f"{rate:.1f} images/s with {workers.count} worker(s) on this machine: "
            f"about {format_duration(seconds)} after start-up"
        )
    console.out("nothing was written")
    console.result(summary)
    return DONE


def _images_per_second(
    settings: WorkerSettings, pending: "ItemListing[ItemsFile]", cores: int
) -> float | None:
    """One worker's rate after its first batch; over everything where there is no second batch."""
    from camworker.inference.pipeline import localize_items

    localizer = settings.localizer()
    threads, _ = start(localizer, settings, cores)
    items = pending.items.first(_BATCHES * localizer.batch_size)
    started = time.monotonic()
    first: float | None = None
    count = 0
    batches = localize_items(
        items,
        localizer,
        pending.policy,
        decode_threads=threads.decode_threads,
        inference_streams=threads.inference_streams,
    )
    for rows, _ in batches:
        now = time.monotonic()
        if first is None:
            first = now
        else:
            count += rows.num_rows
        if now - started > _SECONDS:
            break
    if first is None:
        return None
    return count / (now - first) if count else items.num_rows / (now - started)
