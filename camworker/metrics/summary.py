"""What a tally comes to: the metrics with their intervals, and everything that a report shows beside them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from camworker.errors import UsageError
from camworker.metrics.confidence import percentile_interval, wilson
from camworker.metrics.ground_truth.truth import Truth
from camworker.metrics.matching import ERRORS
from camworker.metrics.tally import (
    DELTAS,
    IOU_BINS,
    LISTED,
    SCORE_BINS,
    SIZE_EDGES,
    EvaluationConfig,
    Tally,
    score_sum,
)
from camworker.metrics.threshold_sweep import THRESHOLDS

FIXED_THRESHOLD: Final = 0.20
_HALF: Final = DELTAS.index(0.5)
# Shares of units at a fixed threshold -> (sum, place in it, of how many, whether the sum counts right ones).
_SHARES: Final[dict[str, tuple[str, Any, str, bool]]] = {
    "top1_classification_error": ("classified", 0, "units", False),
    "top5_classification_error": ("classified", 1, "units", False),
    "top1_localization_error": ("localized", 0, "boxed", False),
    "top5_localization_error": ("localized", 1, "boxed", False),
    "gt_known_localization_accuracy": ("gt_known", (), "boxed", True),
}
_SWEPT: Final = ("max_box_acc", "max_box_acc_v2")
_CLASS_MEANS: Final = {
    "pointing_game_accuracy": ("class_pointed", "class_pointable"),
    "corloc": ("class_found", "class_boxed"),
}
METRICS: Final = (*_SHARES, *_SWEPT, *_CLASS_MEANS, "pxap")


@dataclass(frozen=True)
class TruthFacts:
    """What a summary says of a truth without holding it. unseen: ids of images without a row (some)."""

    images: int
    labels: int
    boxes: bool
    masks: bool
    unknown: Mapping[str, int]
    notes: Mapping[str, int]
    unseen: tuple[str, ...]
    first_image: str | None
    unseen_count: int = 0

    @classmethod
    def of(cls, truth: Truth, seen: NDArray[np.uint8] | None) -> "TruthFacts":
        """seen: Tally.seen."""
        bits = np.zeros(len(truth.images), np.uint8) if seen is None else np.unpackbits(seen)
        unseen = np.flatnonzero(bits[: len(truth.images)] == 0)
        return cls(
            len(truth.images),
            len(truth.labels),
            truth.corners is not None and bool(np.isfinite(truth.corners[:, 0]).any()),
            truth.masks is not None,
            truth.unknown,
            truth.notes,
            tuple(truth.images.take(unseen[:LISTED]).to_pylist()),
            truth.images[0].as_py() if len(truth.images) else None,
            len(unseen),
        )


def compute(tally: Tally, facts: TruthFacts, measure: EvaluationConfig, places: int) -> dict[str, Any]:
    """The metrics: fractions in 0..1 with <name>_ci95 beside them, None where nothing supports one.

    places: how many classes every row ranks; top-5 needs five, unless there are no more classes.
    Intervals are 95%: Wilson's where a figure is a share of images that have one label each, at a threshold
    that was not chosen; else the percentiles of a Poisson bootstrap over images, each replicate with the
    threshold that is best in it. Definitions: README. Raises UsageError where masks hold no object at all.
    """
    sums = tally.sums
    units, boxed = int(sums["units"].sum()), int(sums["boxed"].sum())
    values, draws = _figures(sums), _figures(tally.replicates)
    supported = _supported(tally, facts, measure, places)
    single = units == int(sums["images_with_truth"])
    result: dict[str, Any] = {
        "images": tally.images,
        "failed": dict(tally.failed),
        "images_with_truth": int(sums["images_with_truth"]),
        "images_without_truth": tally.images - int(sums["images_with_truth"]),
        "truth_without_image": facts.unseen_count,
        "units": units,
        "units_with_boxes": boxed,
        "units_without_target": int(sums["lacking"]),
        "unknown_classes": dict(facts.unknown),
        "truth_notes": dict(facts.notes),
    }
    for name in METRICS:
        if not supported[name]:
            result[name] = result[f"{name}_ci95"] = None
            continue
        result[name] = float(values[name])
        if name in _SHARES and single:
            part, place, of, right = _SHARES[name]
            count, trials = int(sums[part][place]), int(sums[of])
            result[f"{name}_ci95"] = wilson(count if right else trials - count, trials)
        else:
            result[f"{name}_ci95"] = percentile_interval(draws[name])
    result |= _at_deltas(values, draws, sums, measure, swept=supported["max_box_acc"])
    return result | details(tally, measure)


def compare(ours: Tally, theirs: Tally, first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Differences of two recipes' figures (second less first) with paired bootstrap intervals.

    An image has the same weights in both, so what both find hard cancels. Figures that either lacks are None.
    """
    ours_draws, theirs_draws = _figures(ours.replicates), _figures(theirs.replicates)
    differences: dict[str, Any] = {}
    for name in METRICS:
        there = first[name] is not None and second[name] is not None
        differences[name] = second[name] - first[name] if there else None
        interval = percentile_interval(theirs_draws[name] - ours_draws[name]) if there else None
        differences[f"{name}_ci95"] = interval
    return differences


