"""Write top-5 labels, class activation maps and boxes of every image to Parquet; run again to resume."""

import argparse
import os
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from camworker.errors import UsageError
from camworker.frame import RESIZES
from camworker.ledger import Ledger, Plan, recipe_id
from camworker.store import local_path, open_store
from jobs.console import DONE, INCOMPLETE, Console, ImageProgress, duration

if TYPE_CHECKING:
    import pyarrow as pa

    from camworker.sources import Source
    from jobs.driver import Outcome
    from jobs.worker import Settings

HELP = "label and box every image of a data set"

_ERRORS_COUNT_FROM: Final = 100  # images, before --max-error-rate can stop a run
_PILOT_SECONDS: Final = 10.0


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
    if not os.path.exists(local_path(args.input)):
        raise UsageError(f"{args.input} does not exist: name a folder of images, a Parquet or a CSV file")
    store = open_store(out)

    settings, recipe, source = _ask(args, out)
    from camworker.dataset import failed
    from camworker.plan import pending, read_planned, select

    items = select(source.items, limit=args.limit, sample=args.sample, seed=args.seed)
    ledger = Ledger(store, settings.recipe)
    planned = read_planned(ledger)
    new = pending(items, planned, failed(ledger), retry_failed=args.retry_failed)
    if args.dry_run:
        return _dry_run(args, console, settings, source, new)
    unfinished = [g for g in ledger.generations() if ledger.read_run(g) is None]
    summary: dict[str, Any] = {
        "recipe": settings.recipe,
        "generation": max(ledger.generations(), default=None),
        "planned": 0,
        "skipped": items.num_rows - new.num_rows,
        "processed": 0,
        "ok": 0,
        "failed": {},
        "parts": 0,
        "seconds": 0.0,
        "images_per_second": None,
        "output": out,
    }
    code = DONE
    if unfinished or new.num_rows:
        ledger.write_recipe(recipe)
        code = _run_generations(args, console, settings, ledger, unfinished, new, source.verifiable, summary)
    summary["seconds"] = round(time.monotonic() - started, 3)
    _tell(console, args.output, summary)
    console.result(summary)
    return code


def _ask(args: argparse.Namespace, out: str) -> "tuple[Settings, dict[str, Any], Source]":
    """Check all that was asked for; what it comes to is the recipe."""
    from dataclasses import asdict

    from camworker.boxes import check_rule
    from camworker.networks import check_gap_head
    from camworker.plan import make_recipe
    from camworker.sources import open_source
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


def _run_generations(
    args: argparse.Namespace,
    console: Console,
    settings: "Settings",
    ledger: Ledger,
    unfinished: list[int],
    new: "pa.Table",
    verify: bool,
    summary: dict[str, Any],
) -> int:
    """Finish what an earlier run left, then plan and run what is new."""
    from camworker.plan import shard_size, write_generation
    from jobs.cluster import connected, fit_workers

    with connected(args.address, verbose=console.verbose):
        workers = fit_workers(args.workers, args.gpus_per_worker)
        plans = [ledger.read_plan(generation) for generation in unfinished]
        if new.num_rows:
            size = shard_size(new.num_rows, workers.count, args.shard_size)
            generation = max(ledger.generations(), default=0) + 1
            plans.append(write_generation(ledger, generation, new, size, verify=verify))
        for plan in plans:
            code = _run_generation(args, console, settings, ledger, plan, workers, summary)
            if code != DONE:
                return code
    return DONE


def _run_generation(
    args: argparse.Namespace,
    console: Console,
    settings: "Settings",
    ledger: Ledger,
    plan: Plan,
    workers: Any,
    summary: dict[str, Any],
) -> int:
    from jobs.driver import Driver

    console.note(f"generation {plan.generation}: {plan.items} images in {plan.shards} shards")
    started = time.monotonic()
    with ImageProgress(plan.items) as progress:

        def on_progress(images: Counter[str], adopted: int) -> None:
            failed = images.total() - images["ok"]
            progress.update(images.total() + adopted, failed)
            if images.total() >= _ERRORS_COUNT_FROM and failed > args.max_error_rate * images.total():
                driver.stop("more images failed than --max-error-rate allows")

        driver = Driver(settings, workers, on_progress)
        outcome = driver.run([(plan.generation, shard) for shard in range(plan.shards)])
    _count(plan, outcome, summary, time.monotonic() - started)
    if outcome.stopped or outcome.lost:
        for _, shard in outcome.lost:
            console.note(f"shard {shard} of generation {plan.generation} killed its worker every time")
        if outcome.stopped:
            console.note(f"stopped: {outcome.stopped}")
        return INCOMPLETE
    ledger.commit_run(plan.generation, _run_record(plan, outcome, time.monotonic() - started))
    failed = sum(summary["failed"].values())
    if failed > args.max_error_rate * summary["processed"]:
        console.note(f"{failed} of {summary['processed']} images failed: more than --max-error-rate allows")
        return INCOMPLETE
    return DONE


