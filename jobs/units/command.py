"""Define the arguments of `camworker units` and run it."""

import argparse
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from camworker.storage.uris import local_path
from jobs.console import DONE, INCOMPLETE, Console
from jobs.options import (
    add_batch_size_option,
    add_input_size_option,
    add_local_root_option,
    add_network_options,
    add_precision_option,
    add_recipe_option,
    add_selection_options,
    add_worker_options,
    output_folder,
    whole_number,
)
from jobs.progress import ImageProgress, format_duration

if TYPE_CHECKING:
    from camworker.units.top_activations import CollectedActivations
    from jobs.units.request import Request

HELP = "show which units of a network are specific to a class, with the patches that activate them"

_IMAGES_FOR_SIDE: Final = 16  # with more images the effective receptive field hardly changes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `camworker units`."""
    parser.add_argument(
        "input", metavar="OUT_OR_INPUT", help="an output of localize, or an input as localize takes it"
    )
    parser.add_argument(
        "--to",
        required=True,
        type=output_folder,
        metavar="DIR",
        help="folder for units.parquet and units.html",
    )
    selection = parser.add_argument_group("classes, units and images")
    selection.add_argument(
        "--class",
        action="append",
        dest="classes",
        metavar="NAME",
        help="a class: name, index or WordNet id; may be repeated (default: all classes)",
    )
    selection.add_argument(
        "--units", type=whole_number(1), default=5, metavar="N", help="units per class (default 5)"
    )
    selection.add_argument(
        "--patches", type=whole_number(1), default=9, metavar="N", help="patches per unit (default 9)"
    )
    selection.add_argument(
        "--page-classes",
        type=whole_number(1),
        default=20,
        metavar="N",
        help="classes on the page (default 20)",
    )
    add_selection_options(selection)
    add_local_root_option(selection)
    network = parser.add_argument_group("network")
    add_recipe_option(network)
    add_network_options(network)
    add_input_size_option(network, default="the recipe's, or the network's")
    add_precision_option(network)
    cluster = parser.add_argument_group("cluster")
    add_batch_size_option(cluster)
    add_worker_options(cluster)


@dataclass(frozen=True, slots=True)
class _ShardCounts:
    """What the driver keeps of a shard: its peaks are merged as they arrive."""

    images: Counter[str]


def run(args: argparse.Namespace, console: Console) -> int:
    """Run `camworker units` and return its exit code."""
    started = time.monotonic()

    from jobs.units.request import UnitsOptions, build_request

    request = build_request(
        UnitsOptions(
            location=args.input,
            recipe_id=args.recipe,
            network=args.network,
            weights=args.weights,
            input_size=args.input_size,
            precision=args.precision,
            batch_size=args.batch_size,
            classes=args.classes or (),
            units=args.units,
            patches=args.patches,
            limit=args.limit,
            sample=args.sample,
            seed=args.seed,
            roots=tuple(args.local_root),
        )
    )
    side = _patch_side(request)
    collected = _collect(args, console, request)
    if collected is None:
        return INCOMPLETE

    from jobs.units.results import make_units_table, write_patches_page, write_units_table

    folder = Path(local_path(args.to))
    table = make_units_table(request, collected, side)
    parquet = write_units_table(table, folder, request, side)
    page = write_patches_page(
        folder,
        request,
        table,
        collected,
        side=side,
        max_classes=args.page_classes,
        by_count=not args.classes,
    )
    ok = collected.images["ok"]
    failed = {status: count for status, count in sorted(collected.images.items()) if status != "ok"}
    failures = "".join(f", {count} {status}" for status, count in failed.items())
    console.out(f"evaluated {ok} images{failures}; {format_duration(time.monotonic() - started)}")
    console.out(f"wrote {table.num_rows} patches to {parquet}")
    console.out(f"open {page}")
    console.result(
        {
            "images": ok,
            "failed": failed,
            "classes": len(request.labels),
            "units": len(request.settings.units_U),
            "patches": table.num_rows,
            "patch_side": side,
            "input_size": request.settings.input_size,
            "parquet": str(parquet),
            "page": str(page),
        }
    )
    return DONE


def _patch_side(request: "Request") -> int | None:
    """Return the side of a patch in input pixels, from the first images that can be decoded, if any."""
    from camworker.images.decode import PreprocessedImage
    from camworker.inference.localizer import Localizer
    from camworker.inference.prefetch import preprocessed_batches
    from camworker.units.receptive_field import effective_side

    settings = request.settings
    localizer = Localizer(
        request.package,
        device="cpu",
        precision="float32",
        input_size=settings.input_size,
        resize=settings.resize,
        refine="none",
        batch_size=_IMAGES_FOR_SIDE,
    )
    good: list[PreprocessedImage] = []
    for source in request.sources:
        # Decode in a child process: a crashing decoder must not end the driver.
        for _, batch in preprocessed_batches(
            source.items, localizer, source.policy, decode_threads=1, isolate=True
        ):
            good += [image for image in batch if isinstance(image, PreprocessedImage)]
            if len(good) >= _IMAGES_FOR_SIDE:
                break
        if len(good) >= _IMAGES_FOR_SIDE:
            break
    if not good:
        return None
    return effective_side(request.package.network, localizer.images(good[:_IMAGES_FOR_SIDE]))


def _collect(args: argparse.Namespace, console: Console, request: "Request") -> "CollectedActivations | None":
    """Evaluate all images on the cluster; return None if the run was stopped or a shard failed."""
    import numpy as np

    from camworker.ledger.plan import choose_shard_size
    from camworker.units.top_activations import CollectedActivations, TopActivations
    from jobs.driver.driver import Driver
    from jobs.ray_cluster import connected, plan_workers
    from jobs.units.worker import UnitsWorker

    settings, sources = request.settings, request.sources
    total = CollectedActivations(
        TopActivations.empty(len(settings.units_U), settings.count),
        Counter(),
        np.zeros(len(request.package.classes), np.int64),
    )

    def merge(collected: CollectedActivations) -> _ShardCounts:
        nonlocal total
        total = total.merge(collected)
        return _ShardCounts(collected.images)

    with connected(args.address, verbose=console.verbose):
        workers = plan_workers(args.workers, args.gpus_per_worker)
        size = choose_shard_size(request.images, workers.count, row_bytes=0)
        tasks = [
            (index, shard)
            for index, source in enumerate(sources)
            for shard in range(-(-source.items.num_rows // size))
        ]
        console.err(f"{request.images} images in {len(tasks)} shards, {len(settings.units_U)} units")
        with ImageProgress(request.images) as progress:
            driver = Driver[_ShardCounts](
                UnitsWorker,
                settings,
                workers,
                lambda images: progress.update(images.total(), images.total() - images["ok"]),
                arguments=lambda task: sources[task[0]].cut(task[1] * size, size),
                reduce=merge,
            )
            outcome = driver.run(tasks)
    for _, shard in outcome.lost:
        console.err(f"shard {shard} ended its worker in every attempt")
    if outcome.stopped:
        console.err(f"stopped: {outcome.stopped}; nothing was written")
    return None if outcome.stopped or outcome.lost else total
