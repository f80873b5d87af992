"""The run of `camworker localize`."""

import argparse
import json
import os
import tempfile
import time
from contextlib import redirect_stdout
from dataclasses import asdict, replace
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

from camworker.errors import UsageError
from camworker.storage.uris import is_below, is_s3, normalize_location, open_store
from jobs.console import DONE, INCOMPLETE, Console
from jobs.localize.arguments import add_arguments

if TYPE_CHECKING:
    from camworker.inputs.duckdb_scratch import ItemsFile
    from camworker.ledger.ledger import Ledger
    from jobs.localize.generation_runner import Runner, RunSummary
    from jobs.localize.request import LocalizeRequest
    from jobs.ray_cluster import Workers

__all__ = ["HELP", "add_arguments", "run"]

HELP = "predict labels, class activation maps and boxes of images"


def run(args: argparse.Namespace, console: Console) -> int:
    """Run `camworker localize`; return its exit code."""
    if args.remove_missing and (args.limit or args.sample):
        raise UsageError(
            "removing rows needs the whole listing: leave --limit and --sample out",
            parameter="remove_missing",
        )
    if args.truth:
        if args.dry_run:
            raise UsageError("a dry run writes no rows that could be measured", parameter="truth")
        if args.image_labels is None and args.truth.endswith((".csv", ".parquet")):
            args.image_labels = args.truth  # the maps of the known labels are what most metrics measure
    with tempfile.TemporaryDirectory(prefix="camworker-") as scratch:
        return _run(args, console, Path(scratch))


