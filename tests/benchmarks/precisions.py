"""Compare labels and boxes in low precision, and of the compiled network, with float32, on your images.

python tests/benchmarks/precisions.py FOLDER
"""

import argparse
import json
import sys
import time

import numpy as np
import torch

from camworker import Localizer
from camworker.boxes.iou import paired_iou
from camworker.inference.pipeline import localize_items
from camworker.inference.predictions import AnyPrediction, Prediction
from camworker.inputs import ReadPolicy
from camworker.inputs.sources import open_source
from camworker.networks.package import load
from jobs.localize.compile_cache import compile_if_worthwhile
from support.row_tables import corners

# Precision, and whether the network is compiled.
CANDIDATES = (("float32", "off"), ("auto", "off"), ("auto", "on"), ("float16", "off"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    args = parser.parse_args()
    classes = load().classes
    items = open_source(args.folder, classes).items
    threads = torch.get_num_threads()
    reference: list[Prediction] = []
    for precision, compile in CANDIDATES:
        localizer = Localizer.load(precision=precision)
        compilation = compile_if_worthwhile(localizer, compile, 0, 1)
        started = time.perf_counter()
        rows: list[AnyPrediction] = []
        for _, predictions in localize_items(
            items, localizer, ReadPolicy(check_identity=False), decode_threads=threads
        ):
            rows += predictions.rows()
        seconds = time.perf_counter() - started
        good = [row for row in rows if isinstance(row, Prediction)]
        reference = reference or good
        result = {"precision": str(localizer.dtype).removeprefix("torch."), "compilation": compilation}
        result |= {"images": len(rows), "images_per_second": len(rows) / seconds}
        result |= agreement(reference, good)
        print(json.dumps(result))
        sys.stdout.flush()


def agreement(reference: list[Prediction], rows: list[Prediction]) -> dict[str, float]:
    """Return the share of equal top-1 labels, and the median IoU of boxes of classes that both rank."""
    same = [a.labels[0] == b.labels[0] for a, b in zip(reference, rows, strict=True)]
    overlaps = []
    for a, b in zip(reference, rows, strict=True):
        _, left, right = np.intersect1d(a.labels, b.labels, return_indices=True)
        overlaps.append(paired_iou(corners(a.boxes[left]), corners(b.boxes[right])))
    return {"top1_agreement": float(np.mean(same)), "median_iou": float(np.median(np.concatenate(overlaps)))}


if __name__ == "__main__":
    main()
