"""Measure the speed and the memory of `summarize` on synthetic predictions: python summarize.py [ROWS ...].

For each number of rows, an output (7x7 maps of two random bumps and noise, one known class and one true box
per image) is written into a temporary folder and summarized with the command. The results are images/s and
the largest private memory of the driver and of any Ray worker. That of the driver must not grow with rows.
"""

import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from camworker.classes import Classes
from camworker.frame import FrameSpec
from camworker.ledger.ledger import Ledger
from camworker.ledger.recipe import Recipe
from camworker.schemas import BOX, PREDICTIONS, SCHEMA_VERSION, TARGET, TARGET_BOX, CamShape
from camworker.storage.local import LocalStore

CLASSES, SIDE, K, PART = 1000, 7, 5, 4096
CORNERS = ("xmin", "ymin", "xmax", "ymax")


def bumps(rng: np.random.Generator, count: int) -> np.ndarray:
    """Return signed maps [count, 7, 7] of two Gaussians and noise."""
    y, x = np.mgrid[0:SIDE, 0:SIDE]
    maps = rng.normal(0, 0.15, (count, SIDE, SIDE)) - 0.3
    for height in (1.0, 0.6):
        cx, cy = rng.uniform(0, SIDE - 1, (2, count, 1, 1))
        maps += height * np.exp(
            -((x - cx) ** 2 + (y - cy) ** 2) / (2 * rng.uniform(0.8, 2, (count, 1, 1)) ** 2)
        )
    return (10 * maps).astype(np.float16)


def boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    """Return boxes of at least 20 pixels within 500 x 375, float32 [count, 4]."""
    low = rng.uniform(0, [400, 300], (count, 2))
    return np.concatenate(
        [low, low + rng.uniform(20, [480, 355], (count, 2)).clip(max=[500, 375] - low)], 1
    ).astype(np.float32)


def part(rng: np.random.Generator, first: int, count: int) -> tuple[pa.Table, pd.DataFrame]:
    """Return rows of predictions, and the truth of their images."""
    ids = [f"synthetic/{number:09d}.jpg" for number in range(first, first + count)]
    labels = np.argsort(rng.random((count, 40)), 1)[:, :K].astype(np.int32) * 25
    true = np.where(rng.random(count) < 0.8, labels[:, 0], 7).astype(np.int32)
    scores = -np.sort(-rng.random((count, K)), 1).astype(np.float32)

    def lists(values: np.ndarray, each: int) -> pa.Array:
        return pa.ListArray.from_arrays(
            pa.array(np.arange(0, len(values) + 1, each), pa.int32()), pa.array(values)
        )

    def structs(kind: pa.StructType, each: int, **columns: np.ndarray) -> pa.Array:
        size = len(next(iter(columns.values())))
        arrays = [
            values if isinstance(values := columns[field.name], pa.Array) else pa.array(values, field.type)
            for field in kind
        ]
        flat = pa.StructArray.from_arrays(arrays, fields=list(kind))
        return pa.ListArray.from_arrays(pa.array(np.arange(0, size + 1, each), pa.int32()), flat)

    corners = boxes(rng, count * K)
    named = dict(zip(CORNERS, corners.T, strict=True))
    no = np.zeros(count, bool)
    target_box = dict(zip(CORNERS, boxes(rng, count).T, strict=True))
    targets = structs(
        TARGET, 1, label=true, score=scores[:, 0],
        cam=[cam.tobytes() for cam in bumps(rng, count)], refined=pa.nulls(count, pa.binary()),
        boxes=structs(TARGET_BOX, 1, label=true, score=scores[:, 0], fallback=no, **target_box),
    )  # fmt: skip
    ranks = np.tile(np.arange(1, K + 1, dtype=np.int8), count)
    columns = {
        "image_id": ids,
        "generation": np.ones(count, np.int32),
        "uri": ids,
        "source_row": pa.nulls(count, pa.int64()),
        "identity": ["1"] * count,
        "status": ["ok"] * count,
        "error": pa.nulls(count, pa.string()),
        "width": np.full(count, 500, np.int32),
        "height": np.full(count, 375, np.int32),
        "labels": lists(labels.ravel(), K),
        "names": pa.array([["a"] * K] * count),
        "scores": lists(scores.ravel(), K),
        "boxes": structs(
            BOX,
            K,
            rank=ranks,
            label=labels.ravel(),
            score=scores.ravel(),
            fallback=np.repeat(no, K),
            **named,
        ),
        "cams": [maps.tobytes() for maps in bumps(rng, count * K).reshape(count, -1)],
        "refined": pa.nulls(count, pa.binary()),
        "targets": targets,
    }
    arrays = [
        values if isinstance(values := columns[field.name], pa.Array) else pa.array(values, field.type)
        for field in PREDICTIONS
    ]
    true_box = dict(zip(CORNERS, boxes(rng, count).T, strict=True))
    truth = pd.DataFrame({"image_id": ids, "label": true, **true_box})
    metadata = {
        "schema_version": str(SCHEMA_VERSION),
        "cam_shape": CamShape(K, SIDE, SIDE).to_json(),
        "refined_shape": "null",
    }
    return pa.table(arrays, schema=PREDICTIONS).replace_schema_metadata(metadata), truth


