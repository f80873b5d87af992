"""The dry run of localize: count the pending images and estimate the time from a few of them."""

import time
from dataclasses import replace
from typing import Final

from camworker.inputs.duckdb_scratch import ItemsFile
from camworker.inputs.item_queries import ItemStats
from camworker.inputs.sources import ItemListing
from jobs.console import DONE, Console
from jobs.localize.worker import WorkerSettings, prepare_process
from jobs.progress import format_duration
from jobs.ray_cluster import Workers

_SECONDS: Final = 10.0
_BATCHES: Final = 16


def dry_run(
    console: Console,
    settings: WorkerSettings,
    pending: ItemListing[ItemsFile],
    stats: ItemStats,
    workers: Workers,
    shard_size: int,
) -> int:
    """Time some of the pending items in this process and print an estimate for all; write nothing.

    Args:
        console: Prints the estimate.
        settings: The settings of the workers.
        pending: The pending items.
        stats: Statistics of the pending items.
        workers: The workers that would run.
        shard_size: Images per part.

    Returns:
        The exit code.
    """
    count = stats.present
    settings = replace(settings, images=-(-count // workers.count))
    rate = _images_per_second(settings, pending, workers.cores) if count else None
    rate = rate * workers.count if rate else None
    seconds = count / rate if rate else None
    shards = -(-stats.count // shard_size)
    size = f"{stats.bytes / 1e6:.1f} MB" if stats.bytes is not None else "of unknown size"
    console.out(f"{count} images to localize, {size}, in {shards} shards")
    if removed := stats.count - count:
        console.out(f'{removed} images are no longer listed: they get rows with the status "removed"')
    if rate and seconds:
        console.out(
            f"{rate:.1f} images/s with {workers.count} worker(s) on this machine: "
            f"about {format_duration(seconds)} after start-up"
        )
    console.out("nothing was written")
    console.result(
        {
            "recipe": settings.recipe.id,
            "planned": stats.count,
            "bytes": stats.bytes,  # None if a manifest does not name the sizes
            "shards": shards,
            "workers": workers.count,
            "images_per_second": round(rate, 2) if rate else None,
            "seconds": round(seconds, 1) if seconds else None,
            "output": settings.out,
        }
    )
    return DONE


def _images_per_second(settings: WorkerSettings, pending: ItemListing[ItemsFile], cores: int) -> float | None:
    """Return one worker's throughput after its first batch, or over everything if there is only one."""
    from camworker.inference.pipeline import localize_items

    localizer = settings.localizer()
    threads, _ = prepare_process(localizer, settings, cores)
    items = pending.items.first(_BATCHES * localizer.batch_size)
    started = time.monotonic()
    first_batch_at: float | None = None
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
        if first_batch_at is None:
            first_batch_at = now
        else:
            count += rows.num_rows
        if now - started > _SECONDS:
            break
    if first_batch_at is None:
        return None
    return count / (now - first_batch_at) if count else items.num_rows / (now - started)
