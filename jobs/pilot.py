"""localize --dry-run: what there is to do, and how long it would take by a few images timed here."""

import time
from typing import TYPE_CHECKING, Final

from jobs.cluster import Workers
from jobs.console import DONE, Console, duration
from jobs.worker import Settings

if TYPE_CHECKING:
    from camworker.sources import Source

_SECONDS: Final = 10.0
_BATCHES: Final = 16


def dry_run(
    console: Console,
    settings: Settings,
    pending: "Source",
    workers: Workers,
    shard_size: int,
) -> int:
    """Count pending items, time some as one worker would; nothing is written."""
    import pyarrow.compute as pc

    count = pending.items.num_rows
    rate = _images_per_second(settings, pending, workers.cores) if count else None
    rate = rate * workers.count if rate else None
    seconds = count / rate if rate else None
    summary = {
        "recipe": settings.recipe,
        "planned": count,
        # Unknown where a manifest does not say.
        "bytes": pc.sum(pending.items["size"], min_count=0).as_py()
        if not pending.items["size"].null_count
        else None,
        "shards": -(-count // shard_size),
        "workers": workers.count,
        "images_per_second": round(rate, 2) if rate else None,
        "seconds": round(seconds, 1) if seconds else None,
        "output": settings.out,
    }
    size = f"{summary['bytes'] / 1e6:.1f} MB" if summary["bytes"] is not None else "of unknown size"
    console.say(f"{count} images to localize, {size}, in {summary['shards']} shards")
    if seconds:
        console.say(
            f"{rate:.1f} images/s with {workers.count} worker(s) on this machine: about {duration(seconds)}, "
            "start-up aside"
        )
    console.say("nothing was written")
    console.result(summary)
    return DONE


def _images_per_second(settings: Settings, source: "Source", cores: int) -> float | None:
    """One worker's rate after its first batch; over everything where there is no second batch."""
    import torch

    from camworker.shard import localize_items

    torch.set_num_threads(cores)
    localizer = settings.localizer()
    items = source.items.slice(0, _BATCHES * localizer.batch_size)
    started = time.monotonic()
    first: float | None = None
    count = 0
    batches = localize_items(items, localizer, decoders=cores, verify=source.verifiable, tables=source.tables)
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
