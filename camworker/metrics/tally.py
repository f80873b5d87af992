"""Localization metrics as sums that merge: tally a part where it lies, merge in any order, compute.

What is right about a row is judging.py's and map_metrics.py's business; how it is told, summary.py's.
"""

from dataclasses import dataclass, field
from typing import Any, Final, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from camworker.metrics.confidence import REPLICATES, poisson_weights, uniforms
from camworker.metrics.ground_truth.truth import Truth, hash_ids
from camworker.metrics.map_scores import MapScores, SweepRule, judge_maps
from camworker.metrics.matching import (
    COLUMNS,
    ERRORS,
    IOU,
    Criteria,
    Matches,
    match_predictions,
    read_targets,
)
from camworker.metrics.threshold_sweep import THRESHOLDS
from camworker.storage.parquet import combine_chunks

DELTAS: Final = (0.3, 0.5, 0.7)  # of MaxBoxAccV2
SIZE_EDGES: Final = (0.0, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0)  # share of the image's area
IOU_BINS: Final = 20
SCORE_BINS: Final = 15
EXAMPLES: Final = 12  # images kept of the best, the worst
LISTED: Final = 1000  # images listed that have no truth

_SCORE_UNIT: Final = 2.0**-32  # scores are summed in whole numbers, so that every order gives one sum
_FOLD_STREAM: Final = np.uint64(2**40)  # apart from the replicates' streams

Example = tuple[float, int, str, int]  # IoU, hash of the image's id (which breaks ties), image id, label
_OF_CLASS_MEANS: Final = ("class_boxed", "class_found", "class_pointable", "class_pointed")


