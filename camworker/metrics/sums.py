"""What is added up over instances, and the aggregates that make the value of a metric of two sums."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from camworker.metrics.map_scores import MapScores
from camworker.metrics.matching import IOU, Matches

Values = NDArray[np.float64]

DELTAS: Final = (0.3, 0.5, 0.7)  # the IoU thresholds of MaxBoxAccV2


@dataclass(frozen=True)
class Evaluation:
    """What is known of the U instances of a table: the input of every `Sum`.

    Attributes:
        matches: The predictions matched with the ground truth.
        maps: The scores of the instances' own maps.
        folds: Whether an instance belongs to the fold that thresholds are chosen on, and to the fold that is
            reported, [U, 2].
    """

    matches: Matches
    maps: MapScores
    folds: NDArray[np.bool_]


@dataclass(frozen=True)
class Sum:
    """A quantity that is added up over instances.

    Attributes:
        name: Key of the sum in a tally.
        per_instance: Returns what each instance adds, [U, ...], or None if that is not evaluated.
    """

    name: str
    per_instance: Callable[[Evaluation], NDArray[Any] | None]


def _v1_hits(evaluation: Evaluation) -> NDArray[Any] | None:
    sweep = evaluation.maps.sweep
    if sweep is None:
        return None
    return evaluation.folds[:, :, None] & (sweep[:, None, :, 0] >= IOU)


def _v2_hits(evaluation: Evaluation) -> NDArray[Any] | None:
    sweep = evaluation.maps.sweep
    if sweep is None:
        return None
    hits_U3T = np.stack([sweep[..., 1] >= delta for delta in DELTAS], axis=1)
    return evaluation.folds[:, None, :, None] & hits_U3T[:, :, None]


def _mask_pixels(evaluation: Evaluation) -> NDArray[Any] | None:
    pixels = evaluation.maps.pixels
    return None if pixels is None else pixels.sum((1, 2))


INSTANCES: Final = Sum("instances", lambda e: np.ones(len(e.matches.rows), bool))
WITH_BOXES: Final = Sum("instances_with_boxes", lambda e: e.matches.has_boxes)
MISSING_MAPS: Final = Sum("missing_maps", lambda e: e.maps.has_pointing_target & e.matches.missing_map)
SWEPT: Final = Sum("swept_instances", lambda e: e.matches.has_boxes[:, None] & e.folds)
V1_HITS: Final = Sum("max_box_acc_hits", _v1_hits)
V2_HITS: Final = Sum("max_box_acc_v2_hits", _v2_hits)
PIXEL_COUNTS: Final = Sum("pixels", lambda e: e.maps.pixels)
MASK_PIXELS: Final = Sum("mask_pixels", _mask_pixels)


def ratio(part: ArrayLike, whole: ArrayLike) -> Values:
    """Return part / whole, NaN where whole is 0."""
    part, whole = np.broadcast_arrays(np.asarray(part, np.float64), np.asarray(whole, np.float64))
    quotient: Values = np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)
    return quotient


def share(numerator: NDArray[Any], denominator: NDArray[Any]) -> Values:
    """Return the share of instances, NaN without any."""
    return ratio(numerator, denominator)


def mean_over_classes(numerator: NDArray[Any], denominator: NDArray[Any]) -> Values:
    """Return the mean of the shares of all classes that have instances, for sums by class [..., K]."""
    by_class = ratio(numerator, denominator)
    has_instances = np.isfinite(by_class)
    return ratio(np.where(has_instances, by_class, 0).sum(-1), has_instances.sum(-1))


def at_best_threshold(hits: NDArray[Any], instances: NDArray[Any]) -> Values:
    """Return the share of hits at the best threshold.

    Args:
        hits: Hits at each threshold, [..., 2, T]: of the fold that the threshold is chosen on, and of the
            fold that is reported (one and the same if no part of the images is set apart).
        instances: Number of instances of both folds, [..., 2].
    """
    return ratio(_hits_at_best(hits), instances[..., 1])


def mean_at_best_thresholds(hits: NDArray[Any], instances: NDArray[Any]) -> Values:
    """Return the mean over DELTAS of `at_best_threshold`, for hits [..., 3, 2, T]."""
    mean: Values = ratio(_hits_at_best(hits), instances[..., 1, None]).mean(-1)
    return mean


def average_precision(pixels: NDArray[Any], _: NDArray[Any]) -> Values:
    """Return the sum of precision[i] * (recall[i] - recall[i - 1]) over thresholds in descending order.

    Args:
        pixels: Pixels of background and object by the highest threshold that their score reaches, [..., 2,
            T].
    """
    reached = np.flip(np.cumsum(np.flip(pixels, -1), -1, dtype=np.float64), -1)  # score >= threshold
    false, true = reached[..., 0, :], reached[..., 1, :]
    precision, recall = ratio(true, true + false), ratio(true, true[..., :1])
    gained = recall - np.concatenate([recall[..., 1:], np.zeros_like(recall[..., :1])], -1)
    precision_sum: Values = (np.nan_to_num(precision) * gained).sum(-1)
    return precision_sum


def _hits_at_best(hits: NDArray[Any]) -> NDArray[Any]:
    best = hits[..., 0, :].argmax(-1)
    return np.take_along_axis(hits[..., 1, :], best[..., None], -1)[..., 0]
