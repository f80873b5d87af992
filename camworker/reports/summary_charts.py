"""Charts of a summary: accuracy against threshold, IoU, calibration, and classes by accuracy."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from markupsafe import Markup

from camworker.ledger.recipe import Recipe
from camworker.metrics.summary import FIXED_THRESHOLD
from camworker.reports.charts import ChartLine, Dot, histogram, line_chart, reliability_diagram

_V2_KINDS: Final = {"0.3": "low", "0.5": "half", "0.7": "high"}  # IoU -> class in the style sheet

# Classes are ranked by the first of these metrics that is available.
_RANKED_BY: Final = (
    *("gt_known_localization_accuracy", "top1_localization_accuracy", "top1_classification_accuracy"),
)
EACH_END: Final = 15  # number of best and of worst classes that are shown if not all are
_ENOUGH_UNITS: Final = 5  # of a class that is ranked, if there are enough such classes


@dataclass(frozen=True, slots=True)
class ClassBars:
    """Classes by a share of their units. name: of that share. least: units that every ranked class has."""

    name: str
    least: int
    ranked: int
    lists: Sequence[tuple[str, Sequence[Mapping[str, Any]]]]


@dataclass(frozen=True, slots=True)
class SummaryCharts:
    """Charts as SVG; None where nothing supports one. lines: the curves of threshold, for its legend."""

    threshold: Markup | None
    lines: Sequence[ChartLine]
    iou: Markup | None
    calibration: Markup | None


def class_bars(summary: Mapping[str, Any]) -> ClassBars | None:
    """Classes by GT-known accuracy: all of them, or the best and the worst. None where none has units.

    Where GT-known accuracy is not supported, by top-1 localization accuracy, else by classification's.
    Of many classes only those are ranked that have 5 units or more; where fewer than 30 have, those that
    have as many as the thirtieth largest.
    """
    known = summary["gt_known_localization_accuracy"] is not None
    for name in _RANKED_BY[not known :]:
        if classes := _shares(summary["per_class"], name):
            return _ends(name, classes)
    return None


def _shares(per_class: Sequence[Mapping[str, Any]], name: str) -> list[dict[str, Any]]:
    """name, units and share of the classes that have such units, the best first."""
    of = "units" if "classification" in name else "units_with_boxes"
    there = (row for row in per_class if row[name] is not None)
    classes = [{"name": row["name"], "units": row[of], "share": row[name]} for row in there]
    return sorted(classes, key=lambda row: (-row["share"], -row["units"]))


def _ends(name: str, classes: list[dict[str, Any]]) -> ClassBars:
    if len(classes) <= 2 * EACH_END:
        return ClassBars(name, 1, len(classes), [("All classes", classes)])
    most = sorted((row["units"] for row in classes), reverse=True)
    least = min(_ENOUGH_UNITS, most[2 * EACH_END - 1])
    ranked = [row for row in classes if row["units"] >= least]
    best, rest = ranked[:EACH_END], ranked[EACH_END:]
    worst = sorted(rest, key=lambda row: (row["share"], -row["units"]))[:EACH_END]
    return ClassBars(
        name, least, len(ranked), [(f"The {EACH_END} best", best), (f"The {EACH_END} worst", worst)]
    )


def summary_charts(summary: Mapping[str, Any], recipe: Recipe) -> SummaryCharts:
    """The charts of a summary. recipe: in full."""
    lines = _threshold_lines(summary) if summary["max_box_acc"] is not None else []
    return SummaryCharts(
        _threshold_chart(summary, lines) if lines else None,
        lines,
        _iou_histogram(summary) if summary["gt_known_localization_accuracy"] is not None else None,
        _calibration(summary["calibration"]["bins"], recipe.scoring),
    )


def _threshold_chart(summary: Mapping[str, Any], lines: Sequence[ChartLine]) -> Markup:
    level = None
    if summary["baselines"] is not None:
        gaussian = summary["baselines"]["centred_gaussian"]["0.5"]
        level = (gaussian, f"Gaussian {gaussian:.1%}")
    return line_chart(
        "Share of labels whose box hits, against the threshold that boxes are made with",
        lines,
        x_title="threshold, share of the map's range",
        y_title="share of labels",
        fixed=(FIXED_THRESHOLD, f"fixed {FIXED_THRESHOLD:.2f}"),
        level=level,
    )


def _threshold_lines(summary: Mapping[str, Any]) -> list[ChartLine]:
    thresholds, sweep = summary["sweep"]["thresholds"], summary["sweep"]
    lines = [
        ChartLine(
            f"IoU {delta}, best of all boxes (V2)",
            kind,
            list(zip(thresholds, sweep[delta], strict=True)),
            (summary["optimal_threshold"][delta], summary["max_box_acc_at"][delta]),
        )
        for delta, kind in _V2_KINDS.items()
    ]
    points = list(zip(thresholds, sweep["max_box_acc"], strict=True))
    best = (summary["max_box_acc_threshold"], summary["max_box_acc"])
    return [*lines, ChartLine("IoU 0.5, largest box (V1)", "largest", points, best)]


def _iou_histogram(summary: Mapping[str, Any]) -> Markup:
    return histogram(
        "Labels by the IoU of their own map's box with the best true box",
        summary["iou_histogram"]["edges"],
        summary["iou_histogram"]["units"],
        x_title="IoU",
        y_title="labels",
        counted="labels",
        right_from=0.5,
    )


def _calibration(bins: Sequence[Mapping[str, Any]], scoring: str) -> Markup | None:
    images = sum(bin["images"] for bin in bins)
    if not images:
        return None
    dots = [
        Dot(
            bin["score"],
            bin["accuracy"],
            bin["images"] / images,
            f"score {bin['score']:.2f}, right {bin['accuracy']:.1%}, {bin['images']:,} images",
        )
        for bin in bins
        if bin["images"]
    ]
    return reliability_diagram(
        "Share of images whose first class is right, against its score",
        dots,
        x_title=f"score of the first class ({scoring})",
        y_title="share right",
    )
