"""Measure the seconds and the memory of planning, for a first plan and for later ones, without Ray.

    python tests/benchmarks/planning.py --items 1000000

A manifest of synthetic items (uri, etag, size) is listed and planned; then again with nothing new, with 1%
changed, and with 1% missing and --remove-missing. Each step runs in a process of its own, so that peaks of
memory are separate. rss_MB is what the process holds at the end, as a driver would while its workers run.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from camworker.classes import Classes
from camworker.inputs import ReadPolicy
from camworker.inputs.duckdb_scratch import release_memory
from camworker.inputs.item_queries import measure
from camworker.inputs.sources import list_source
from camworker.ledger.ledger import Ledger
from camworker.ledger.pending import find_pending
from camworker.ledger.plan import write_generation
from camworker.ledger.records import RunRecord
from camworker.storage.local import LocalStore

RECIPE, SHARD, ROWS_AT_ONCE = "r0123456789ab", 4096, 1_000_000


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--files", type=int, default=0, help="also list this many empty files in a folder")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    parser.add_argument("--home", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step:
        print(json.dumps(plan(Path(args.home), args.step)))
        return
    with tempfile.TemporaryDirectory() as home:
        write_manifest(Path(home) / "first.parquet", args.items)
        write_manifest(Path(home) / "changed.parquet", args.items, changed=True)
        write_manifest(Path(home) / "gone.parquet", args.items, changed=True, gone=True)
        for step in ("first", "nothing new", "changed", "gone"):
            run_step(home, step, args.items)
        if args.files:
            write_files(Path(home) / "folder", args.files)
            run_step(home, "folder", args.files)


def run_step(home: str, step: str, items: int) -> None:
    command = [sys.executable, __file__, "--home", home, "--step", step]
    measured = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    print(json.dumps({"step": step, "items": items, **measured}), flush=True)


def write_manifest(path: Path, items: int, *, changed: bool = False, gone: bool = False) -> None:
    """Write a manifest with paths as in ImageNet and ETags of 32 digits.

    Args:
        path: The Parquet file to write.
        items: Number of items.
        changed: Whether 1% of the ETags differ from those of the first manifest.
        gone: Whether another 1% of the items is missing.
    """
    with pq.ParquetWriter(
        path, pa.schema([("uri", pa.string()), ("etag", pa.string()), ("size", pa.int64())])
    ) as file:
        for start in range(0, items, ROWS_AT_ONCE):
            number = np.arange(start, min(start + ROWS_AT_ONCE, items))
            if gone:
                number = number[number % 100 != 1]
            digits = pc.utf8_lpad(pa.array(number).cast(pa.string()), 10, "0")
            uris = pc.binary_join_element_wise(
                "s3://bucket/train/n", pc.utf8_slice_codeunits(digits, 2, 6), "/image_", digits, ".jpg", ""
            )
            content = number * 2_654_435_761 + np.where(number % 100 == 0, int(changed), 0)
            etags = pc.utf8_lpad(pa.array(content % 2**40).cast(pa.string()), 32, "a")
            sizes = pa.array(100_000 + number % 50_000)
            file.write_table(pa.table([uris, etags, sizes], names=["uri", "etag", "size"]))


def write_files(folder: Path, count: int) -> None:
    for number in range(count):
        if number % 1000 == 0:
            (folder / f"{number // 1000:04d}").mkdir(parents=True)
        (folder / f"{number // 1000:04d}" / f"{number:07d}.jpg").touch()


def plan(home: Path, step: str) -> dict[str, float]:
    """List the items, compare them with earlier plans, and write a generation if any are pending."""
    location = home / (
        "folder" if step == "folder" else f"{'first' if step == 'nothing new' else step}.parquet"
    )
    ledger = Ledger(LocalStore(home / ("out of folder" if step == "folder" else "out")), RECIPE)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        listing = list_source(str(location), Classes(("none",)), Path(scratch))
        listed = time.monotonic()
        pending = find_pending(listing.items, ledger, remove_missing=step == "gone")
        compared = time.monotonic()
        if count := measure(pending).count:
            number = max(ledger.generations(), default=0) + 1
            write_generation(ledger, number, pending.batches(), SHARD, ReadPolicy())
            ledger.commit_run(RunRecord(ledger.recipe, number, "", 0, {}, ()))
        release_memory()
        disk = sum(path.stat().st_size for path in Path(scratch).rglob("*") if path.is_file())
    ended = time.monotonic()
    return {
        "planned": count,
        "seconds": round(ended - started, 2),
        "listing": round(listed - started, 2),
        "comparing": round(compared - listed, 2),
        "writing": round(ended - compared, 2),
        "peak_MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "rss_MB": resident() // 2**20,
        "scratch_MB": disk // 2**20,
    }


def resident() -> int:
    """Return the resident memory of this process in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main()
