"""Localization metrics as sums that merge: tally a part where it lies, merge in any order, compute.

The unit is (image, label of its truth). A row that failed counts as wrong.
"""

import math
from dataclasses import dataclass, field
from typing import Any, Final, Self

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from camworker.boxes import paired_iou
from camworker.truth import Truth

COLUMNS: Final = ("image_id", "status", "labels", "boxes", "targets")
REPLICATES: Final = 200

_CLASSIFICATION: Final = ("top1_classification_error", "top5_classification_error")
_LOCALIZATION: Final = ("top1_localization_error", "top5_localization_error")
_GT_KNOWN: Final = "gt_known_localization_accuracy"
_SHARES: Final = (*_CLASSIFICATION, *_LOCALIZATION, _GT_KNOWN)
_K: Final = (1, 5)
_IOU: Final = 0.5
_Z: Final = 1.959963984540054  # 97.5% quantile of the normal distribution
_CORNERS: Final = ("xmin", "ymin", "xmax", "ymax")
# P(Poisson(1) <= k) for k = 0, 1, ...: a draw is the number of these below a uniform.
_POISSON: Final = np.cumsum([math.exp(-1) / math.factorial(k) for k in range(12)])


@dataclass
class Tally:
    """Counts over units and images; the bootstrap's counts carry a row per replicate."""

    images: int = 0
    failed: dict[str, int] = field(default_factory=dict)
    images_with_truth: int = 0
    units: int = 0
    without_target: int = 0
    correct: NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(_SHARES), np.int64))
    replicate_units: NDArray[np.int64] = field(default_factory=lambda: np.zeros(REPLICATES, np.int64))
    replicate_correct: NDArray[np.int64] = field(
        default_factory=lambda: np.zeros((REPLICATES, len(_SHARES)), np.int64)
    )

    def update(self, rows: pa.Table, truth: Truth) -> Self:
        """Add rows of predictions (COLUMNS), each image once, judged by their truth."""
        rows = rows.combine_chunks()
        statuses = rows["status"].value_counts().to_pylist()
        for status in statuses:
            if status["values"] != "ok":
                self.failed[status["values"]] = self.failed.get(status["values"], 0) + status["counts"]
        self.images += rows.num_rows
        units, correct, missing = _judge(rows, truth)
        weights_NR = _poisson_weights(rows["image_id"].to_pandas())[units]
        self.images_with_truth += len(np.unique(units))
        self.units += len(units)
        self.without_target += missing
        self.correct += correct.sum(0)
        self.replicate_units += weights_NR.sum(0)
        self.replicate_correct += weights_NR.T @ correct
        return self

    def merge(self, other: "Tally") -> Self:
        """Add another tally of other images."""
        for status, count in other.failed.items():
            self.failed[status] = self.failed.get(status, 0) + count
        for name in ("images", "images_with_truth", "units", "without_target", "correct"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.replicate_units = self.replicate_units + other.replicate_units
        self.replicate_correct = self.replicate_correct + other.replicate_correct
        return self

    def compute(self, truth: Truth, places: int) -> dict[str, Any]:
        """The metrics: fractions in 0..1 with <name>_ci95 beside them, None where nothing supports one.

        Top-k localization error (ILSVRC): none of the first k (label, box) pairs hits, that is, has
        IoU >= 0.5 with a box of its label. GT-known: the first box of the known label's own map hits.
        places: how many classes every row ranks; top-5 needs five, unless there are no more classes.
        Intervals: Wilson where every image has one label, else a Poisson bootstrap over images.
        """
        result: dict[str, Any] = {
            "images": self.images,
            "failed": dict(self.failed),
            "images_with_truth": self.images_with_truth,
            "images_without_truth": self.images - self.images_with_truth,
            "truth_without_image": len(truth.images) - self.images_with_truth,
            "units": self.units,
            "units_without_target": self.without_target,
        }
        for index, name in enumerate(_SHARES):
            supported = self.units > 0 and (name in _CLASSIFICATION or truth.corners is not None)
            if name == _GT_KNOWN:
                supported = supported and self.without_target == 0
            if name.startswith("top5"):
                supported = supported and places >= max(_K)
            value, interval = self._share(index, wrong=name.endswith("_error")) if supported else (None, None)
            result[name], result[f"{name}_ci95"] = value, interval
        return result

    def _share(self, index: int, *, wrong: bool) -> tuple[float, list[float]]:
        """The share of units that are right, or wrong, by one of _SHARES, and its interval."""
        count, counts = int(self.correct[index]), self.replicate_correct[:, index]
        if wrong:
            count, counts = self.units - count, self.replicate_units - counts
        if self.units == self.images_with_truth:
            return count / self.units, wilson(count, self.units)
        drawn = self.replicate_units > 0
        shares = counts[drawn] / self.replicate_units[drawn]
        return count / self.units, [float(q) for q in np.quantile(shares, [0.025, 0.975])]


def wilson(successes: int, trials: int) -> list[float]:
    """The 95% score interval of a share (Wilson 1927): [low, high]."""
    share, z2 = successes / trials, _Z**2
    centre = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = _Z / (1 + z2 / trials) * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials**2))
    return [max(0.0, centre - half), min(1.0, centre + half)]