def _run(args: argparse.Namespace, console: Console, scratch: Path) -> int:
    started = time.monotonic()
    out = normalize_location(args.output)
    _refuse_overlap(normalize_location(args.input), out)
    store = open_store(out)
    request = _build_request(args, console, out, scratch)

    from camworker.inputs.item_queries import measure
    from camworker.ledger.ledger import Ledger
    from camworker.ledger.pending import unfinished_shards
    from jobs.localize.generation_runner import RunSummary

    ledger = Ledger(store, request.recipe.id)
    generations = ledger.generations()
    # The summary counts an unfinished generation when it is completed; a dry run counts what is left of it.
    unfinished = unfinished_shards(ledger, committed=not args.dry_run)
    pending = request.pending(ledger, unfinished=unfinished)
    if args.dry_run:
        return _dry_run(args, console, request, pending)
    stats = measure(pending)
    skipped = request.listing.items.count - stats.present
    summary = RunSummary(request.recipe.id, out, max(generations, default=None), skipped)
    done = True
    if stats.count or unfinished:
        from jobs.driver.json_logs import write_json_lines
        from jobs.ray_cluster import connected, in_job, plan_workers

        if console.verbose or in_job():
            write_json_lines()
        with connected(args.address, verbose=console.verbose):
            workers = plan_workers(args.workers, args.gpus_per_worker)
            request = request.for_images_per_worker(-(-stats.present // workers.count))
            done = _localize(args, console, request, ledger, workers, summary)
    summary.seconds = round(time.monotonic() - started, 3)
    summary.print(console)
    code = DONE if done else INCOMPLETE
    measured: dict[str, object] = {}
    if args.truth and done:
        code, measured = _summarize(args, console, request.recipe.id)
    console.result(asdict(summary) | measured)
    return code


def _summarize(args: argparse.Namespace, console: Console, recipe: str) -> tuple[int, dict[str, object]]:
    """Measure the rows against --truth by `camworker summarize`; return its exit code and its JSON."""
    from jobs.cli import main

    command = ["summarize", args.output, "--recipe", recipe, "--truth", args.truth]
    console.out(f"\n$ camworker {' '.join(command)}")
    if not console.as_json:
        return main(command), {}
    with redirect_stdout(StringIO()) as captured:
        code = main([*command, "--json"])
    lines = captured.getvalue().splitlines()
    return code, {"summary": json.loads(lines[-1]) if lines else None}


def _build_request(args: argparse.Namespace, console: Console, out: str, scratch: Path) -> "LocalizeRequest":
    """Check the arguments, load the network and list the items.

    Args:
        args: The arguments of the command.
        console: For what the network cannot do.
        out: The normalized location of the output.
        scratch: A folder for temporary files.

    Raises:
        UsageError: If something cannot work.
    """
    from camworker.inputs import ReadPolicy
    from camworker.inputs.sources import check_location, list_source

    # Before torch is imported, which takes seconds.
    check_location(args.input)
    if args.truth:
        check_location(args.truth)

    from camworker.inference.cam_network import row_shapes
    from camworker.inputs.item_queries import measure, select_items
    from camworker.presets import Choices, build_recipe, load_for, resolve
    from jobs.localize.request import LocalizeRequest
    from jobs.localize.worker import WorkerSettings

    choices = Choices(
        args.preset,
        args.input_size,
        args.resize,
        args.views,
        args.refine,
        args.refined,
        args.box_rule,
        args.top_k,
        args.batch_size,
    )
    package, output_stride = load_for(
        args.preset, args.network, args.weights, output_stride=args.output_stride
    )
    resolved = resolve(choices, package)
    if args.preset == "best" and output_stride is None:
        console.err("the network cannot be dilated: its maps keep their own output stride")
    if resolved.no_refinement:
        console.err(f"maps are not refined: {resolved.no_refinement}")
    settings = WorkerSettings(
        out=out,
        recipe=build_recipe(resolved, package, output_stride, args.precision),
        network=args.network,
        weights=args.weights,
        batch_size=args.batch_size,
        compile=args.compile,
        verbose=args.verbose,
    )
    listing = list_source(
        args.input,
        package.classes,
        scratch,
        image_labels=args.image_labels,
        id_column=args.id_column,
        identity_column=args.identity_column,
        exclude=out,
        policy=ReadPolicy(roots=tuple(args.local_root)),
    )
    items = select_items(listing.items, limit=args.limit, sample=args.sample, seed=args.seed)
    request = LocalizeRequest(
        settings.recipe,
        settings,
        replace(listing, items=items),
        *row_shapes(resolved, package, package.map_at(resolved.frame_spec.input_size)),
        shard_size=args.shard_size,
        retry_failed=args.retry_failed,
        remove_missing=args.remove_missing,
    )
    request.choose_shard_size(measure(items), workers=1)  # refuses a size that is too large
    return request


def _localize(
    args: argparse.Namespace,
    console: Console,
    request: "LocalizeRequest",
    ledger: "Ledger",
    workers: "Workers",
    summary: "RunSummary",
) -> bool:
    """Hold the lease while all generations are completed; return whether they are complete."""
    from camworker.ledger.lease import acquire
    from camworker.storage.store import require_conditional_writes
    from jobs.localize.generation_runner import Runner

    # Nothing is written before everything in the request is known to work.
    if is_s3(summary.output) and not args.single_writer:
        require_conditional_writes(ledger.store, summary.output)
    try:
        with acquire(ledger.store, ledger.recipe) as lease:
            runner = Runner(ledger, lease, request.settings, workers, args.max_error_rate, console, summary)
            return _complete_all(request, ledger, runner)
    except OSError as error:
        # The disk is full or S3 does not answer. Committed parts stay valid.
        console.err(f"stopped: {summary.output}: {error}; run the same command again to resume")
        return False


def _complete_all(request: "LocalizeRequest", ledger: "Ledger", runner: "Runner") -> bool:
    """Complete the generations that an earlier run left unfinished, then plan and run what is new."""
    from camworker.inputs.duckdb_scratch import release_memory
    from camworker.inputs.item_queries import measure
    from camworker.ledger.plan import write_generation

    ledger.write_recipe(request.recipe)
    done = True
    release_memory()
    for plan in ledger.unfinished():
        done = runner.complete(plan) and done
    # Recompute: another run may have planned in the meantime. Pick the generation number first; if a
    # concurrent planner commits that number, this run works on its plan.
    number = max(ledger.generations(), default=0) + 1
    new = request.pending(ledger)
    while (stats := measure(new)).count and not runner.stopped:
        size = request.choose_shard_size(stats, runner.workers.count)
        plan = write_generation(ledger, number, new.batches(), size, request.listing.policy)
        release_memory()
        done = runner.complete(plan) and done
        # Something is pending only if a concurrent planner was first and planned fewer items.
        number = max(ledger.generations(), default=0) + 1
        new = request.pending(ledger, include_retries=False)
    return done and not runner.stopped


def _dry_run(
    args: argparse.Namespace, console: Console, request: "LocalizeRequest", pending: "ItemsFile"
) -> int:
    from camworker.inputs.item_queries import measure
    from jobs.localize.dry_run import dry_run
    from jobs.ray_cluster import local_workers

    stats = measure(pending)
    workers = local_workers(args.workers, args.gpus_per_worker)
    size = request.choose_shard_size(stats, workers.count)
    return dry_run(console, request.settings, replace(request.listing, items=pending), stats, workers, size)


def _refuse_overlap(source: str, out: str) -> None:
    """Refuse an output that is, or contains, the input."""
    source, out = (path if is_s3(path) else os.path.realpath(path) for path in (source, out))
    if is_below(source, out):
        raise UsageError(f"{out} holds the input: choose another folder", parameter="output")