def details(tally: Tally, measure: EvaluationConfig) -> dict[str, Any]:
    """What a report shows beside the metrics: sweep, baselines, errors, sizes, IoU, calibration."""
    sums = tally.sums
    boxed, sized, lacking = int(sums["boxed"]), int(sums["sized"]), int(sums["lacking"])
    by_size, calibration = sums["sizes"], sums["calibration"]
    edges = np.linspace(0, 1, SCORE_BINS + 1)
    found: dict[str, Any] = {
        "sweep": None,
        "baselines": None,
        "errors": {name: int(count) for name, count in zip(ERRORS, sums["errors"], strict=True)},
        "by_size": [
            {
                "from": SIZE_EDGES[i],
                "to": SIZE_EDGES[i + 1],
                "units": int(by_size[0, i]),
                "gt_known_localization_accuracy": None if lacking else _share(by_size[1, i], by_size[0, i]),
                "top1_localization_accuracy": _share(by_size[2, i], by_size[0, i]),
                "whole_image_accuracy": _share(by_size[3, i], by_size[0, i]),
            }
            for i in range(len(SIZE_EDGES) - 1)
        ],
        "iou_histogram": {
            "edges": [i / IOU_BINS for i in range(IOU_BINS + 1)],
            "units": [int(count) for count in sums["iou_histogram"]],
        },
        "calibration": {
            "expected_calibration_error": _calibration_error(calibration),
            "bins": [
                {
                    "from": float(edges[i]),
                    "to": float(edges[i + 1]),
                    "images": int(calibration[0, i]),
                    "score": _share(score_sum(calibration)[i], calibration[0, i]),
                    "accuracy": _share(calibration[1, i], calibration[0, i]),
                }
                for i in range(SCORE_BINS)
            ],
        },
    }
    if "v1" in sums and boxed and not lacking:
        found["sweep"] = {
            "rule": measure.sweep,
            "thresholds": THRESHOLDS.tolist(),
            "max_box_acc": (sums["v1"][1] / max(1, int(sums["sweep_units"][1]))).tolist(),
            **{
                str(delta): (sums["v2"][i, 1] / max(1, int(sums["sweep_units"][1]))).tolist()
                for i, delta in enumerate(DELTAS)
            },
        }
    if sized:
        best = sums["gaussian"].argmax(1)
        found["baselines"] = {
            "units": sized,
            "whole_image": float(sums["whole"] / sized),
            "centred_gaussian": {
                str(delta): float(sums["gaussian"][i, best[i]] / sized) for i, delta in enumerate(DELTAS)
            },
            "centred_gaussian_threshold": {str(d): float(THRESHOLDS[best[i]]) for i, d in enumerate(DELTAS)},
        }
    return found


def per_class(tally: Tally, names: tuple[str, ...]) -> list[dict[str, Any]]:
    """A row for each class: units by outcome. Shares are None where nothing is there, or its map is not."""
    sums = tally.sums
    rows = []
    for k, name in enumerate(names):
        units, boxed = int(sums["class_units"][k]), int(sums["class_boxed"][k])
        known = not sums["class_lacking"][k]
        rows.append(
            {
                "label": k,
                "name": name,
                "units": units,
                "units_with_boxes": boxed,
                "top1_classification_accuracy": _share(sums["class_classified"][k], units),
                "top5_classification_accuracy": _share(sums["class_classified5"][k], units),
                "top1_localization_accuracy": _share(sums["class_localized"][k], boxed),
                "top5_localization_accuracy": _share(sums["class_localized5"][k], boxed),
                "gt_known_localization_accuracy": _share(sums["class_gt_known"][k], boxed) if known else None,
                "corloc": _share(sums["class_found"][k], boxed),
                "pointing_game_accuracy": _share(sums["class_pointed"][k], sums["class_pointable"][k])
                if known
                else None,
            }
        )
    return rows


