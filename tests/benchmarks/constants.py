"""Reproduce published constants: python constants.py ilsvrc_val_boxes.parquet [cub_test_boxes.parquet].

A file has one row per box: the id or number of an image, its width and height, and corners in the convention
of the data set (inclusive in ILSVRC). Each image counts once; a box that matches any of its boxes is a hit.
"""

import sys

import numpy as np
import pandas as pd

from camworker.boxes.iou import paired_iou
from camworker.boxes.maxboxacc import SIDE, scaled_truth
from camworker.metrics.map_scores import gaussian_boxes

DELTAS = (0.3, 0.5, 0.7)


def share(images: pd.Series, hits: np.ndarray) -> float:
    """Return the share of images with a hit, in percent."""
    return 100 * pd.Series(hits).groupby(images.to_numpy()).any().mean()


def main(path: str) -> None:
    boxes = pd.read_parquet(path)
    image = boxes[next(name for name in boxes.columns if name.startswith("image"))]
    corners = boxes[["xmin", "ymin", "xmax", "ymax"]].to_numpy(np.float64)
    width, height = boxes["width"].to_numpy(), boxes["height"].to_numpy()
    print(f"{path}: {image.nunique()} images, {len(boxes)} boxes")

    zeros = np.zeros(len(boxes))
    whole = np.stack([zeros, zeros, width, height], axis=1)
    one_pixel = np.array([0, 0, 1, 1])
    hits = paired_iou(whole - one_pixel, corners, inclusive=True) >= 0.5
    print(f"  whole image, inclusive: {share(image, hits):.3f}%")
    hits = paired_iou(whole, corners + one_pixel) >= 0.5
    print(f"  whole image, half-open after + 1: {share(image, hits):.3f}%")
    scaled = scaled_truth(corners, width, height)
    hits = paired_iou(np.array([0, 0, SIDE - 1, SIDE - 1]), scaled, inclusive=True) >= 0.5
    print(f"  whole image, scaled to 224: {share(image, hits):.3f}%")
    overlaps = paired_iou(gaussian_boxes(np.arange(0, 1, 0.02))[None], scaled[:, None], inclusive=True)
    best = [max(share(image, column) for column in (overlaps >= delta).T) for delta in DELTAS]
    print("  centred Gaussian, MaxBoxAcc at 0.3/0.5/0.7: " + " / ".join(f"{value:.2f}" for value in best))


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        main(argument)