def _count(plan: Plan, outcome: "Outcome", summary: dict[str, Any], seconds: float) -> None:
    """Add a generation's work to the run's summary. What an earlier run had committed is skipped."""
    ours = [done.part for done in outcome.done.values() if done.seconds]
    images = Counter[str]()
    for part in ours:
        images.update(part.images)
    failed = Counter(summary["failed"]) + Counter({k: v for k, v in images.items() if k != "ok"})
    adopted = sum(done.part.rows for done in outcome.done.values() if not done.seconds)
    rate = outcome.images_per_second or (images.total() / seconds if images.total() else None)
    summary.update(
        generation=plan.generation,
        planned=summary["planned"] + plan.items,
        skipped=summary["skipped"] + adopted,
        processed=summary["processed"] + images.total(),
        ok=summary["ok"] + images["ok"],
        failed=dict(failed),
        parts=summary["parts"] + len(ours),
        images_per_second=round(rate, 2) if rate else summary["images_per_second"],
    )


def _run_record(plan: Plan, outcome: "Outcome", seconds: float) -> dict[str, Any]:
    from dataclasses import asdict

    parts = [outcome.done[task].part for task in sorted(outcome.done)]
    images = Counter[str]()
    for part in parts:
        images.update(part.images)
    return {
        "recipe": plan.recipe,
        "generation": plan.generation,
        "plan_hash": plan.hash,
        "items": plan.items,
        "images": dict(images),
        "seconds": round(seconds, 3),
        "images_per_second": outcome.images_per_second,
        "versions": outcome.about,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "parts": [asdict(part) for part in parts],
    }


def _dry_run(
    args: argparse.Namespace, console: Console, settings: "Settings", source: "Source", new: "pa.Table"
) -> int:
    """Say what a run would do; time a few of its images here, in one worker's way."""
    import pyarrow.compute as pc

    from camworker.plan import shard_size
    from jobs.cluster import local_workers

    workers = local_workers(args.workers)
    rate = _pilot(settings, source, new, workers.cores) if new.num_rows else None
    size = shard_size(new.num_rows, workers.count, args.shard_size)
    summary = {
        "recipe": settings.recipe,
        "planned": new.num_rows,
        "skipped": source.items.num_rows - new.num_rows,
        "bytes": pc.sum(new["size"]).as_py() or 0,
        "shards": -(-new.num_rows // size),
        "workers": workers.count,
        "images_per_second": round(rate * workers.count, 2) if rate else None,
        "seconds": round(new.num_rows / (rate * workers.count), 1) if rate else None,
    }
    console.say(
        f"{summary['planned']} images to localize ({summary['bytes'] / 1e6:.1f} MB) in {summary['shards']} "
        f"shards; {summary['skipped']} are done or were not asked for"
    )
    if rate:
        console.say(
            f"{summary['images_per_second']} images/s with {workers.count} worker(s) on this machine: about "
            f"{duration(new.num_rows / (rate * workers.count))}, start-up aside; nothing was written"
        )
    console.result(summary)
    return DONE


def _pilot(settings: "Settings", source: "Source", new: "pa.Table", cores: int) -> float | None:
    """Images per second of one worker, after its first batch, on some of the images."""
    import torch

    from camworker.shard import localize_items

    torch.set_num_threads(cores)
    localizer = settings.localizer()
    items = new.slice(0, 16 * localizer.batch_size)
    first = last = count = 0.0
    for rows, _ in localize_items(items, localizer, decoders=cores, verify=source.verifiable):
        last = time.monotonic()
        if not first:
            first = last
        else:
            count += rows.num_rows
        if last - first > _PILOT_SECONDS:
            break
    return count / (last - first) if count else None


def _tell(console: Console, output: str, summary: dict[str, Any]) -> None:
    failed = ", ".join(f"{count} {status}" for status, count in sorted(summary["failed"].items()))
    console.say(
        f"{summary['processed']} images localized: {summary['ok']} ok{', ' + failed if failed else ''}; "
        f"{summary['skipped']} were done before; {duration(summary['seconds'])}"
    )
    console.say(f"recipe {summary['recipe']} in {output}")


def _refuse_overlap(source: str, out: str) -> None:
    if source == out or source.startswith(out + os.sep):
        raise UsageError("--output holds the input: name another folder")


def _positive(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError("has to be at least 1")
    return value


def _share(text: str) -> float:
    if not 0 <= (value := float(text)) <= 1:
        raise argparse.ArgumentTypeError("has to be between 0 and 1")
    return value
