"""Write top-5 labels, class activation maps and boxes of every image to Parquet; run again to resume."""

import argparse
import os
import time
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from camworker.errors import UsageError
from camworker.frame import RESIZES
from camworker.ledger import Ledger, Plan, recipe_id
from camworker.store import local_path, open_store
from jobs.console import DONE, INCOMPLETE, Console

if TYPE_CHECKING:
    import pyarrow as pa

    from camworker.sources import Source
    from jobs.generations import Summary
    from jobs.worker import Settings

HELP = "label and box every image of a data set"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "input", metavar="INPUT", help="folder of images, Parquet file or folder, CSV manifest"
    )
    parser.add_argument("--output", required=True, metavar="OUT", help="folder for predictions and ledger")
    what = parser.add_argument_group("what to localize")
    what.add_argument("--image-labels", metavar="FILE", help="Parquet or CSV: image_id, label; known classes")
    what.add_argument("--limit", type=_positive, metavar="N", help="only the first N images listed")
    what.add_argument(
        "--sample", type=_positive, metavar="N", help="only N images, drawn by hash of their id"
    )
    what.add_argument("--seed", type=int, default=0, help="another seed draws another sample (default 0)")
    what.add_argument("--id-column", metavar="NAME", help="the table's id column, if not image_id or id")
    what.add_argument("--identity-column", metavar="NAME", help="column that changes when the image does")
    what.add_argument("--retry-failed", action="store_true", help="plan images again that failed before")
    how = parser.add_argument_group("how to localize (decides the rows: another choice is another recipe)")
    how.add_argument("--network", default="efficientnet_lite0", help="name, or folder of a network package")
    how.add_argument("--weights", metavar="PATH", help="weights file or network package")
    how.add_argument("--input-size", type=_positive, metavar="PIXELS", help="default: the network's own")
    how.add_argument("--resize", choices=RESIZES, default="squash", help="default squash")
    how.add_argument("--box-rule", default="cam20", metavar="RULE", help="default cam20")
    how.add_argument("--top-k", type=_positive, default=5, metavar="K", help="classes an image (default 5)")
    precisions = ("auto", "float32", "bfloat16", "float16")
    how.add_argument(
        "--precision", choices=precisions, default="auto", help="default auto: the device's best"
    )
    where = parser.add_argument_group("where and how fast")
    where.add_argument("--dry-run", action="store_true", help="count, time a few images, write nothing")
    where.add_argument("--workers", type=_positive, metavar="N", help="default: as many as the machine fits")
    where.add_argument("--gpus-per-worker", type=float, metavar="G", help="default 1 where there are GPUs")
    where.add_argument("--batch-size", type=_positive, metavar="N", help="default 16, on a GPU 64")
    where.add_argument(
        "--shard-size", type=_positive, metavar="N", help="images a part (default at most 4096)"
    )
    where.add_argument("--address", help="Ray cluster to join (default: one started here for this run)")
    where.add_argument(
        "--max-error-rate", type=_share, default=1.0, metavar="SHARE", help="stop with exit code 3 above it"
    )


def run(args: argparse.Namespace, console: Console) -> int:
    started = time.monotonic()
    out = local_path(args.output)
    _refuse_overlap(local_path(args.input), out)
    store = open_store(out)
    settings, recipe, source = _ask(args, out)

    from camworker.dataset import failed
    from camworker.plan import pending, read_planned, select
    from jobs.generations import Summary

    ledger = Ledger(store, settings.recipe)
    items = select(source.items, limit=args.limit, sample=args.sample, seed=args.seed)
    planned = read_planned(ledger)
    new = pending(items, planned, failed(ledger), retry_failed=args.retry_failed)
    if args.dry_run:
        from jobs.pilot import dry_run

        return dry_run(console, settings, replace(source, items=new), args.workers, args.shard_size)
    generations = ledger.generations()
    unfinished = [ledger.read_plan(g) for g in generations if ledger.read_run(g) is None]
    # What is in an unfinished generation is counted when that one is completed.
    unfinished_ids = _ids_of(planned, unfinished)
    skipped = (items.num_rows - _count(items, unfinished_ids)) - (new.num_rows - _count(new, unfinished_ids))
    summary = Summary(settings.recipe, out, max(generations, default=None), skipped)
    done = True
    if unfinished or new.num_rows:
        done = _work(args, console, settings, recipe, unfinished, replace(source, items=new), summary)
    summary.seconds = round(time.monotonic() - started, 3)
    summary.tell(console)
    console.result(asdict(summary))
    return DONE if done else INCOMPLETE


