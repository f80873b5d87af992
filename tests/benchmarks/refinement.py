"""Measure what refined maps cost: python tests/benchmarks/refinement.py FOLDER [--rounds 5] [--limit 160].

Candidates are the preset "paper" (no refinement, cam20 on 7x7 cells) and both kinds of
refinement, compiled and not. All of them take turns in every round, in one process, on one core. Reported are
the milliseconds of processor time per image of each stage (medians of the rounds), the ratio of their sum to
that of "paper" in the same round (median), and the bytes of a row. Decoding is measured once per round and is
part of every sum. Compiled, OpenVINO's thread is part of the process's time.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import json
import statistics
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import cv2
import pyarrow as pa
import torch

from camworker import Localizer
from camworker.images.decode import PreprocessedImage
from camworker.inference.arrow import predictions_table
from camworker.inputs.sources import open_source
from camworker.ledger.parts import encode_part
from camworker.networks.package import load

BATCH = 16
STAGES = ("decode", "network and maps", "refinement and boxes", "rows")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--limit", type=int, default=160, help="number of images (default 160)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    package = load()
    items = open_source(args.folder, package.classes).items.slice(0, args.limit // BATCH * BATCH)
    files = [Path(uri).read_bytes() for uri in items["uri"].to_pylist()]
    localizers: dict[str, Localizer] = {}
    with tempfile.TemporaryDirectory() as folder:
        for compiled in (False, True):
            for name, options in (
                ("paper", {"preset": "paper"}),
                ("ridge", {"refine": "ridge"}),
                ("foreground", {"refine": "foreground"}),
            ):
                localizer = Localizer(package, device="cpu", precision="float32", batch_size=BATCH, **options)
                if compiled:
                    reason = localizer.compile_into(Path(folder) / name)
                    if reason is not None:
                        raise SystemExit(f"the network cannot be compiled: {reason}")
                localizers[f"{name}, {'compiled' if compiled else 'eager'}"] = localizer
        seconds = {name: defaultdict(list) for name in localizers}
        row_bytes: dict[str, float] = {}
        for turn in range(args.rounds + 1):  # the first warms up
            for name, localizer in localizers.items():
                spent, encoded = measured(localizer, items, files)
                row_bytes[name] = encoded / items.num_rows
                if turn:
                    for stage, value in spent.items():
                        seconds[name][stage].append(value)
    for name, stages in seconds.items():
        base = seconds[f"paper, {name.rpartition(', ')[2]}"]
        own = [sum(values) for values in zip(*(stages[stage] for stage in STAGES), strict=True)]
        other = [sum(values) for values in zip(*(base[stage] for stage in STAGES), strict=True)]
        ratio = statistics.median(a / b for a, b in zip(own, other, strict=True))
        each = {stage: round(1e3 * statistics.median(stages[stage]) / items.num_rows, 3) for stage in STAGES}
        print(
            json.dumps(
                {
                    "candidate": name,
                    "ms_per_image": each,
                    "ratio": round(ratio, 4),
                    "bytes_per_row": round(row_bytes[name]),
                }
            )
        )


def measured(localizer: Localizer, items: pa.Table, files: list[bytes]) -> tuple[dict[str, float], int]:
    """Return the seconds of processor time of each stage for all images, and the bytes of their rows."""
    spent = dict.fromkeys(STAGES, 0.0)
    tables = []
    for start in range(0, len(files), BATCH):
        times = [time.process_time()]
        batch = [localizer.preprocess(data) for data in files[start : start + BATCH]]
        assert all(isinstance(image, PreprocessedImage) for image in batch)
        times.append(time.process_time())
        maps = localizer.forward(batch, [()] * BATCH)
        times.append(time.process_time())
        predictions = localizer.postprocess(maps, batch)
        times.append(time.process_time())
        tables.append(predictions_table(items.slice(start, BATCH), 1, predictions))
        times.append(time.process_time())
        for stage, began, ended in zip(STAGES, times, times[1:], strict=False):
            spent[stage] += ended - began
    started = time.process_time()
    encoded = len(encode_part(pa.concat_tables(tables)))
    spent["rows"] += time.process_time() - started
    return spent, encoded


if __name__ == "__main__":
    main()