def _figures(sums: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float64]]:
    """All METRICS of sums, or of replicates with their axis in front; NaN where nothing was counted."""
    found = {}
    for name, (part, place, of, right) in _SHARES.items():
        share = _ratio(sums[part][..., place] if place != () else sums[part], sums[of])
        found[name] = share if right else 1 - share
    found |= dict.fromkeys((*_SWEPT, "pxap"), np.full(np.shape(sums["units"]), np.nan))
    if "v1" in sums:
        counted = sums["sweep_units"][..., 1]
        found["max_box_acc"] = _ratio(_at_best(sums["v1"]), counted)
        found["max_box_acc_v2"] = _ratio(_at_best(sums["v2"]), counted[..., None]).mean(-1)
    for name, (part, of) in _CLASS_MEANS.items():
        with np.errstate(invalid="ignore"):
            by_class = _ratio(sums[part], sums[of])
            there = np.isfinite(by_class)
            found[name] = _ratio(np.where(there, by_class, 0).sum(-1), there.sum(-1))
    if "pixels" in sums:
        found["pxap"] = _average_precision(sums["pixels"])
    return found


def _at_deltas(
    values: Mapping[str, Any],
    draws: Mapping[str, Any],
    sums: Mapping[str, NDArray[Any]],
    measure: EvaluationConfig,
    *,
    swept: bool,
) -> dict[str, Any]:
    """MaxBoxAccV2 at each IoU, its threshold, and the same at a fixed one; all None without a sweep."""
    names = ("max_box_acc_at", "max_box_acc_at_fixed_threshold", "optimal_threshold")
    if not swept:
        return {**dict.fromkeys(names), "max_box_acc_threshold": None, "max_box_acc_fixed_threshold": None}
    counted, fixed = int(sums["sweep_units"][1]), int(np.flatnonzero(THRESHOLDS == FIXED_THRESHOLD)[0])
    best = sums["v2"][:, 0].argmax(-1)
    reported = sums["v2"][:, 1]
    return {
        "max_box_acc_at": {str(d): float(reported[i, best[i]] / counted) for i, d in enumerate(DELTAS)},
        "optimal_threshold": {str(d): float(THRESHOLDS[best[i]]) for i, d in enumerate(DELTAS)},
        "max_box_acc_at_fixed_threshold": {
            str(d): float(reported[i, fixed] / counted) for i, d in enumerate(DELTAS)
        },
        "max_box_acc_threshold": float(THRESHOLDS[sums["v1"][0].argmax()]),
        "max_box_acc_fixed_threshold": float(sums["v1"][1, fixed] / counted),
    }


def _supported(tally: Tally, facts: TruthFacts, measure: EvaluationConfig, places: int) -> dict[str, bool]:
    """Which figures the rows and the truth can give."""
    sums = tally.sums
    units, boxed = int(sums["units"]), int(sums["boxed"])
    known = not sums["lacking"]
    swept = "v1" in sums and boxed > 0 and known and (sums["sweep_units"] > 0).all()
    given = {
        **{name: (units if name.endswith("classification_error") else boxed) > 0 for name in _SHARES},
        **dict.fromkeys(_SWEPT, bool(swept)),
        "pointing_game_accuracy": known and int(sums["class_pointable"].sum()) > 0,
        "corloc": boxed > 0,
        "pxap": "pixels" in sums and known and int(sums["pixels"].sum()) > 0,
    }
    given["gt_known_localization_accuracy"] &= known
    for name in given:
        if name.startswith("top5"):
            given[name] &= places >= 5
    if given["pxap"] and not sums["pixels"][1].any():
        raise UsageError("the masks hold no pixel of an object: PxAP needs some")
    return given


def _average_precision(pixels: NDArray[Any]) -> NDArray[np.float64]:
    """PxAP of pixels [..., 2, T]: sum of precision times the gain in recall, thresholds descending."""
    reached = np.flip(np.cumsum(np.flip(pixels, -1), -1, dtype=np.float64), -1)  # score >= threshold
    false, true = reached[..., 0, :], reached[..., 1, :]
    precision, recall = _ratio(true, true + false), _ratio(true, true[..., :1])
    gained = recall - np.concatenate([recall[..., 1:], np.zeros_like(recall[..., :1])], -1)
    return (np.nan_to_num(precision) * gained).sum(-1)


def _at_best(hits: NDArray[Any]) -> NDArray[Any]:
    """Hits [..., 2, T]: those of the reported fold, at the threshold that is best in the other fold."""
    best = hits[..., 0, :].argmax(-1)
    return np.take_along_axis(hits[..., 1, :], best[..., None], -1)[..., 0]


def _ratio(part: Any, whole: Any) -> NDArray[np.float64]:
    part, whole = np.broadcast_arrays(np.asarray(part, np.float64), np.asarray(whole, np.float64))
    return np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)


def _share(part: Any, whole: Any) -> float | None:
    return float(part / whole) if whole else None


def _calibration_error(calibration: NDArray[np.int64]) -> float | None:
    """Expected calibration error (Guo et al. 2017): mean |accuracy - score| of bins, by their images."""
    images = calibration[0].sum()
    if not images:
        return None
    return float(np.abs(calibration[1] - score_sum(calibration)).sum() / images)
