"""Arguments and the run of `camworker localize`."""

import argparse
import os
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from camworker.errors import LeaseHeldError, UsageError
from camworker.frame import RESIZES, VIEWS, FrameSpec
from camworker.ledger.ledger import Ledger
from camworker.ledger.recipe import Recipe
from camworker.storage.uris import is_below, is_s3, normalize_location, open_store
from jobs.console import DONE, INCOMPLETE, Console
from jobs.options import (
    add_batch_size_option,
    add_id_column_option,
    add_input_size_option,
    add_local_root_option,
    add_network_options,
    add_precision_option,
    add_selection_options,
    add_worker_options,
    fraction,
    output_folder,
    whole_number,
)

if TYPE_CHECKING:
    from camworker.inputs.duckdb_scratch import ItemsFile
    from camworker.inputs.sources import ItemListing
    from camworker.ledger.lease import Lease
    from camworker.schemas import CamShape
    from jobs.localize.generation_runner import RunSummary
    from jobs.localize.worker import WorkerSettings
    from jobs.ray_cluster import Workers

HELP = "label and box every image of a data set"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `camworker localize`."""
    parser.add_argument(
        "input",
        metavar="INPUT",
        help="images: a folder or s3:// prefix, a Parquet file or folder with image bytes, or a CSV or "
        "Parquet manifest of image files",
    )
    parser.add_argument(
        "--output",
        required=True,
        type=output_folder,
        metavar="OUT",
        help="folder or s3:// prefix for the predictions and their ledger",
    )
    images = parser.add_argument_group("images")
    images.add_argument(
        "--image-labels",
        metavar="FILE",
        help="known labels of the images (Parquet or CSV: image_id, label), which get maps and boxes too",
    )
    add_selection_options(images)
    add_id_column_option(images)
    add_local_root_option(images)
    images.add_argument(
        "--identity-column",
        metavar="NAME",
        help="column of the input table whose value changes whenever the image changes",
    )
    images.add_argument("--retry-failed", action="store_true", help="plan images again that failed before")
    images.add_argument(
        "--remove-missing",
        action="store_true",
        help="write rows with the status removed for images that are no longer listed",
    )
    recipe = parser.add_argument_group("recipe (these options decide the rows)")
    add_network_options(recipe)
    add_input_size_option(recipe)
    recipe.add_argument(
        "--resize",
        choices=RESIZES,
        default="squash",
        help="how to fit an image to the input (default squash)",
    )
    recipe.add_argument(
        "--views", choices=VIEWS, default="single", help="crops to evaluate per image (default single)"
    )
    recipe.add_argument(
        "--output-stride",
        type=int,
        choices=(8, 16, 32),
        help="pixels per cell of the map; a smaller stride dilates the last stages (default: the network's)",
    )
    recipe.add_argument(
        "--box-rule", default="cam20", metavar="RULE", help="cam20 (default), cam:T, cam20-multi or dtbox"
    )
    recipe.add_argument(
        "--top-k", type=whole_number(1), default=5, metavar="K", help="classes per image (default 5)"
    )
    add_precision_option(recipe)
    execution = parser.add_argument_group("execution")
    execution.add_argument(
        "--dry-run", action="store_true", help="count the images, time a few of them and write nothing"
    )
    add_worker_options(execution)
    add_batch_size_option(execution)
    execution.add_argument(
        "--compile",
        choices=("auto", "on", "off"),
        default="auto",
        help="compile the network (default auto: if that saves more time than it takes)",
    )
    execution.add_argument(
        "--shard-size", type=whole_number(1), metavar="N", help="images per part (default: at most 4096)"
    )
    execution.add_argument(
        "--single-writer",
        action="store_true",
        help="trust that no other run writes to OUT, for stores without conditional writes",
    )
    execution.add_argument(
        "--max-error-rate",
        type=fraction,
        default=1.0,
        metavar="FRACTION",
        help="stop with exit code 3 if more images than this fail (default 1: never)",
    )


@dataclass(frozen=True, slots=True)
class _Request:
    """What was asked for, checked. recipe: all of it that decides the rows; listing: what to localize."""

    settings: "WorkerSettings"
    recipe: Recipe
    listing: "ItemListing[ItemsFile]"
    cam_shape: "CamShape"


def run(args: argparse.Namespace, console: Console) -> int:
    if args.remove_missing and (args.limit or args.sample):
        raise UsageError("--remove-missing needs the whole listing: leave --limit and --sample out")
    with tempfile.TemporaryDirectory(prefix="camworker-") as scratch:
        return _run(args, console, Path(scratch))


def _run(args: argparse.Namespace, console: Console, scratch: Path) -> int:
    started = time.monotonic()
    out = normalize_location(args.output)
    _refuse_overlap(normalize_location(args.input), out)
    store = open_store(out)
    request = _ask(args, out, scratch)
    ledger = Ledger(store, request.settings.recipe)

    from camworker.inputs.item_queries import measure
    from camworker.ledger.lease import acquire
    from camworker.ledger.pending import unfinished_shards
    from camworker.storage.store import require_conditional_writes
    from jobs.localize.generation_runner import RunSummary

    # What is in an unfinished generation is counted when that one is completed; a dry run counts what is
    # left of it.
    generations = ledger.generations()
    unfinished = unfinished_shards(ledger, committed=not args.dry_run)
    to_do = _pending(args, request, ledger, unfinished)
    if args.dry_run:
        return _dry_run(args, console, request, to_do)
    counted = measure(to_do)
    skipped = request.listing.items.count - counted.there
    summary = RunSummary(request.settings.recipe, out, max(generations, default=None), skipped)
    done = True
    if counted.count or unfinished:
        from jobs.driver.json_logs import write_json_lines
        from jobs.ray_cluster import connected, in_job, plan_workers

        if console.verbose or in_job():
            write_json_lines()
        with connected(args.address, verbose=console.verbose):
            workers = plan_workers(args.workers, args.gpus_per_worker)
            images = -(-counted.there // workers.count)
            request = replace(request, settings=replace(request.settings, images=images))
            # Nothing is written before all that was asked for is known to work.
            if is_s3(out) and not args.single_writer:
                require_conditional_writes(store, out)
            try:
                with acquire(store, ledger.recipe) as lease:
                    done = _work(args, console, request, ledger, lease, workers, summary)
            except LeaseHeldError as error:
                console.err(f"camworker localize: {error}")
                return error.exit_code
            except OSError as error:  # the disk is full, S3 does not answer: what was committed stays
                console.err(f"stopped: {out}: {error}; run the same command again to resume")
                done = False
    summary.seconds = round(time.monotonic() - started, 3)
    summary.tell(console)
    console.result(asdict(summary))
    return DONE if done else INCOMPLETE


def _ask(args: argparse.Namespace, out: str, scratch: Path) -> _Request:
    """Check all that was asked for. Raises UsageError."""
    from camworker.inputs import ReadPolicy
    from camworker.inputs.sources import check_location, list_source

    check_location(args.input)  # before seconds go into importing torch

    from camworker.boxes.rules import check_rule
    from camworker.inference.localizer import cam_shape
    from camworker.inputs.item_queries import measure, select_items
    from camworker.ledger.plan import choose_shard_size, row_bytes
    from camworker.networks.package import load
    from jobs.localize.worker import WorkerSettings

    box_rule = check_rule(args.box_rule)
    package = load(args.network, args.weights, output_stride=args.output_stride)
    input_size = args.input_size or package.preprocessing.input_size
    shape = cam_shape(args.top_k, len(package.classes), package.map_at(input_size), args.views)
    listing = list_source(
        args.input,
        package.classes,
        scratch,
        image_labels=args.image_labels,
        id_column=args.id_column,
        identity_column=args.identity_column,
        leave_out=out,
        policy=ReadPolicy(roots=tuple(args.local_root)),
    )
    items = select_items(listing.items, limit=args.limit, sample=args.sample, seed=args.seed)
    found = measure(items)
    choose_shard_size(
        found.count, 1, row_bytes(found.labels, shape), args.shard_size
    )  # refuses what is too much
    recipe = Recipe(
        network=package.name,
        weights_fingerprint=package.fingerprint,
        classes=package.classes,
        frame_spec=FrameSpec(input_size, args.resize, args.views),
        mean=package.preprocessing.mean,
        std=package.preprocessing.std,
        pooling=package.network.pooling,
        scoring=package.scoring,
        output_stride=args.output_stride,
        box_rule=box_rule,
        top_k=args.top_k,
        precision=args.precision,
    )
    settings = WorkerSettings(
        out=out,
        recipe=recipe.id,
        fingerprint=package.fingerprint,
        network=args.network,
        weights=args.weights,
        precision=args.precision,
        top_k=args.top_k,
        box_rule=box_rule,
        input_size=input_size,
        resize=args.resize,
        views=args.views,
        output_stride=args.output_stride,
        batch_size=args.batch_size,
        compile=args.compile,
        verbose=args.verbose,
    )
    return _Request(settings, recipe, replace(listing, items=items), shape)


def _work(
    args: argparse.Namespace,
    console: Console,
    request: _Request,
    ledger: Ledger,
    lease: "Lease",
    workers: "Workers",
    summary: "RunSummary",
) -> bool:
    """Complete the generations that an earlier run left, then plan and run what is new."""
    from camworker.inputs.duckdb_scratch import release_memory
    from camworker.inputs.item_queries import measure
    from camworker.ledger.plan import choose_shard_size, row_bytes, write_generation
    from jobs.localize.generation_runner import Runner

    ledger.write_recipe(request.recipe)
    runner = Runner(ledger, lease, request.settings, workers, args.max_error_rate, console, summary)
    done = True
    release_memory()
    for plan in ledger.unfinished():
        done = runner.complete(plan) and done
    # Asked again: another run may have planned since, and what it planned is not ours to plan. The number is
    # taken first, so that who plans while this is asked has it, and this run gets that plan instead.
    number = max(ledger.generations(), default=0) + 1
    new = _pending(args, request, ledger)
    while (found := measure(new)).count and not runner.stopped:
        size = choose_shard_size(
            found.count, workers.count, row_bytes(found.labels, request.cam_shape), args.shard_size
        )
        plan = write_generation(ledger, number, new.batches(), size, request.listing.policy)
        release_memory()
        done = runner.complete(plan) and done
        # Nothing, unless another run won the race to plan, and planned less.
        number = max(ledger.generations(), default=0) + 1
        new = _pending(args, request, ledger, again=False)
    return done and not runner.stopped


def _dry_run(args: argparse.Namespace, console: Console, request: _Request, to_do: "ItemsFile") -> int:
    from camworker.inputs.item_queries import measure
    from camworker.ledger.plan import choose_shard_size, row_bytes
    from jobs.localize.dry_run import dry_run
    from jobs.ray_cluster import local_workers

    found = measure(to_do)
    workers = local_workers(args.workers, args.gpus_per_worker)
    size = choose_shard_size(
        found.count, workers.count, row_bytes(found.labels, request.cam_shape), args.shard_size
    )
    return dry_run(console, request.settings, replace(request.listing, items=to_do), found, workers, size)


def _pending(
    args: argparse.Namespace,
    request: _Request,
    ledger: Ledger,
    unfinished: list[tuple[int, int]] | None = None,
    *,
    again: bool = True,
) -> "ItemsFile":
    from camworker.ledger.pending import find_pending

    return find_pending(
        request.listing.items,
        ledger,
        retry_failed=args.retry_failed,
        remove_missing=args.remove_missing,
        unfinished=unfinished or (),
        again=again,
    )


def _refuse_overlap(source: str, out: str) -> None:
    source, out = (where if is_s3(where) else os.path.realpath(where) for where in (source, out))
    if is_below(source, out):
        raise UsageError("--output holds the input: name another folder")
