"""The JSON form of a summary."""

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from camworker.metrics.definitions import GT_KNOWN, GT_KNOWN_AT
from camworker.metrics.metric import Estimate
from camworker.metrics.summary import Comparison, RawBoxes, SizeBin, Summary, Thresholds
from camworker.metrics.tally import IOU_BINS

JsonValue: TypeAlias = "bool | int | float | str | list[JsonValue] | dict[str, JsonValue] | None"
JsonObject: TypeAlias = dict[str, JsonValue]


def to_json(summary: Summary, *, detailed: bool = False) -> JsonObject:
    """Return a summary as an object for JSON.

    Fractions are in 0..1. An interval is [low, high] under the key of its metric with "_ci95" appended. What
    has no value is null.

    Args:
        summary: The summary.
        detailed: Whether to add the results of all classes and the ids that did not match: what summary.json
            of a report has and the output of the command does not.
    """
    settings = summary.settings
    content: JsonObject = {
        "recipe": settings.recipe,
        "complete": settings.complete,
        "box_rule": settings.box_rule,
        "maps": settings.maps,
        "iou_convention": "inclusive" if summary.inclusive else "half-open",
        "select_threshold_on": summary.select_threshold_on,
        "images": summary.images,
        "failed": dict(summary.failed),
        "images_with_truth": summary.images_with_truth,
        "images_without_truth": summary.images_without_truth,
        "truth_without_image": summary.truth_without_image,
        "instances": summary.instances,
        "instances_with_boxes": summary.instances_with_boxes,
        "instances_without_target": summary.instances_without_target,
        "unknown_classes": dict(summary.unknown_classes),
        "truth_notes": dict(summary.truth_notes),
        **_estimates(summary.estimates),
        **_thresholds(summary.thresholds),
        "sweep": _sweep(summary),
        "baselines": _baselines(summary),
        "errors": dict(summary.errors.items()),
        "by_size": _by_size(summary.by_size),
        "raw": _raw(summary.raw),
        "iou_histogram": {
            "edges": [i / IOU_BINS for i in range(IOU_BINS + 1)],
            "instances": list(summary.iou_histogram),
        },
        "calibration": {
            "expected_calibration_error": summary.calibration_error,
            "bins": [
                {"from": b.low, "to": b.high, "images": b.images, "score": b.score, "accuracy": b.accuracy}
                for b in summary.calibration
            ],
        },
        "compared": [_comparison(comparison) for comparison in summary.compared],
    }
    if detailed:
        chosen_on, reported_on = summary.swept_instances
        content |= {
            "sweep_instances": {"chosen_on": chosen_on, "reported_on": reported_on},
            "mask_pixels": summary.mask_pixels,
            "per_class": [
                {
                    "label": result.label,
                    "name": result.name,
                    "instances": result.instances,
                    "instances_with_boxes": result.instances_with_boxes,
                    **result.values,
                }
                for result in summary.per_class
            ],
            "unmatched": {
                "image_without_truth": list(summary.without_truth),
                "truth_without_image": list(summary.unseen),
            },
        }
    return content


def _by_size(by_size: Sequence[SizeBin]) -> JsonValue:
    return [
        {
            "from": size.low,
            "to": size.high,
            "instances": size.instances,
            "gt_known_localization_accuracy": size.gt_known,
            "top1_localization_accuracy": size.top1,
            "whole_image_accuracy": size.whole_image,
        }
        for size in by_size
    ]


def _raw(raw: RawBoxes | None) -> JsonObject | None:
    if raw is None:
        return None
    return {
        "box_rule": raw.box_rule,
        **_estimates(raw.estimates),
        "errors": dict(raw.errors.items()),
        "by_size": _by_size(raw.by_size),
        "difference": _estimates(raw.differences),
    }


def _estimates(estimates: Mapping[str, Estimate]) -> JsonObject:
    intervals: dict[str, JsonValue] = {
        name: None if estimate.interval is None else list(estimate.interval)
        for name, estimate in estimates.items()
    }
    values = {name: estimate.value for name, estimate in estimates.items()}
    return _by_metric(values, "") | _by_metric(intervals, "_ci95")


def _by_metric(values: Mapping[str, JsonValue], suffix: str) -> JsonObject:
    """Return values by the names of metrics, with the accuracies by IoU in an object of their own."""
    by_iou = {str(delta): values[metric.name] for delta, metric in GT_KNOWN_AT.items()}
    nested = {metric.name for metric in GT_KNOWN_AT.values()} - {GT_KNOWN.name}
    return {
        **{f"{name}{suffix}": value for name, value in values.items() if name not in nested},
        f"gt_known_at{suffix}": None if None in by_iou.values() else by_iou,
    }


def _thresholds(thresholds: Thresholds | None) -> JsonObject:
    if thresholds is None:
        names = ("max_box_acc_at", "optimal_threshold", "max_box_acc_at_fixed_threshold")
        return dict.fromkeys((*names, "max_box_acc_threshold", "max_box_acc_fixed_threshold"))
    return {
        "max_box_acc_at": _by_delta(thresholds.v2_by_delta),
        "optimal_threshold": _by_delta(thresholds.best_by_delta),
        "max_box_acc_at_fixed_threshold": _by_delta(thresholds.fixed_v2_by_delta),
        "max_box_acc_threshold": thresholds.best,
        "max_box_acc_fixed_threshold": thresholds.fixed.value,
    }


def _by_delta(values: Mapping[float, float]) -> JsonObject:
    return {str(delta): value for delta, value in values.items()}


def _sweep(summary: Summary) -> JsonObject | None:
    sweep = summary.sweep
    if sweep is None:
        return None
    return {
        "rule": sweep.rule,
        "thresholds": list(sweep.thresholds),
        "max_box_acc": list(sweep.v1),
        **{str(delta): list(curve) for delta, curve in sweep.v2.items()},
    }


def _baselines(summary: Summary) -> JsonObject | None:
    baselines = summary.baselines
    if baselines is None:
        return None
    return {
        "instances": baselines.instances,
        "whole_image": baselines.whole_image,
        "centred_gaussian": _by_delta(baselines.gaussian),
        "centred_gaussian_threshold": _by_delta(baselines.gaussian_threshold),
    }


def _comparison(comparison: Comparison) -> JsonObject:
    return {
        "recipe": comparison.recipe,
        **_by_metric(comparison.values, ""),
        "difference": _estimates(comparison.differences),
    }
