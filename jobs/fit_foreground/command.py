"""Define the arguments of `camworker fit-foreground` and run it."""

import argparse
import os
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from jobs.console import DONE, INCOMPLETE, Console
from jobs.options import (
    add_batch_size_option,
    add_id_column_option,
    add_local_root_option,
    add_network_options,
    add_selection_options,
    add_worker_options,
)
from jobs.progress import ImageProgress, format_duration

if TYPE_CHECKING:
    from camworker.networks.foreground import ForegroundSums
    from camworker.training.foreground_sums import CollectedForeground
    from jobs.fit_foreground.request import FitRequest

HELP = "fit the foreground head of a network, from images without boxes"

# Shards are cut at multiples of the batch size, so that the same images are in a batch however many workers
# there are: a network rounds differently in batches of another size.
_SHARD_ALIGNMENT: Final = 64


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `camworker fit-foreground`."""
    parser.add_argument(
        "input", metavar="INPUT", help="at least 100 images of many classes, as an input of localize"
    )
    head = parser.add_argument_group("head")
    head.add_argument(
        "--output",
        metavar="PATH",
        help="write a new package with the head, or the head alone to a file that ends in .safetensors "
        "(default: into the package of --weights)",
    )
    existing = head.add_mutually_exclusive_group()
    existing.add_argument(
        "--add", action="store_true", help="add the images to those of the head that the network has"
    )
    existing.add_argument("--replace", action="store_true", help="replace the head that the package has")
    images = parser.add_argument_group("images")
    images.add_argument(
        "--image-labels",
        metavar="FILE",
        help="known labels of the images (Parquet or CSV: image_id, label); without them, or for images that "
        "have none, the class that the network predicts is used",
    )
    add_selection_options(images)
    add_id_column_option(images)
    add_local_root_option(images)
    network = parser.add_argument_group("network")
    add_network_options(network)
    cluster = parser.add_argument_group("cluster")
    add_batch_size_option(cluster)
    add_worker_options(cluster)


@dataclass(frozen=True, slots=True)
class _ShardCounts:
    """What the driver keeps of a shard: its sums are merged."""

    images: Counter[str]


def run(args: argparse.Namespace, console: Console) -> int:
    """Run `camworker fit-foreground` and return its exit code."""
    started = time.monotonic()

    from jobs.fit_foreground.request import FitOptions, build_fit_request, write_head

    request = build_fit_request(
        FitOptions(
            location=args.input,
            output=args.output,
            add=args.add,
            replace=args.replace,
            network=args.network,
            weights=args.weights,
            batch_size=args.batch_size,
            image_labels=args.image_labels,
            id_column=args.id_column,
            limit=args.limit,
            sample=args.sample,
            seed=args.seed,
            roots=tuple(args.local_root),
        )
    )
    collected = _collect(args, console, request)
    if collected is None:
        return INCOMPLETE

    from camworker import __version__
    from camworker.networks.foreground import MANY_CLASSES, effective_classes
    from camworker.training.foreground_sums import NO_MAP, fit_foreground

    images = collected.images
    fit = {
        "input": os.path.basename(args.input.rstrip("/")),
        "images": collected.sums.images,
        "classes": request.kind_of_classes,
        "camworker": __version__,
    }
    earlier = request.earlier
    sums = earlier.sums + collected.sums if earlier else collected.sums
    fitted = fit_foreground(request.package, sums, (*(earlier.fits if earlier else ()), fit))
    classes = effective_classes(sums.class_counts.values())
    if classes < MANY_CLASSES:
        console.err(
            f"warning: the images are of few classes ({len(sums.class_counts)}, in effect "
            f"{classes:.1f}; {MANY_CLASSES} or more are needed): a head of one kind of object "
            "makes boxes worse, because its background never holds other objects"
        )
    write_head(request, fitted)

    failed = {status: n for status, n in sorted(images.items()) if status not in ("ok", NO_MAP)}
    failures = "".join(f", {count} {status}" for status, count in failed.items())
    without = f", {images[NO_MAP]} without a positive value in their map" if images[NO_MAP] else ""
    console.out(
        f"used {images['ok']} images{failures}{without}; {format_duration(time.monotonic() - started)}"
    )
    added = f", with those that were in it before {sums.images}" if earlier else ""
    console.out(f"wrote the head to {request.target}: {len(sums.class_counts)} classes{added}")
    console.result(
        {
            "foreground": request.target,
            "head": fitted.head.fingerprint,
            "images": images["ok"],
            "no_map": images[NO_MAP],
            "failed": failed,
            "images_in_head": sums.images,
            "classes": len(sums.class_counts),
            "effective_classes": round(classes, 3),
            "many_classes": classes >= MANY_CLASSES,
            "seconds": round(time.monotonic() - started, 3),
        }
    )
    return DONE


def _collect(
    args: argparse.Namespace, console: Console, request: "FitRequest"
) -> "CollectedForeground | None":
    """Add up the sums of all images on the cluster; None if the run was stopped or a shard failed."""
    from camworker.ledger.plan import choose_shard_size
    from camworker.training.foreground_sums import CollectedForeground, require_taps, zero_sums
    from jobs.driver.driver import Driver
    from jobs.fit_foreground.worker import FitWorker
    from jobs.ray_cluster import connected, plan_workers

    merged = InOrder(zero_sums(require_taps(request.package)))

    def merge(result: "tuple[int, CollectedForeground]") -> _ShardCounts:
        shard, collected = result
        merged.add(shard, collected.sums)
        return _ShardCounts(collected.images)

    count = request.items.num_rows
    with connected(args.address, verbose=console.verbose):
        workers = plan_workers(args.workers, args.gpus_per_worker)
        alignment = args.batch_size or _SHARD_ALIGNMENT
        size = -(-choose_shard_size(count, workers.count, row_bytes=0) // alignment) * alignment
        tasks = [(1, shard) for shard in range(-(-count // size))]
        console.err(f"{count} images in {len(tasks)} shards")
        with ImageProgress(count) as progress:
            driver = Driver[_ShardCounts](
                FitWorker,
                request.settings,
                workers,
                lambda images: progress.update(images.total(), images.total() - images["ok"]),
                arguments=lambda task: (task[1], *request.cut(task[1] * size, size)),
                reduce=merge,
            )
            outcome = driver.run(tasks)
    for _, shard in outcome.lost:
        console.err(f"shard {shard} ended its worker in every attempt")
    if outcome.stopped:
        console.err(f"stopped: {outcome.stopped}; nothing was written")
    if outcome.stopped or outcome.lost:
        return None
    return CollectedForeground(merged.total, outcome.images)


class InOrder:
    """Merges the sums of shards in their order, whatever the order in which they arrive.

    The order decides the last bit of a sum. Only shards that arrive early are kept.

    Args:
        zero: The sums over no image.

    Attributes:
        total: The sums of all shards up to the first one that has not arrived.
    """

    def __init__(self, zero: "ForegroundSums") -> None:
        self.total = zero
        self._next = 0
        self._early: dict[int, ForegroundSums] = {}

    def add(self, shard: int, sums: "ForegroundSums") -> None:
        """Add the sums of one shard; a shard that was added before is ignored."""
        if shard >= self._next:
            self._early[shard] = sums
        while self._next in self._early:
            self.total = self.total + self._early.pop(self._next)
            self._next += 1