def _judge(rows: pa.Table, truth: Truth) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    """(row of each unit, whether it is right by each of _SHARES [units, 5], units without a target)."""
    in_rows, in_truth = truth.of(rows["image_id"].to_numpy())
    boxes = pd.DataFrame({"row": in_rows, "label": truth.labels[in_truth]})
    units = boxes.drop_duplicates(["row", "label"], ignore_index=True)
    units["unit"] = np.arange(len(units))
    correct = np.zeros((len(units), len(_SHARES)), np.int64)

    labels = _flat(rows["labels"], None)
    hits = labels.merge(units, on=["row", "label"])
    for column, k in enumerate(_K):
        correct[hits.loc[hits["place"] < k, "unit"], column] = 1
    targets = _first_boxes_of_targets(rows["targets"])
    if truth.corners is not None:
        boxes[list(_CORNERS)] = truth.corners[in_truth]
        boxes = boxes.merge(units, on=["row", "label"])
        hits = _hits(_flat(rows["boxes"], "label"), boxes)
        for column, k in enumerate(_K, start=len(_CLASSIFICATION)):
            correct[hits.loc[hits["place"] < k, "unit"], column] = 1
        correct[_hits(targets, boxes)["unit"], _SHARES.index(_GT_KNOWN)] = 1
    ok = pc.equal(rows["status"], "ok").to_numpy(zero_copy_only=False)
    with_target = units.merge(targets.drop_duplicates(["row", "label"]), on=["row", "label"])
    missing = int(ok[units["row"]].sum()) - len(with_target)
    return units["row"].to_numpy(), correct, missing


def _hits(predicted: pd.DataFrame, truth: pd.DataFrame) -> pd.DataFrame:
    """Pairs of a predicted and a true box of the same image and label that overlap enough."""
    pairs = predicted.merge(truth, on=["row", "label"], suffixes=("", "_true"))
    true = pairs[[f"{corner}_true" for corner in _CORNERS]].to_numpy()
    return pairs[paired_iou(pairs[list(_CORNERS)].to_numpy(), true) >= _IOU]


def _flat(column: pa.ChunkedArray, label: str | None) -> pd.DataFrame:
    """A column of lists as a frame: row, place in the list, label and, of structs, the corners."""
    lists = _one_chunk(column)
    row, values = pc.list_parent_indices(lists).to_numpy(), lists.flatten()
    place = np.arange(len(row)) - np.searchsorted(row, row)
    frame = pd.DataFrame({"row": row, "place": place})
    frame["label"] = (values if label is None else values.field(label)).to_numpy(zero_copy_only=False)
    if label is not None:
        for corner in _CORNERS:
            frame[corner] = values.field(corner).to_numpy(zero_copy_only=False)
    return frame


def _first_boxes_of_targets(column: pa.ChunkedArray) -> pd.DataFrame:
    lists = _one_chunk(column)
    targets = lists.flatten()
    first = pc.list_element(targets.field("boxes"), 0)
    frame = pd.DataFrame({"row": pc.list_parent_indices(lists).to_numpy(), "place": 0})
    frame["label"] = targets.field("label").to_numpy(zero_copy_only=False)
    for corner in _CORNERS:
        frame[corner] = first.field(corner).to_numpy(zero_copy_only=False)
    return frame


def _poisson_weights(image_ids: pd.Series, seed: int = 0) -> NDArray[np.int64]:
    """Poisson(1) draws [images, REPLICATES], a function of (seed, replicate, image_id) alone."""
    hashes = pd.util.hash_array(image_ids.to_numpy(dtype=object), categorize=False)[:, None]
    replicates = np.arange(REPLICATES, dtype=np.uint64) + np.uint64(seed * REPLICATES + 1)
    # splitmix64's finalizer (Steele et al. 2014), so that replicates of one image are independent.
    with np.errstate(over="ignore"):
        x = hashes + replicates * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x ^= x >> np.uint64(31)
    uniform = (x >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return np.searchsorted(_POISSON, uniform, side="right")


def _one_chunk(column: pa.ChunkedArray) -> pa.Array:
    array = column.combine_chunks()
    return array if isinstance(array, pa.Array) else array.chunk(0)
