"""Tallies: sums over instances and images that merge, so that each part is evaluated where it lies.

All sums are whole numbers, so parts can be merged in any order with the same result to the last bit.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Final, Self, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from camworker.metrics.confidence import REPLICATES, poisson_weights, uniforms
from camworker.metrics.criteria import MAP_COLUMNS, Criteria, map_kind
from camworker.metrics.definitions import METRICS
from camworker.metrics.error_categories import ERRORS
from camworker.metrics.ground_truth.truth import Truth, hash_ids
from camworker.metrics.map_scores import MapScores, SweepRule, score_maps
from camworker.metrics.matching import COLUMNS, IOU, Matches, match_predictions, read_targets
from camworker.metrics.sums import DELTAS, MISSING_MAPS, Evaluation, Sum, mean_over_classes
from camworker.storage.parquet import combine_chunks

SIZE_EDGES: Final = (0.0, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0)  # share of the image's area
IOU_BINS: Final = 20
SCORE_BINS: Final = 15
EXAMPLES: Final = 12  # number of best, and of worst, instances that are kept
LISTED: Final = 1000  # number of images without ground truth that are listed

_SCORE_UNIT: Final = 2.0**-32  # scores are summed as whole numbers, so that the order of parts does not count
_FOLD_STREAM: Final = np.uint64(2**40)  # separate from the streams of the replicates

Example = tuple[float, int, str, int]  # IoU, hash of the image id (which breaks ties), image id, label


@dataclass(frozen=True)
class EvaluationConfig:
    """What a tally evaluates.

    Attributes:
        criteria: How predictions are compared with ground truth.
        classes: Number of classes of the network.
        sweep: Whose boxes are evaluated at every threshold; None for no sweep.
        select: Share of the images, drawn by the hash of their ids, that thresholds are chosen on; the
            metrics are reported on the rest. None to choose and report on all images.
        raw_rule: Box rule by which boxes of the raw maps are evaluated as well; None for no comparison.
    """

    criteria: Criteria
    classes: int
    sweep: SweepRule | None = "maxboxacc"
    select: float | None = None
    raw_rule: str | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of predictions that are read."""
        rules = [rule for rule in (self.criteria.box_rule, self.raw_rule) if rule is not None]
        return (*COLUMNS, *sorted({MAP_COLUMNS[map_kind(rule)] for rule in rules}))


@dataclass
class Tally:
    """Sums over instances and images.

    Attributes:
        images: Number of rows.
        failed: Number of rows by status, without those that are ok.
        sums: Sums by name. There is one for every `Sum` of a metric, with the shape of an instance's
            contribution (scalars; [2, T] for a sweep); for those of scalar metrics also one by class, [K],
            named class_NAME; and the sums of details, see `_details`.
        replicates: The sums that metrics are made of under the weights of each of the R replicates of the
            bootstrap, [R, ...].
        seen: One bit for each image of the ground truth: whether there is a row for it.
        without_truth: Hash and id of images without ground truth, at most LISTED, the first by hash.
        best: Instances of the highest IoU, at most EXAMPLES.
        worst: Instances of the lowest IoU, at most EXAMPLES.
        raw: `sums` and `replicates` of the boxes that `EvaluationConfig.raw_rule` makes, for the same
            instances; None without that rule.
    """

    images: int = 0
    failed: dict[str, int] = field(default_factory=dict)
    sums: dict[str, NDArray[Any]] = field(default_factory=dict)
    replicates: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    seen: NDArray[np.uint8] | None = None
    without_truth: list[tuple[int, str]] = field(default_factory=list)
    best: list[Example] = field(default_factory=list)
    worst: list[Example] = field(default_factory=list)
    raw: "Tally | None" = None

    def update(self, rows: pa.Table, truth: Truth, config: EvaluationConfig) -> Self:
        """Evaluate rows of predictions and add them.

        Args:
            rows: Rows with the columns `config.columns`; each image at most once.
            truth: The ground truth.
            config: What is evaluated; the same for all rows of a tally.
        """
        return self.merge(_tally(rows.combine_chunks(), truth, config))

    def merge(self, other: "Tally") -> Self:
        """Add a tally of other images."""
        self.images += other.images
        for status, count in other.failed.items():
            self.failed[status] = self.failed.get(status, 0) + count
        for name, value in other.sums.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        for name, value in other.replicates.items():
            self.replicates[name] = self.replicates[name] + value if name in self.replicates else value
        if other.seen is not None:
            self.seen = other.seen if self.seen is None else self.seen | other.seen
        self.without_truth = sorted(self.without_truth + other.without_truth)[:LISTED]
        self.best = sorted(self.best + other.best, reverse=True)[:EXAMPLES]
        self.worst = sorted(self.worst + other.worst)[:EXAMPLES]
        if other.raw is not None:
            self.raw = (self.raw or Tally()).merge(other.raw)
        return self