def _ask(args: argparse.Namespace, out: str) -> "tuple[Settings, dict[str, Any], Source]":
    """Check all that was asked for. What decides the rows is the recipe, the rest is settings."""
    from camworker.sources import check_location, open_source

    check_location(args.input)  # before seconds go into importing torch

    from camworker.boxes import check_rule
    from camworker.networks import check_gap_head
    from camworker.plan import make_recipe
    from camworker.weights import load
    from jobs.worker import Settings

    check_rule(args.box_rule)
    package = load(args.network, args.weights)
    input_size = args.input_size or package.preprocessing.input_size
    check_gap_head(package.network, input_size)
    source = open_source(
        args.input,
        package.classes,
        image_labels=args.image_labels,
        id_column=args.id_column,
        identity_column=args.identity_column,
    )
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
            "views": "single",
            "box_rule": args.box_rule,
            "top_k": args.top_k,
            "precision": args.precision,
        }
    )
    settings = Settings(
        out=out,
        recipe=recipe_id(recipe),
        fingerprint=package.fingerprint,
        network=args.network,
        weights=args.weights,
        precision=args.precision,
        top_k=args.top_k,
        box_rule=args.box_rule,
        input_size=input_size,
        resize=args.resize,
        batch_size=args.batch_size,
    )
    return settings, recipe, source


def _work(
    args: argparse.Namespace,
    console: Console,
    settings: "Settings",
    recipe: dict[str, Any],
    unfinished: list[Plan],
    new: "Source",
    summary: "Summary",
) -> bool:
    """Complete the plans that an earlier run left, then plan and run what is new."""
    from camworker.plan import shard_size, write_generation
    from jobs.cluster import connected, fit_workers
    from jobs.generations import complete

    ledger = Ledger(open_store(settings.out), settings.recipe)
    with connected(args.address, verbose=console.verbose):
        workers = fit_workers(args.workers, args.gpus_per_worker)
        ledger.write_recipe(recipe)
        for plan in unfinished:
            if not complete(plan, ledger, settings, workers, args.max_error_rate, console, summary):
                return False
        if not new.items.num_rows:
            return True
        size = shard_size(new.items.num_rows, workers.count, args.shard_size)
        generation = max(ledger.generations(), default=0) + 1
        plan = write_generation(ledger, generation, new.items, size, verify=new.verifiable, tables=new.tables)
        return complete(plan, ledger, settings, workers, args.max_error_rate, console, summary)


def _ids_of(planned: "pa.Table", plans: list[Plan]) -> "pa.ChunkedArray":
    """The image ids of these plans among all that are planned."""
    import pyarrow.compute as pc

    numbers = pc.cast([plan.generation for plan in plans], "int32")
    return planned.filter(pc.is_in(planned["generation"], numbers))["image_id"]


def _count(items: "pa.Table", image_ids: "pa.ChunkedArray") -> int:
    """How many of items have one of these ids."""
    import pyarrow.compute as pc

    return pc.sum(pc.is_in(items["image_id"], image_ids)).as_py() or 0


def _refuse_overlap(source: str, out: str) -> None:
    if source == out or source.startswith(out + os.sep):
        raise UsageError("--output holds the input: name another folder")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError("has to be a whole number, at least 1")
    return int(text)


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError("has to be a number between 0 and 1")
    return value