def write(folder: Path, rows: int) -> None:
    """Write an output with this number of rows, and its truth.parquet."""
    recipe = Recipe(
        network="synthetic",
        weights_fingerprint="0" * 64,
        classes=Classes(tuple(f"class {k}" for k in range(CLASSES))),
        frame_spec=FrameSpec(224),
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        pooling="avg",
        scoring="softmax",
        output_stride=None,
        box_rule="cam20",
        top_k=K,
        precision="float32",
    )
    store = LocalStore(str(folder / "out"))
    ledger = Ledger(store, recipe.id)
    ledger.write_recipe(recipe)
    rng = np.random.default_rng(0)
    writer = None
    for shard, first in enumerate(range(0, rows, PART)):
        table, truth = part(rng, first, min(PART, rows - first))
        path = folder / "out" / ledger.layout.part_key(1, shard)
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path, compression="zstd")
        truth = pa.Table.from_pandas(truth, preserve_index=False)
        writer = writer or pq.ParquetWriter(folder / "truth.parquet", truth.schema)
        writer.write_table(truth)
    writer.close()


def measure(folder: Path, rows: int, *options: str) -> dict:
    """Run the command and return its JSON, with the seconds and the largest private memory in MiB."""
    out, truth = str(folder / "out"), str(folder / "truth.parquet")
    command = [sys.executable, "-m", "jobs.cli", "summarize", out, "--truth", truth, "--json", *options]
    largest = {"driver": 0, "worker": 0}
    started = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:

        def watch() -> None:
            while process.poll() is None:
                largest["driver"] = max(largest["driver"], private(process.pid))
                for child in descendants(process.pid):
                    if Path(f"/proc/{child}/cmdline").read_bytes().startswith(b"ray::"):
                        largest["worker"] = max(largest["worker"], private(child))
                time.sleep(0.25)

        thread = threading.Thread(target=watch)
        thread.start()
        out = process.communicate()[0]
        thread.join()
    seconds = time.monotonic() - started
    result = json.loads(out.splitlines()[-1])
    return {**result, "seconds": seconds, **largest}


def private(process: int) -> int:
    """Return the private memory of a process in MiB; memory shared with Ray's object store is not counted."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0  # The process has ended.
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) // 1024


def descendants(process: int) -> set[int]:
    """Return the ids of all descendants of a process."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found = {process}
    while grown := {child for child, parent in parents.items() if parent in found} - found:
        found |= grown
    return found - {process}


def main(counts: list[int]) -> None:
    for rows in counts:
        folder = Path(tempfile.mkdtemp())
        try:
            write(folder, rows)
            size = sum(path.stat().st_size for path in (folder / "out").rglob("*.parquet")) / 2**20
            print(f"{rows} rows in {size:.0f} MiB", flush=True)
            for options in ((), ("--box-rule", "cam20")):
                result = measure(folder, rows, *options)
                print(
                    f"  {' '.join(options) or 'stored boxes':<20} {rows / result['seconds']:.0f} images/s "
                    f"({result['seconds']:.0f} s), driver {result['driver']} MiB, "
                    f"worker {result['worker']} MiB, max_box_acc {result['max_box_acc']:.4f}",
                    flush=True,
                )
        finally:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main([int(argument) for argument in sys.argv[1:]] or [100_000, 1_000_000])