def _tally(table: pa.Table, truth: Truth, config: EvaluationConfig) -> Tally:
    ids = combine_chunks(table["image_id"])
    hashes, truth_index = hash_ids(ids), truth.index_of(ids)
    targets = read_targets(table["targets"], config.criteria)
    matches = match_predictions(table, truth, config.criteria, targets)
    maps = score_maps(table, matches, targets, truth, config.criteria, config.sweep)
    statuses = Counter(cast(list[str], table["status"].to_pylist()))
    del statuses["ok"]
    seen = np.zeros(len(truth.images), bool)
    seen[truth_index[truth_index >= 0]] = True
    weights_UR = poisson_weights(hashes)[matches.rows]
    evaluation = Evaluation(matches, maps, _folds(hashes[matches.rows], config.select))
    sums, replicates = _metric_sums(evaluation, weights_UR, config.classes)
    sums |= _details(table, matches, maps)
    raw = None
    if config.raw_rule is not None:
        # The instances are the same. What is known of the maps, whatever the boxes, is not summed twice.
        raw_criteria = replace(config.criteria, box_rule=config.raw_rule)
        raw_matches = match_predictions(table, truth, raw_criteria, targets)
        raw_evaluation = Evaluation(raw_matches, replace(maps, sweep=None, pixels=None), evaluation.folds)
        raw_sums, raw_replicates = _metric_sums(raw_evaluation, weights_UR, config.classes)
        raw = Tally(sums=raw_sums | _details(table, raw_matches, maps), replicates=raw_replicates)
    without_truth = np.flatnonzero(truth_index < 0)
    first = without_truth[np.argsort(hashes[without_truth])[:LISTED]]
    examples = _examples(ids, hashes, matches)
    return Tally(
        table.num_rows,
        dict(statuses),
        sums,
        replicates,
        np.packbits(seen),
        sorted((int(hashes[row]), ids[int(row)].as_py()) for row in first),
        examples[: -EXAMPLES - 1 : -1],
        examples[:EXAMPLES],
        raw,
    )


def _metric_sums(
    evaluation: Evaluation, weights_UR: NDArray[np.int8], classes: int
) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[np.float64]]]:
    """Return the sums of all metrics, and the same under the weights of each replicate."""
    sums: dict[str, NDArray[Any]] = {}
    replicates: dict[str, NDArray[np.float64]] = {}
    labels = evaluation.matches.labels
    for quantity, by_class, class_replicates in _quantities():
        values = quantity.per_instance(evaluation)
        if values is None:
            continue
        shape = values.shape[1:]
        # The width is spelled out, because a part may have no instance at all.
        values_UD = values.reshape(len(values), int(np.prod(shape)))
        sums[quantity.name] = values_UD.sum(0, dtype=np.int64).reshape(shape)
        replicates[quantity.name] = _replicate(weights_UR, values_UD).reshape(REPLICATES, *shape)
        name = f"class_{quantity.name}"
        if by_class:
            sums[name] = np.bincount(labels[values], minlength=classes)
        if class_replicates:
            replicates[name] = _replicate_classes(weights_UR[values], labels[values], classes)
    return sums, replicates


def _quantities() -> Iterator[tuple[Sum, bool, bool]]:
    """Yield each sum once, whether it is needed by class, and whether its replicates are."""
    by_class = {
        part.name
        for metric in METRICS
        if metric.class_column
        for part in (metric.numerator, metric.denominator)
    }
    class_replicates = {
        part.name
        for metric in METRICS
        if metric.aggregate is mean_over_classes
        for part in (metric.numerator, metric.denominator)
    }
    by_class.add(MISSING_MAPS.name)
    every = {part.name: part for metric in METRICS for part in (metric.numerator, metric.denominator)}
    for part in (*every.values(), MISSING_MAPS):
        yield part, part.name in by_class, part.name in class_replicates


