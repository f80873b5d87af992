"""Measure what more views, larger inputs and finer maps gain and cost: GT-known accuracy and images/s.

python tests/benchmarks/views.py FOLDER TRUTH [--rounds 1] [--sample 300]

TRUTH has image_id, label and corners, as for summarize. Everything runs in float32, in one process, without
Ray. All candidates take turns in every round: compare ratios to the single view of the same round.
"""

import argparse
import json
import statistics
import time

import numpy as np
import torch

from camworker import Localizer
from camworker.boxes.iou import iou
from camworker.inference.pipeline import localize_items
from camworker.inference.predictions import Prediction
from camworker.inputs import ReadPolicy
from camworker.inputs.sampling import select
from camworker.inputs.sources import open_source
from camworker.metrics.ground_truth.truth import read_truth
from camworker.networks.package import load
from support.row_tables import corners

# Views, input size, output stride.
CANDIDATES = (
    ("single", 224, None),
    ("flip", 224, None),
    ("ten-crop", 224, None),
    ("flip", 288, None),
    ("single", 224, 16),
    ("flip", 288, 16),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("truth")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--sample", type=int, default=300, help="images, drawn by a hash of their id")
    args = parser.parse_args()
    packages = {stride: load(output_stride=stride) for stride in {c[2] for c in CANDIDATES}}
    classes = packages[None].classes
    items = open_source(args.folder, classes, image_labels=args.truth).items
    items = select(items, limit=None, sample=args.sample, seed=0)
    localizers = [
        Localizer(packages[stride], preset="paper", precision="float32", input_size=size, views=views)
        for views, size, stride in CANDIDATES
    ]
    seconds: list[list[float]] = [[] for _ in CANDIDATES]
    rows: list[list] = [[] for _ in CANDIDATES]
    for _ in range(args.rounds):
        for index, localizer in enumerate(localizers):
            started = time.perf_counter()
            batches = localize_items(items, localizer, ReadPolicy(), decode_threads=torch.get_num_threads())
            rows[index] = [row for _, predictions in batches for row in predictions.rows()]
            seconds[index].append(time.perf_counter() - started)
    for (views, size, stride), spent, predictions in zip(CANDIDATES, seconds, rows, strict=True):
        ratio = statistics.median(one / other for one, other in zip(seconds[0], spent, strict=True))
        what = {"views": views, "input_size": size, "output_stride": stride}
        rate = round(items.num_rows / statistics.median(spent), 1)
        accuracy = round(gt_known(items, predictions, read_truth(args.truth, classes)), 4)
        print(json.dumps(what | {"gt_known": accuracy, "images_per_second": rate, "rate": round(ratio, 2)}))


def gt_known(items, predictions, truth) -> float:
    """Return the share of (image, label) pairs whose first box has IoU >= 0.5 with a true box."""
    in_rows, in_truth = truth.rows_of(items["image_id"].combine_chunks())
    correct = []
    for row, prediction in enumerate(predictions):
        truth_rows = in_truth[in_rows == row]
        for label in np.unique(truth.labels[truth_rows]):
            boxes = truth.corners[truth_rows[truth.labels[truth_rows] == label]]
            targets = [t for t in getattr(prediction, "targets", ()) if t.label == label]
            localized = isinstance(prediction, Prediction) and bool(targets)
            correct.append(localized and (iou(corners(targets[0].boxes)[:1], boxes) >= 0.5).any())
    return float(np.mean(correct))


if __name__ == "__main__":
    main()