@dataclass(frozen=True)
class EvaluationConfig:
    """What a tally counts. box_rule None: the stored boxes. sweep: whose, or none.

    select: the share of images, drawn by their hashes, that thresholds are chosen on; the rest is reported.
    """

    criteria: Criteria
    classes: int
    sweep: SweepRule | None = "maxboxacc"
    select: float | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that rows need."""
        return COLUMNS if self.criteria.box_rule is None else (*COLUMNS, "cams")


@dataclass
class Tally:
    """Sums over units and images. replicates: the same sums under each replicate's weights, [R, ...].

    Sums (their shapes beside units, classes K, thresholds T, folds 2):
    units; boxed (with true boxes); lacking (with boxes or masks, without a map of their own); classified
    [2], localized [2], gt_known; sweep_units [2], v1 [2, T] at IoU 0.5, v2 [3, 2, T] at each of DELTAS;
    pixels [2, T]; class_* [K]; and what has no interval: see _totals.
    """

    images: int = 0
    failed: dict[str, int] = field(default_factory=dict)
    sums: dict[str, NDArray[Any]] = field(default_factory=dict)
    replicates: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    seen: NDArray[np.uint8] | None = None  # a bit for each image of the truth
    without_truth: list[tuple[int, str]] = field(default_factory=list)  # hash, id: the first by hash
    best: list[Example] = field(default_factory=list)
    worst: list[Example] = field(default_factory=list)

    def update(self, rows: pa.Table, truth: Truth, measure: EvaluationConfig) -> Self:
        """Add rows of predictions (measure.columns), each image once, judged by their truth."""
        return self.merge(_tally(rows.combine_chunks(), truth, measure))

    def merge(self, other: "Tally") -> Self:
        """Add another tally of other images."""
        self.images += other.images
        for status, count in other.failed.items():
            self.failed[status] = self.failed.get(status, 0) + count
        for mine, others in ((self.sums, other.sums), (self.replicates, other.replicates)):
            for name, value in others.items():
                mine[name] = mine[name] + value if name in mine else value
        if other.seen is not None:
            self.seen = other.seen if self.seen is None else self.seen | other.seen
        self.without_truth = sorted(self.without_truth + other.without_truth)[:LISTED]
        self.best = sorted(self.best + other.best, reverse=True)[:EXAMPLES]
        self.worst = sorted(self.worst + other.worst)[:EXAMPLES]
        return self


def _tally(table: pa.Table, truth: Truth, measure: EvaluationConfig) -> Tally:
    ids = combine_chunks(table["image_id"])
    hashes, place = hash_ids(ids), truth.find(ids)
    targets = read_targets(table["targets"], measure.criteria.map_shape)
    judged = match_predictions(table, truth, measure.criteria, targets)
    maps = judge_maps(table, judged, targets, truth, measure.criteria, measure.sweep)
    statuses = {pair["values"]: pair["counts"] for pair in table["status"].value_counts().to_pylist()}
    statuses.pop("ok", None)
    seen = np.zeros(len(truth.images), bool)
    seen[place[place >= 0]] = True
    weights_UR = poisson_weights(hashes)[judged.rows]
    folds_U2 = _folds(hashes[judged.rows], measure.select)
    sums, replicates = {}, {}
    for name, (values_UD, shape) in _weighted(judged, maps, folds_U2).items():
        sums[name] = values_UD.sum(0, dtype=np.int64).reshape(shape)
        replicates[name] = _replicate(weights_UR, values_UD).reshape(REPLICATES, *shape)
    for name, chosen in _by_class(judged, maps).items():
        sums[name] = np.bincount(judged.labels[chosen], minlength=measure.classes)
        if name in _OF_CLASS_MEANS:
            replicates[name] = _replicate_classes(weights_UR[chosen], judged.labels[chosen], measure.classes)
    if maps.pixels is not None:
        sums["pixels"] = maps.pixels.sum(0)
        flat_UD = maps.pixels.reshape(len(maps.pixels), 2 * len(THRESHOLDS)).astype(np.float64)
        replicates["pixels"] = (weights_UR.T @ flat_UD).reshape(REPLICATES, *sums["pixels"].shape)
    sums |= _totals(table, judged, maps, measure)
    lost = np.flatnonzero(place < 0)
    examples = _examples(ids, hashes, judged)
    return Tally(
        table.num_rows,
        statuses,
        sums,
        replicates,
        np.packbits(seen),
        sorted((int(hashes[row]), ids[int(row)].as_py()) for row in lost[np.argsort(hashes[lost])[:LISTED]]),
        examples[: -EXAMPLES - 1 : -1],
        examples[:EXAMPLES],
    )


def _weighted(
    judged: Matches, maps: MapScores, folds_U2: NDArray[np.bool_]
) -> dict[str, tuple[NDArray[Any], tuple[int, ...]]]:
    """Name -> what each unit adds [U, D], and the shape that D stands for."""
    count = len(judged.rows)
    boxed = judged.boxed
    columns: dict[str, tuple[NDArray[Any], tuple[int, ...]]] = {
        "units": (np.ones((count, 1), bool), ()),
        "boxed": (boxed[:, None], ()),
        "classified": (judged.classified, (2,)),
        "localized": (judged.localized, (2,)),
        "gt_known": ((judged.iou >= IOU)[:, None], ()),
        "lacking": ((maps.pointable & ~judged.known)[:, None], ()),
        "sweep_units": (boxed[:, None] & folds_U2, (2,)),
    }
    if maps.sweep is not None:
        v1 = maps.sweep[..., 0] >= IOU
        v2 = np.stack([maps.sweep[..., 1] >= delta for delta in DELTAS], axis=1)
        folds_U21 = folds_U2[:, :, None]
        # Widths in full: a part may hold no unit at all.
        swept, deltas = len(THRESHOLDS), len(DELTAS)
        by_fold = (folds_U21 & v1[:, None]).reshape(count, 2 * swept)
        by_delta = (folds_U21[:, None] & v2[:, :, None]).reshape(count, deltas * 2 * swept)
        columns |= {"v1": (by_fold, (2, swept)), "v2": (by_delta, (deltas, 2, swept))}
    return columns


def _by_class(judged: Matches, maps: MapScores) -> dict[str, NDArray[np.bool_]]:
    """Name -> the units that it counts in their class."""
    return {
        "class_units": np.ones(len(judged.rows), bool),
        "class_classified": judged.classified[:, 0],
        "class_classified5": judged.classified[:, 1],
        "class_boxed": judged.boxed,
        "class_localized": judged.localized[:, 0],
        "class_localized5": judged.localized[:, 1],
        "class_gt_known": judged.iou >= IOU,
        "class_found": judged.found & judged.boxed,
        "class_pointable": maps.pointable,
        "class_pointed": maps.pointed,
        "class_lacking": maps.pointable & ~judged.known,
    }


def _totals(
    table: pa.Table, judged: Matches, maps: MapScores, measure: EvaluationConfig
) -> dict[str, NDArray[Any]]:
    """What no interval is given for."""
    boxed, iou = judged.boxed, judged.iou
    sized = boxed & np.isfinite(maps.whole)
    whole, gaussian = maps.whole[sized], maps.gaussian[sized]
    in_size = np.clip(np.searchsorted(SIZE_EDGES, judged.share[sized], "right") - 1, 0, len(SIZE_EDGES) - 2)
    by_size = [np.ones(len(in_size), bool), iou[sized] >= IOU, judged.localized[sized, 0], whole >= IOU]
    bins = np.minimum((iou[boxed & judged.known] * IOU_BINS).astype(int), IOU_BINS - 1)
    return {
        "images_with_truth": np.array(len(np.unique(judged.rows))),
        "errors": np.bincount(judged.error[boxed], minlength=len(ERRORS)),
        "iou_histogram": np.bincount(bins, minlength=IOU_BINS),
        "sizes": np.stack([np.bincount(in_size, hits, len(SIZE_EDGES) - 1) for hits in by_size]).astype(int),
        "sized": np.array(sized.sum()),
        "whole": np.array((whole >= IOU).sum()),
        "gaussian": np.stack([(gaussian >= delta).sum(0) for delta in DELTAS]),
        "calibration": _calibration(table, judged),
    }


def _calibration(table: pa.Table, judged: Matches) -> NDArray[np.int64]:
    """Images with truth by their best score: [3, bins] of images, right ones, and scores in 2^-32."""
    rows = np.unique(judged.rows)
    right = np.zeros(table.num_rows, bool)
    right[judged.rows[judged.classified[:, 0]]] = True
    best = pc.list_element(combine_chunks(table["scores"]).filter(_not_empty(table)), 0).to_numpy()
    scores = np.full(table.num_rows, np.nan)
    scores[_not_empty(table).to_numpy(zero_copy_only=False)] = best
    rows = rows[np.isfinite(scores[rows])]
    bins = np.minimum((scores[rows] * SCORE_BINS).astype(int), SCORE_BINS - 1)
    counts = np.zeros((3, SCORE_BINS), np.int64)
    np.add.at(counts[0], bins, 1)
    np.add.at(counts[1], bins, right[rows])
    np.add.at(counts[2], bins, np.rint(scores[rows] / _SCORE_UNIT).astype(np.int64))
    return counts


def score_sum(calibration: NDArray[np.int64]) -> NDArray[np.float64]:
    """The sums of scores of a tally's calibration, [bins]."""
    return calibration[2] * _SCORE_UNIT


