"""Arguments and the run of `camworker units`."""

import argparse
import json
import time
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from camworker.storage.atomic import write_then_rename
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
    import pyarrow as pa

    from camworker.reports.units_page import Pictures
    from camworker.units.top_activations import Excited
    from jobs.units.request import ImageBatchSource, Request

HELP = "which units speak for a class, and the patches that excite them"

_IMAGES_FOR_SIDE: Final = 16  # with more the effective receptive field hardly changes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "input", metavar="OUT_OR_INPUT", help="what localize was given as --output, or as INPUT"
    )
    parser.add_argument(
        "--to", required=True, type=output_folder, metavar="DIR", help="where units.parquet and units.html go"
    )
    what = parser.add_argument_group("what to look for")
    what.add_argument(
        "--class",
        action="append",
        dest="classes",
        metavar="NAME",
        help="a class: name, index or WordNet id; may be given again (default: all classes)",
    )
    what.add_argument(
        "--units", type=whole_number(1), default=5, metavar="N", help="units a class (default 5)"
    )
    what.add_argument(
        "--patches", type=whole_number(1), default=9, metavar="N", help="patches a unit (default 9)"
    )
    what.add_argument(
        "--page-classes",
        type=whole_number(1),
        default=20,
        metavar="N",
        help="classes on the page (default 20)",
    )
    add_selection_options(what)
    add_local_root_option(what)
    how = parser.add_argument_group("with which network")
    add_recipe_option(how)
    add_network_options(how)
    add_input_size_option(how, default="the recipe's, or the network's")
    add_precision_option(how)
    where = parser.add_argument_group("where and how fast")
    add_batch_size_option(where)
    add_worker_options(where)


@dataclass(frozen=True, slots=True)
class _Counts:
    """What is kept of a shard once its peaks are merged."""

    images: Counter[str]


def run(args: argparse.Namespace, console: Console) -> int:
    started = time.monotonic()

    from jobs.units.request import all_items, build_request

    request = build_request(args)
    side = _patch_side(request)
    excited = _work(args, console, request)
    if excited is None:
        return INCOMPLETE

    from camworker.units.table import units_table
    from camworker.units.top_activations import patch_boxes

    settings, images = request.settings, all_items(request.listings)
    boxes_UN4 = patch_boxes(
        excited.excitations.best_UN, request.map_size, side or 1, settings.input_size, settings.resize
    )
    names = request.package.classes.names
    table = units_table(
        request.labels, names, request.units_KU, request.weights_KC, excited.excitations, boxes_UN4, images
    )
    parquet = _write_table(table, Path(local_path(args.to)), request, side)
    page = _write_page(args, request, table, excited, side)
    ok = excited.images["ok"]
    failed = {status: count for status, count in sorted(excited.images.items()) if status != "ok"}
    told = "".join(f", {count} {status}" for status, count in failed.items())
    console.out(f"{ok} images looked at{told}; {format_duration(time.monotonic() - started)}")
    console.out(f"{table.num_rows} patches in {parquet}")
    console.out(f"open {page}")
    console.result(
        {
            "images": ok,
            "failed": failed,
            "classes": len(request.labels),
            "units": len(settings.units_U),
            "patches": table.num_rows,
            "patch_side": side,
            "input_size": settings.input_size,
            "parquet": str(parquet),
            "page": str(page),
        }
    )
    return DONE


def _patch_side(request: "Request") -> int | None:
    """Side of a patch in input pixels, by the first images that decode; None where none does."""
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
        batch_size=_IMAGES_FOR_SIDE,
    )
    good: list[PreprocessedImage] = []
    for listing in request.listings:
        # An image that crashes its decoder must not kill the driver.
        for _, batch in preprocessed_batches(
            listing.items, localizer, listing.policy, decode_threads=1, isolate=True
        ):
            good += [image for image in batch if isinstance(image, PreprocessedImage)]
            if len(good) >= _IMAGES_FOR_SIDE:
                break
        if len(good) >= _IMAGES_FOR_SIDE:
            break
    if not good:
        return None
    return effective_side(request.package.network, localizer.images(good[:_IMAGES_FOR_SIDE]))


