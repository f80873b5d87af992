"""What low precision and compiling cost: labels and boxes of each against float32, on your images.

python tests/benchmarks/precisions.py FOLDER [--truth FILE]
"""

import argparse
import json
import sys
import time

import numpy as np
import pyarrow as pa
import torch

from camworker import Localizer, weights
from camworker.boxes import paired_iou
from camworker.metrics import Tally
from camworker.predictions import Prediction, corners
from camworker.records import CamShape, predictions_table
from camworker.shard import localize_items
from camworker.sources import open_source
from camworker.truth import read_truth
from jobs.compilation import settle

# Precision, compiled.
CANDIDATES = (("float32", "off"), ("auto", "off"), ("auto", "on"), ("float16", "off"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--truth", help="boxes, as for summarize: adds the metrics")
    args = parser.parse_args()
    classes = weights.load().classes
    items = open_source(args.folder, classes, image_labels=args.truth).items
    truth = read_truth(args.truth, classes) if args.truth else None
    threads = torch.get_num_threads()
    reference: list[Prediction] = []
    for precision, compile in CANDIDATES:
        localizer = Localizer.load(precision=precision)
        compilation = settle(localizer, compile, 0, 1)
        started = time.perf_counter()
        rows, tables = [], []
        for batch, predictions in localize_items(items, localizer, decoders=threads, verify=False):
            tables.append(predictions_table(batch, 1, predictions, localizer.cam_shape))
            rows += predictions.rows()
        seconds = time.perf_counter() - started
        good = [row for row in rows if isinstance(row, Prediction)]
        reference = reference or good
        result = {"precision": str(localizer.dtype).removeprefix("torch."), "compilation": compilation}
        result |= {"images": len(rows), "images_per_second": len(rows) / seconds}
        result |= agreement(reference, good)
        if truth is not None:
            result |= figures(pa.concat_tables(tables), truth, localizer.cam_shape)
        print(json.dumps(result))
        sys.stdout.flush()


def agreement(reference: list[Prediction], rows: list[Prediction]) -> dict[str, float]:
    """Share of equal top-1 labels, and the median IoU of the boxes of classes that both rank."""
    same = [a.labels[0] == b.labels[0] for a, b in zip(reference, rows, strict=True)]
    overlaps = []
    for a, b in zip(reference, rows, strict=True):
        _, left, right = np.intersect1d(a.labels, b.labels, return_indices=True)
        overlaps.append(paired_iou(corners(a.boxes[left]), corners(b.boxes[right])))
    return {"top1_agreement": float(np.mean(same)), "median_iou": float(np.median(np.concatenate(overlaps)))}


def figures(table: pa.Table, truth: object, shape: CamShape) -> dict[str, float]:
    computed = Tally().update(table, truth).compute(truth, shape.k)
    return {name: value for name, value in computed.items() if name.endswith(("_error", "_accuracy"))}


if __name__ == "__main__":
    main()