def _not_empty(table: pa.Table) -> pa.Array:
    return pc.fill_null(pc.greater(pc.list_value_length(combine_chunks(table["scores"])), 0), False)


def _examples(ids: pa.Array, hashes: NDArray[np.uint64], judged: Matches) -> list[Example]:
    """Units with boxes and a map of their own, the worst first; the EXAMPLES at either end."""
    chosen = np.flatnonzero(judged.boxed & (judged.target >= 0))
    rows = judged.rows[chosen]
    order = np.lexsort((judged.labels[chosen], hashes[rows], judged.iou[chosen]))
    if len(order) > 2 * EXAMPLES:
        order = np.concatenate([order[:EXAMPLES], order[-EXAMPLES:]])
    return [
        (float(judged.iou[u]), int(hashes[row]), ids[int(row)].as_py(), int(judged.labels[u]))
        for u, row in zip(chosen[order], rows[order], strict=True)
    ]


def _folds(hashes_U: NDArray[np.uint64], select: float | None) -> NDArray[np.bool_]:
    """Whether a unit is of the fold that thresholds are chosen on, of the one that is reported: [U, 2]."""
    if select is None:
        return np.ones((len(hashes_U), 2), bool)
    chosen = uniforms(hashes_U, _FOLD_STREAM) < select
    return np.stack([chosen, ~chosen], axis=1)


def _replicate(weights_UR: NDArray[np.int8], values_UD: NDArray[Any]) -> NDArray[np.float64]:
    # In float32 for its speed: exact, as the sums of a part are far below 2^24.
    return (weights_UR.T.astype(np.float32) @ values_UD.astype(np.float32)).astype(np.float64)


def _replicate_classes(
    weights_UR: NDArray[np.int8], labels_U: NDArray[np.int32], classes: int
) -> NDArray[np.float64]:
    found_RK = np.zeros((REPLICATES, classes))
    if len(labels_U):
        order = np.argsort(labels_U, kind="stable")
        present, first = np.unique(labels_U[order], return_index=True)
        found_RK[:, present] = np.add.reduceat(weights_UR[order].astype(np.float64), first, axis=0).T
    return found_RK