def _work(args: argparse.Namespace, console: Console, request: "Request") -> "Excited | None":
    """Look at every image, on the cluster; None when that was stopped or a shard could not be done."""
    import numpy as np

    from camworker.ledger.plan import choose_shard_size
    from camworker.units.top_activations import Excited, TopActivations
    from jobs.driver.driver import Driver
    from jobs.ray_cluster import connected, plan_workers
    from jobs.units.worker import UnitsWorker

    settings, listings = request.settings, request.listings
    total = Excited(
        TopActivations.none(len(settings.units_U), settings.count),
        Counter(),
        np.zeros(len(request.package.classes), np.int64),
    )

    def keep(excited: Excited) -> _Counts:
        nonlocal total
        total = total.merge(excited)
        return _Counts(excited.images)

    with connected(args.address, verbose=console.verbose):
        workers = plan_workers(args.workers, args.gpus_per_worker)
        size = choose_shard_size(request.images, workers.count, row_bytes=0)
        tasks = [
            (index, shard)
            for index, listing in enumerate(listings)
            for shard in range(-(-listing.items.num_rows // size))
        ]
        console.err(f"{request.images} images in {len(tasks)} shards, {len(settings.units_U)} units")
        with ImageProgress(request.images) as progress:
            driver = Driver[_Counts](
                UnitsWorker,
                settings,
                workers,
                lambda images: progress.update(images.total(), images.total() - images["ok"]),
                arguments=lambda task: listings[task[0]].cut(task[1] * size, size),
                reduce=keep,
            )
            outcome = driver.run(tasks)
    for _, shard in outcome.lost:
        console.err(f"shard {shard} killed its worker every time")
    if outcome.stopped:
        console.err(f"stopped: {outcome.stopped}; nothing was written")
    return None if outcome.stopped or outcome.lost else total


def _write_table(table: "pa.Table", to: Path, request: "Request", side: int | None) -> Path:
    """Write units.parquet, whole or not at all; returns its path."""
    import pyarrow.parquet as pq

    settings = request.settings
    facts = {
        "network": request.package.name,
        "weights": request.package.fingerprint,
        "frame": json.dumps({"resize": settings.resize, "input_size": settings.input_size}),
        "patch_side": json.dumps(side),
    }
    path = to / "units.parquet"
    with write_then_rename(path) as draft:
        pq.write_table(
            table.replace_schema_metadata(facts), draft, compression="zstd", write_page_checksum=True
        )
    return path


def _write_page(
    args: argparse.Namespace, request: "Request", table: "pa.Table", excited: "Excited", side: int | None
) -> Path:
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    from camworker.reports.units_page import classes_on_page, write_units_page

    labels = request.labels
    if not args.classes:  # of a whole list the classes that are there to be seen, the most frequent first
        labels = labels[np.argsort(-excited.seen_K[labels], kind="stable")]
    labels = labels[: args.page_classes]
    shown = table.filter(pc.is_in(table["label"], pa.array(labels)))
    names = request.package.classes.names
    return write_units_page(
        local_path(args.to),
        classes_on_page(
            shown.to_pylist(),
            [(int(label), names[label], int(excited.seen_K[label])) for label in labels],
            _pictures(shown, request.listings),
        ),
        network=request.package.name,
        images=excited.images["ok"],
        failed={status: count for status, count in excited.images.items() if status != "ok"},
        total=len(request.labels),
        by_count=not args.classes,
        side=side,
        input_size=request.settings.input_size,
    )


def _pictures(shown: "pa.Table", listings: "list[ImageBatchSource]") -> "Pictures":
    """The patches of these rows, cut from the photographs, each of which is read once."""
    import pyarrow.compute as pc

    from camworker.errors import Failure
    from camworker.images.decode import decode
    from camworker.inputs.fetch import open_fetchers
    from camworker.reports.units_page import box_of, cut_patch

    boxes = defaultdict(set)
    for row in shown.select(["image_id", "xmin", "ymin", "xmax", "ymax"]).to_pylist():
        boxes[row["image_id"]].add(box_of(row))
    pictures = {}
    for listing in listings:
        items = listing.items.filter(pc.is_in(listing.items["image_id"], pc.unique(shown["image_id"])))
        sources = open_fetchers(items, listing.policy)
        for image_id, fetch in zip(items["image_id"].to_pylist(), sources, strict=True):
            data = fetch()
            pixels_CHW = data if isinstance(data, Failure) else decode(data)
            if not isinstance(pixels_CHW, Failure):
                photo_HW3 = pixels_CHW.permute(1, 2, 0).contiguous().numpy()
                pictures.update({(image_id, box): cut_patch(photo_HW3, box) for box in boxes[image_id]})
    return pictures
