"""The computation of a summary from a tally, and the comparison of two recipes."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from camworker.errors import UsageError
from camworker.metrics.confidence import percentile_interval, wilson
from camworker.metrics.definitions import MAX_BOX_ACC, METRICS
from camworker.metrics.error_categories import ERRORS, ErrorKind
from camworker.metrics.metric import Estimate, Metric, Support
from camworker.metrics.summary import (
    FIXED_THRESHOLD,
    Baselines,
    ClassResult,
    Comparison,
    RawBoxes,
    RunSettings,
    ScoreBin,
    SizeBin,
    Summary,
    SweepCurves,
    Thresholds,
    TruthFacts,
)
from camworker.metrics.sums import (
    DELTAS,
    INSTANCES,
    MASK_PIXELS,
    MISSING_MAPS,
    SWEPT,
    V1_HITS,
    V2_HITS,
    WITH_BOXES,
    mean_over_classes,
)
from camworker.metrics.tally import SCORE_BINS, SIZE_EDGES, EvaluationConfig, Tally, score_sum
from camworker.metrics.threshold_sweep import THRESHOLDS

Sums = Mapping[str, NDArray[Any]]


def summarize_tally(
    tally: Tally, facts: TruthFacts, config: EvaluationConfig, settings: RunSettings
) -> Summary:
    """Return the summary of a tally.

    Intervals are 95%. A share of images that have one label each, at a threshold that was not chosen, has the
    interval of Wilson (1927). All others are percentiles of a Poisson bootstrap over images, in which each
    replicate takes the threshold that is best in it.

    Args:
        tally: The sums over all parts.
        facts: Facts about the ground truth.
        config: What the tally evaluated.
        settings: What the predictions are.

    Raises:
        UsageError: There are masks, but none of their pixels belongs to an object.
    """
    sums = tally.sums
    missing_maps = int(sums[MISSING_MAPS.name])
    support = Support(
        int(sums[INSTANCES.name]),
        facts.boxes,
        facts.masks,
        missing_maps,
        settings.ranked_classes,
        settings.best_class_only,
        settings.box_rule,
    )
    estimates = {metric.name: _estimate(metric, tally, support) for metric in METRICS}
    has_sweep = V1_HITS.name in sums and sums[WITH_BOXES.name] > 0 and not missing_maps
    chosen_on, reported_on = sums[SWEPT.name].tolist()
    return Summary(
        settings=settings,
        inclusive=config.criteria.inclusive,
        select_threshold_on=config.select,
        images=tally.images,
        failed=dict(tally.failed),
        images_with_truth=int(sums["images_with_truth"]),
        truth_without_image=facts.unseen_count,
        instances=support.instances,
        instances_with_boxes=int(sums[WITH_BOXES.name]),
        instances_without_target=missing_maps,
        unknown_classes=dict(facts.unknown),
        truth_notes=dict(facts.notes),
        estimates=estimates,
        thresholds=None if estimates[MAX_BOX_ACC.name].value is None else _thresholds(sums),
        sweep=_sweep_curves(sums, config) if has_sweep else None,
        swept_instances=(chosen_on, reported_on),
        mask_pixels=int(sums.get(MASK_PIXELS.name, 0)),
        baselines=_baselines(sums),
        errors=_error_counts(sums),
        by_size=_size_bins(sums),
        iou_histogram=tuple(sums["iou_histogram"].tolist()),
        calibration_error=_calibration_error(sums["calibration"]),
        calibration=_score_bins(sums["calibration"]),
        per_class=_class_results(sums, settings),
        without_truth=tuple(image_id for _, image_id in tally.without_truth),
        unseen=facts.unseen,
        raw=_raw_boxes(tally, estimates, support, config.raw_rule),
    )


def compare(tally: Tally, other_tally: Tally, summary: Summary, other: Summary) -> Comparison:
    """Compare another recipe with that of a summary, image by image.

    The bootstrap is paired: an image has the same weights in both recipes, so that what is hard for both does
    not widen the interval. A difference is missing if either recipe has no value.

    Args:
        tally: The tally of the summary.
        other_tally: The tally of the other recipe, of the same images and ground truth.
        summary: The summary.
        other: The summary of the other recipe.
    """
    differences = {
        metric.name: _difference(
            metric, summary.estimates[metric.name], other.estimates[metric.name], tally, other_tally
        )
        for metric in METRICS
    }
    values = {metric.name: other.value(metric.name) for metric in METRICS}
    return Comparison(other.settings.recipe, values, differences)


def _difference(
    metric: Metric, first: Estimate, second: Estimate, first_tally: Tally, second_tally: Tally
) -> Estimate:
    """Return the second value less the first, with a paired interval."""
    if first.value is None or second.value is None:
        return Estimate(None, reason_missing="one of the two has no value")
    draws = metric.value(second_tally.replicates) - metric.value(first_tally.replicates)
    return Estimate(second.value - first.value, percentile_interval(draws))


def _raw_boxes(
    tally: Tally, estimates: Mapping[str, Estimate], support: Support, rule: str | None
) -> RawBoxes | None:
    raw = tally.raw
    if raw is None or rule is None:
        return None
    support = replace(support, box_rule=rule, best_class_only=False)
    metrics = [metric for metric in METRICS if metric.depends_on_box_rule]
    raw_estimates = {metric.name: _estimate(metric, raw, support) for metric in metrics}
    return RawBoxes(
        box_rule=rule,
        estimates=raw_estimates,
        differences={
            metric.name: _difference(metric, raw_estimates[metric.name], estimates[metric.name], raw, tally)
            for metric in metrics
        },
        errors=_error_counts(raw.sums),
        by_size=_size_bins(raw.sums),
    )


def _error_counts(sums: Sums) -> dict[ErrorKind, int]:
    return {name: int(count) for name, count in zip(ERRORS, sums["errors"], strict=True)}


def _estimate(metric: Metric, tally: Tally, support: Support) -> Estimate:
    sums = tally.sums
    if reason := metric.reason_missing(support, sums):
        return Estimate(None, reason_missing=reason)
    value = float(metric.value(sums))
    if np.isnan(value):
        raise UsageError(metric.undefined)
    denominator = sums[metric.denominator.name]
    if metric.aggregate is mean_over_classes:
        count = int((sums[f"class_{metric.denominator.name}"] > 0).sum())
    else:
        count = int(denominator.flat[-1])  # of a sweep: the fold that is reported
    if metric.is_share and _one_label_each(sums):
        right = int(sums[metric.numerator.name])
        return Estimate(
            value, wilson(right if metric.higher_is_better else count - right, count), count=count
        )
    return Estimate(value, percentile_interval(metric.value(tally.replicates)), count=count)


def _one_label_each(sums: Sums) -> bool:
    """Return whether every image with ground truth has one label, so that shares are of images."""
    return bool(sums[INSTANCES.name] == sums["images_with_truth"])


def _thresholds(sums: Sums) -> Thresholds:
    reported_on, fixed = int(sums[SWEPT.name][1]), int(np.flatnonzero(THRESHOLDS == FIXED_THRESHOLD)[0])
    v1, v2 = sums[V1_HITS.name], sums[V2_HITS.name]
    best = v2[:, 0].argmax(-1)
    fixed_by_delta = {delta: float(v2[i, 1, fixed] / reported_on) for i, delta in enumerate(DELTAS)}
    hits = int(v1[1, fixed])
    interval = wilson(hits, reported_on) if _one_label_each(sums) else None
    return Thresholds(
        best=float(THRESHOLDS[v1[0].argmax()]),
        best_by_delta={delta: float(THRESHOLDS[best[i]]) for i, delta in enumerate(DELTAS)},
        v2_by_delta={delta: float(v2[i, 1, best[i]] / reported_on) for i, delta in enumerate(DELTAS)},
        fixed_v2_by_delta=fixed_by_delta,
        fixed=Estimate(hits / reported_on, interval, count=reported_on),
        fixed_v2=Estimate(sum(fixed_by_delta.values()) / len(DELTAS), count=reported_on),
    )


def _sweep_curves(sums: Sums, config: EvaluationConfig) -> SweepCurves:
    reported_on = max(1, int(sums[SWEPT.name][1]))
    v1, v2 = (sums[hits.name][..., 1, :] / reported_on for hits in (V1_HITS, V2_HITS))
    curves = {delta: tuple(v2[i].tolist()) for i, delta in enumerate(DELTAS)}
    return SweepCurves(config.sweep, tuple(THRESHOLDS.tolist()), tuple(v1.tolist()), curves)


def _baselines(sums: Sums) -> Baselines | None:
    count = int(sums["instances_with_size"])
    if not count:
        return None
    best = sums["gaussian"].argmax(1)
    return Baselines(
        count,
        float(sums["whole_image"] / count),
        {delta: float(sums["gaussian"][i, best[i]] / count) for i, delta in enumerate(DELTAS)},
        {delta: float(THRESHOLDS[best[i]]) for i, delta in enumerate(DELTAS)},
    )


def _size_bins(sums: Sums) -> tuple[SizeBin, ...]:
    counts, gt_known, top1, whole_image = sums["sizes"]
    return tuple(
        SizeBin(
            SIZE_EDGES[i],
            SIZE_EDGES[i + 1],
            int(counts[i]),
            None if sums[MISSING_MAPS.name] else _share(gt_known[i], counts[i]),
            _share(top1[i], counts[i]),
            _share(whole_image[i], counts[i]),
        )
        for i in range(len(counts))
    )


def _score_bins(calibration: NDArray[np.int64]) -> tuple[ScoreBin, ...]:
    edges = np.linspace(0, 1, SCORE_BINS + 1).tolist()
    images, right, _ = calibration
    scores = score_sum(calibration)
    return tuple(
        ScoreBin(
            edges[i], edges[i + 1], int(images[i]), _share(scores[i], images[i]), _share(right[i], images[i])
        )
        for i in range(SCORE_BINS)
    )


def _calibration_error(calibration: NDArray[np.int64]) -> float | None:
    difference = np.abs(calibration[1] - score_sum(calibration)).sum()
    return _share(difference, calibration[0].sum())


def _class_results(sums: Sums, settings: RunSettings) -> tuple[ClassResult, ...]:
    instances, with_boxes = (sums[f"class_{part.name}"] for part in (INSTANCES, WITH_BOXES))
    missing_maps = sums[f"class_{MISSING_MAPS.name}"]
    results = []
    for k, name in enumerate(settings.class_names):
        values: dict[str, float | None] = {}
        for metric in METRICS:
            if metric.class_column is None:
                continue
            numerator, denominator = (
                sums[f"class_{part.name}"][k] for part in (metric.numerator, metric.denominator)
            )
            missing = int(missing_maps[k])
            lacking = metric.lacks_maps(missing) or metric.lacks_boxes(
                missing, best_class_only=settings.best_class_only
            )
            values[metric.class_column] = None if lacking else _share(numerator, denominator)
        results.append(ClassResult(k, name, int(instances[k]), int(with_boxes[k]), values))
    return tuple(results)


def _share(part: float, whole: float) -> float | None:
    return float(part / whole) if whole else None
