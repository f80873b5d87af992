"""Charts of a summary: accuracy against threshold, IoU, calibration, and classes by accuracy."""

from collections.abc import Sequence
from typing import Final, NamedTuple

from markupsafe import Markup

from camworker.ledger.recipe import Recipe
from camworker.metrics.definitions import GT_KNOWN, MAX_BOX_ACC
from camworker.metrics.summary import FIXED_THRESHOLD, ClassResult, ScoreBin, Summary, SweepCurves, Thresholds
from camworker.metrics.tally import IOU_BINS
from camworker.reports.charts import ChartLine, Dot, histogram, line_chart, reliability_diagram

_V2_KINDS: Final = {0.3: "low", 0.5: "half", 0.7: "high"}  # IoU -> class in the style sheet

# Classes are ranked by the first of these metrics that is available.
_RANKED_BY: Final = (
    *("gt_known_localization_accuracy", "top1_localization_accuracy", "top1_classification_accuracy"),
)
EACH_END: Final = 15  # number of best and of worst classes that are shown if not all are
_ENOUGH_LABELS: Final = 5  # number of labels of a class that is ranked, if there are enough such classes


class ClassBar(NamedTuple):
    """A class in a list.

    Attributes:
        name: Class name.
        labels: Number of labels.
        share: Share of them that is right.
    """

    name: str
    labels: int
    share: float


class ClassBars(NamedTuple):
    """Classes ranked by a share of their labels.

    Attributes:
        name: Name of the share.
        least: Number of labels that every ranked class has at least.
        ranked: Number of ranked classes.
        lists: The lists to show, with their titles.
    """

    name: str
    least: int
    ranked: int
    lists: Sequence[tuple[str, Sequence[ClassBar]]]


class SummaryCharts(NamedTuple):
    """The charts of a summary as SVG, None for a chart without data.

    Attributes:
        threshold: Accuracy against threshold.
        lines: The curves of that chart, for its legend.
        iou: Histogram of IoU.
        calibration: Reliability diagram.
    """

    threshold: Markup | None
    lines: Sequence[ChartLine]
    iou: Markup | None
    calibration: Markup | None


def class_bars(summary: Summary) -> ClassBars | None:
    """Rank the classes by accuracy and return all of them, or the best and the worst.

    Classes are ranked by GT-known accuracy; if it has no value by top-1 localization accuracy, else by top-1
    classification accuracy. Of more than 30 classes, only those with at least 5 labels are ranked; if fewer
    than 30 have as many, those that have as many as the class with the thirtieth most labels.

    Returns:
        None if no class has labels.
    """
    known = summary.value(GT_KNOWN.name) is not None
    for name in _RANKED_BY[not known :]:
        if bars := _bars(summary.per_class, name):
            return _ends(name, bars)
    return None


def _bars(per_class: Sequence[ClassResult], name: str) -> list[ClassBar]:
    """Return the classes that have a value of this name, the best first."""
    bars = []
    for result in per_class:
        share = result.values[name]
        if share is not None:
            labels = result.instances if "classification" in name else result.instances_with_boxes
            bars.append(ClassBar(result.name, labels, share))
    return sorted(bars, key=lambda bar: (-bar.share, -bar.labels))


def _ends(name: str, bars: list[ClassBar]) -> ClassBars:
    if len(bars) <= 2 * EACH_END:
        return ClassBars(name, 1, len(bars), [("All classes", bars)])
    most = sorted((bar.labels for bar in bars), reverse=True)
    least = min(_ENOUGH_LABELS, most[2 * EACH_END - 1])
    ranked = [bar for bar in bars if bar.labels >= least]
    best, rest = ranked[:EACH_END], ranked[EACH_END:]
    worst = sorted(rest, key=lambda bar: (bar.share, -bar.labels))[:EACH_END]
    lists = [(f"The {EACH_END} best", best), (f"The {EACH_END} worst", worst)]
    return ClassBars(name, least, len(ranked), lists)


def summary_charts(summary: Summary, recipe: Recipe) -> SummaryCharts:
    """Return the charts of a summary."""
    sweep, thresholds = summary.sweep, summary.thresholds
    lines = [] if sweep is None or thresholds is None else _threshold_lines(summary, sweep, thresholds)
    return SummaryCharts(
        _threshold_chart(summary, lines) if lines else None,
        lines,
        None if summary.value(GT_KNOWN.name) is None else _iou_histogram(summary),
        _calibration(summary.calibration, recipe.scoring),
    )


def _threshold_chart(summary: Summary, lines: Sequence[ChartLine]) -> Markup:
    level = None
    if summary.baselines is not None:
        gaussian = summary.baselines.gaussian[0.5]
        level = (gaussian, f"Gaussian {gaussian:.1%}")
    return line_chart(
        "Share of labels whose box hits, against the threshold that boxes are made with",
        lines,
        x_title="threshold, share of the map's range",
        y_title="share of labels",
        fixed=(FIXED_THRESHOLD, f"fixed {FIXED_THRESHOLD:.2f}"),
        level=level,
    )


def _threshold_lines(summary: Summary, sweep: SweepCurves, thresholds: Thresholds) -> list[ChartLine]:
    lines = [
        ChartLine(
            f"IoU {delta}, best of all boxes (V2)",
            kind,
            list(zip(sweep.thresholds, sweep.v2[delta], strict=True)),
            (thresholds.best_by_delta[delta], thresholds.v2_by_delta[delta]),
        )
        for delta, kind in _V2_KINDS.items()
    ]
    points = list(zip(sweep.thresholds, sweep.v1, strict=True))
    best = (thresholds.best, summary.value(MAX_BOX_ACC.name) or 0.0)
    return [*lines, ChartLine("IoU 0.5, largest box (V1)", "largest", points, best)]


def _iou_histogram(summary: Summary) -> Markup:
    return histogram(
        "Labels by the IoU of their own map's box with the best true box",
        [i / IOU_BINS for i in range(IOU_BINS + 1)],
        summary.iou_histogram,
        x_title="IoU",
        y_title="labels",
        counted="labels",
        right_from=0.5,
    )


def _calibration(bins: Sequence[ScoreBin], scoring: str) -> Markup | None:
    images = sum(bin.images for bin in bins)
    if not images:
        return None
    dots = [
        Dot(
            bin.score,
            bin.accuracy,
            bin.images / images,
            f"score {bin.score:.2f}, right {bin.accuracy:.1%}, {bin.images:,} images",
        )
        for bin in bins
        if bin.score is not None and bin.accuracy is not None
    ]
    return reliability_diagram(
        "Share of images whose first class is right, against its score",
        dots,
        x_title=f"score of the first class ({scoring})",
        y_title="share right",
    )
