"""Write the latest row of every image of a recipe as one Parquet data set."""

import argparse
import os
from dataclasses import asdict

from camworker.errors import UsageError
from camworker.storage.uris import is_below, is_s3, normalize_location, open_store
from jobs.console import DONE, Console
from jobs.options import add_out_argument, add_recipe_option, whole_number
from jobs.progress import ImageProgress

HELP = "write the latest rows as one Parquet data set"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `camworker compact`."""
    add_out_argument(parser)
    parser.add_argument(
        "--to",
        required=True,
        metavar="DATASET",
        help="the new data set: a folder or s3:// prefix outside OUT",
    )
    add_recipe_option(parser)
    parser.add_argument(
        "--rows-per-file", type=whole_number(1), metavar="N", help="rows per file (default: about 128 MB)"
    )


def run(args: argparse.Namespace, console: Console) -> int:
    """Run `camworker compact`; return its exit code."""
    out, to = normalize_location(args.output), normalize_location(args.to)
    _refuse_inside(to, out)

    from camworker.ledger.ledger import open_ledger

    ledger = open_ledger(open_store(out), args.recipe, args.output)

    from camworker.ledger.compact import compact
    from camworker.ledger.snapshot import Snapshot

    snapshot = Snapshot.load(ledger)
    with ImageProgress(snapshot.planned) as progress:
        files = compact(snapshot, to, args.rows_per_file, lambda rows: progress.update(rows, 0))
    rows, size = sum(file.rows for file in files), sum(file.bytes for file in files)
    console.out(f"{rows} images in {to}: {len(files)} files, {size} bytes")
    if not snapshot.complete:
        console.out("a generation is unfinished: the data set holds only some of its images")
    console.result(
        {
            "recipe": ledger.recipe,
            "path": to,
            "rows": rows,
            "bytes": size,
            "files": [asdict(file) for file in files],
            "complete": snapshot.complete,
        }
    )
    return DONE


def _refuse_inside(to: str, out: str) -> None:
    """Refuse a data set inside the output, where only localize may write."""
    if is_s3(to) != is_s3(out):
        return
    if not is_s3(to):
        to, out = os.path.realpath(to), os.path.realpath(out)
    if is_below(to, out):
        raise UsageError(
            f"{to} is inside {out}, where only localize writes: choose another path", parameter="to"
        )