def _details(table: pa.Table, matches: Matches, maps: MapScores) -> dict[str, NDArray[Any]]:
    """Return the sums of what a summary shows besides the metrics, without intervals."""
    has_boxes, iou = matches.has_boxes, matches.iou
    has_size = has_boxes & np.isfinite(maps.whole_image)
    whole_image, gaussian = maps.whole_image[has_size], maps.gaussian[has_size]
    size_bin = np.searchsorted(SIZE_EDGES, matches.size[has_size], "right") - 1
    size_bin = np.clip(size_bin, 0, len(SIZE_EDGES) - 2)
    by_size = [
        np.ones(len(size_bin), bool),
        iou[has_size] >= IOU,
        matches.localized[has_size, 0],
        whole_image >= IOU,
    ]
    bins = np.minimum((iou[has_boxes & ~matches.missing_map] * IOU_BINS).astype(int), IOU_BINS - 1)
    return {
        "images_with_truth": np.array(len(np.unique(matches.rows))),
        "errors": np.bincount(matches.error[has_boxes], minlength=len(ERRORS)),
        "iou_histogram": np.bincount(bins, minlength=IOU_BINS),
        "sizes": np.stack([np.bincount(size_bin, hits, len(SIZE_EDGES) - 1) for hits in by_size]).astype(int),
        "instances_with_size": np.array(has_size.sum()),
        "whole_image": np.array((whole_image >= IOU).sum()),
        "gaussian": np.stack([(gaussian >= delta).sum(0) for delta in DELTAS]),
        "calibration": _calibration(table, matches),
    }


def _calibration(table: pa.Table, matches: Matches) -> NDArray[np.int64]:
    """Return images, right ones and the sum of scores (in 2^-32) by the best score of a row, [3, bins]."""
    rows = np.unique(matches.rows)
    right = np.zeros(table.num_rows, bool)
    right[matches.rows[matches.classified[:, 0]]] = True
    lists = combine_chunks(table["scores"])
    has_scores = pc.fill_null(pc.greater(pc.list_value_length(lists), pa.scalar(0)), pa.scalar(False))
    scores = np.full(table.num_rows, np.nan)
    best = pc.list_element(lists.filter(has_scores), 0)
    scores[has_scores.to_numpy(zero_copy_only=False)] = best.to_numpy()
    rows = rows[np.isfinite(scores[rows])]
    bins = np.minimum((scores[rows] * SCORE_BINS).astype(int), SCORE_BINS - 1)
    counts = np.zeros((3, SCORE_BINS), np.int64)
    np.add.at(counts[0], bins, 1)
    np.add.at(counts[1], bins, right[rows])
    np.add.at(counts[2], bins, np.rint(scores[rows] / _SCORE_UNIT).astype(np.int64))
    return counts


def score_sum(calibration: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the sum of scores in each bin of a tally's calibration, [bins]."""
    scores: NDArray[np.float64] = calibration[2] * _SCORE_UNIT
    return scores


def _examples(ids: "pa.Array[Any]", hashes: NDArray[np.uint64], matches: Matches) -> list[Example]:
    """Return instances with boxes and a map of their own, the worst first; EXAMPLES at either end."""
    shown = np.flatnonzero(matches.has_boxes & (matches.target >= 0))
    rows = matches.rows[shown]
    order = np.lexsort((matches.labels[shown], hashes[rows], matches.iou[shown]))
    if len(order) > 2 * EXAMPLES:
        order = np.concatenate([order[:EXAMPLES], order[-EXAMPLES:]])
    return [
        (float(matches.iou[n]), int(hashes[row]), ids[int(row)].as_py(), int(matches.labels[n]))
        for n, row in zip(shown[order], rows[order], strict=True)
    ]


def _folds(hashes_U: NDArray[np.uint64], select: float | None) -> NDArray[np.bool_]:
    """Return whether instances are in the fold to choose thresholds on and in the reported one, [U, 2]."""
    if select is None:
        return np.ones((len(hashes_U), 2), bool)
    chosen = uniforms(hashes_U, _FOLD_STREAM) < select
    return np.stack([chosen, ~chosen], axis=1)


def _replicate(weights_UR: NDArray[np.int8], values_UD: NDArray[Any]) -> NDArray[np.float64]:
    # float32 is faster, and exact for counts: the sums of a part are far below 2^24. Those of pixels are not.
    kind = np.float32 if values_UD.dtype == bool else np.float64
    replicates: NDArray[np.float64] = (weights_UR.T.astype(kind) @ values_UD.astype(kind)).astype(np.float64)
    return replicates


def _replicate_classes(
    weights_UR: NDArray[np.int8], labels_U: NDArray[np.int32], classes: int
) -> NDArray[np.float64]:
    sums_RK = np.zeros((REPLICATES, classes))
    if len(labels_U):
        order = np.argsort(labels_U, kind="stable")
        present, first = np.unique(labels_U[order], return_index=True)
        sums_RK[:, present] = np.add.reduceat(weights_UR[order].astype(np.float64), first, axis=0).T
    return sums_RK
