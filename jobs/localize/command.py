"""Arguments and the run of `camworker localize`."""

import argparse
import os
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from camworker.errors import LeaseHeldError, UsageError
from camworker.frame import RESIZES, VIEWS
from camworker.ledger.ledger import Ledger, recipe_id
from camworker.storage.uris import is_below, is_s3, normalize_location, open_store
from jobs.console import DONE, HELD, INCOMPLETE, Console
from jobs.options import add_local_root, folder, gpus, share, whole

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
    parser.add_argument(
        "input",
        metavar="INPUT",
        help="folder or s3:// prefix of images, Parquet file or folder, CSV or Parquet manifest",
    )
    parser.add_argument(
        "--output",
        required=True,
        type=folder,
        metavar="OUT",
        help="folder or s3:// prefix for predictions and ledger",
    )
    what = parser.add_argument_group("what to localize")
    what.add_argument("--image-labels", metavar="FILE", help="Parquet or CSV: image_id, label; known classes")
    what.add_argument("--limit", type=whole(1), metavar="N", help="only the first N images listed")
    what.add_argument("--sample", type=whole(1), metavar="N", help="only N images, drawn by hash of their id")
    what.add_argument("--seed", type=int, default=0, help="another seed draws another sample (default 0)")
    what.add_argument("--id-column", metavar="NAME", help="the table's id column, if not image_id or id")
    add_local_root(what)
    what.add_argument("--identity-column", metavar="NAME", help="column that changes when the image does")
    what.add_argument("--retry-failed", action="store_true", help="plan images again that failed before")
    what.add_argument(
        "--remove-missing", action="store_true", help="rows of status removed for images no longer listed"
    )
    how = parser.add_argument_group("how to localize (decides the rows: another choice is another recipe)")
    how.add_argument("--network", default="efficientnet_lite0", help="see camworker networks")
    how.add_argument(
        "--weights", metavar="PATH", help="network package, weights file, or DEFAULT to download (see README)"
    )
    how.add_argument("--input-size", type=whole(1, 4096), metavar="PIXELS", help="default: the network's own")
    how.add_argument("--resize", choices=RESIZES, default="squash", help="default squash")
    how.add_argument("--views", choices=VIEWS, default="single", help="looks at an image (default single)")
    how.add_argument(
        "--output-stride",
        type=int,
        choices=(8, 16, 32),
        help="pixels a cell of the map: finer by dilating the last stages (default: the network's own)",
    )
    how.add_argument(
        "--box-rule", default="cam20", metavar="RULE", help="cam20 (default), cam:T, cam20-multi or dtbox"
    )
    how.add_argument("--top-k", type=whole(1), default=5, metavar="K", help="classes an image (default 5)")
    precisions = ("auto", "float32", "bfloat16", "float16")
    how.add_argument(
        "--precision", choices=precisions, default="auto", help="default auto: the device's best"
    )
    where = parser.add_argument_group("where and how fast")
    where.add_argument("--dry-run", action="store_true", help="count, time a few images, write nothing")
    where.add_argument("--workers", type=whole(1), metavar="N", help="default: as many as the machine fits")
    where.add_argument("--gpus-per-worker", type=gpus, metavar="G", help="default 1 where there are GPUs")
    where.add_argument(
        "--compile", choices=("auto", "on", "off"), default="auto", help="default auto: where it repays"
    )
    where.add_argument("--batch-size", type=whole(1), metavar="N", help="default 16, on a GPU 64")
    where.add_argument(
        "--shard-size", type=whole(1), metavar="N", help="images a part (default at most 4096)"
    )
    where.add_argument(
        "--single-writer",
        action="store_true",
        help="trust that no other run writes to OUT: for stores in which create-only writes replace",
    )
    where.add_argument("--address", help="Ray cluster to join (default: one started here for this run)")
    where.add_argument(
        "--max-error-rate", type=share, default=1.0, metavar="SHARE", help="stop with exit code 3 above it"
    )


@dataclass(frozen=True, slots=True)
class _Request:
    """What was asked for, checked. recipe: all of it that decides the rows; listing: what to localize."""

    settings: "WorkerSettings"
    recipe: dict[str, Any]
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
        from jobs import json_logs as logs
        from jobs.ray_cluster import connected, plan_workers

        if console.verbose or logs.in_job():
            logs.write_lines()
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
                console.note(f"camworker localize: {error}")
                return HELD
            except OSError as error:  # the disk is full, S3 does not answer: what was committed stays
                console.note(f"stopped: {out}: {error}; run the same command again to resume")
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
    from camworker.ledger.plan import choose_shard_size, make_recipe, row_bytes
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
    recipe = make_recipe(
        {
            "network": package.name,
            "weights": package.fingerprint,
            "class_names": package.classes.names,
            "class_ids": package.classes.ids,
            "preprocessing": {
                **asdict(package.preprocessing),
                "input_size": input_size,
                "resize": args.resize,
            },
            "pooling": package.network.pooling,
            "scoring": package.scoring,
            "output_stride": args.output_stride,
            "views": args.views,
            "box_rule": box_rule,
            "top_k": args.top_k,
            "precision": args.precision,
        }
    )
    settings = WorkerSettings(
        out=out,
        recipe=recipe_id(recipe),
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
