"""summary.html: a summary with charts and pictures on one page that opens from disk."""

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Final, NamedTuple

from camworker.ledger.recipe import Recipe
from camworker.metrics.definitions import GT_KNOWN_AT, MAX_BOX_ACC, MAX_BOX_ACC_V2, METRICS
from camworker.metrics.error_categories import ERROR_TITLES
from camworker.metrics.metric import Estimate, Metric
from camworker.metrics.summary import FIXED_THRESHOLD, Summary, TruthFacts
from camworker.reports.cards import Section
from camworker.reports.published_results import HOW_MADE, PAPER, TEST_SET, is_whole_ilsvrc_validation
from camworker.reports.render import write_page
from camworker.reports.summary_charts import class_bars, summary_charts

STATUS_TITLES: Final = {
    "decode_error": "the image file is damaged",
    "unsupported": "not an image in a supported format",
    "too_large": "the image has more bytes or pixels than allowed",
    "read_error": "the image could not be read",
    "changed": "the file was replaced after it was planned",
    "poison": "the image crashed its decoder",
    "map_overflow": "a class activation map exceeds the range of float16",
}
NOTHING: Final = "\u2013"  # stands for a number that does not exist


class HeadlineRow(NamedTuple):
    """A row of the headline table.

    Attributes:
        title: What the row shows.
        estimate: The value, its interval, or why there is none.
        counted: What the value is a share of or a mean over, with its number.
    """

    title: str
    estimate: Estimate
    counted: str


def write_summary(
    folder: str | Path,
    summary: Summary,
    recipes: Sequence[Recipe],
    facts: TruthFacts,
    sections: Sequence[Section],
    *,
    output: str,
    truth: str,
) -> Path:
    """Write summary.html.

    Args:
        folder: Where to write it.
        summary: The summary.
        recipes: The recipe of the summary, then those that it is compared with.
        facts: Facts about the ground truth.
        sections: The best and the worst images.
        output: Where the predictions were read, for the page.
        truth: Where the ground truth was read, for the page.

    Returns:
        The path of the page.
    """
    return write_page(
        folder,
        "summary.html",
        summary=summary,
        settings=summary.settings,
        recipe=recipes[0],
        facts=facts,
        output=output,
        truth=truth,
        recipe_line=describe_recipe(recipes[0]),
        groups=headline(summary),
        threshold=threshold_sentence(summary),
        paper=PAPER if is_whole_ilsvrc_validation(summary, facts, recipes[0]) else (),
        how_made=HOW_MADE,
        test_set=TEST_SET,
        differing=differing(recipes),
        charts=summary_charts(summary, recipes[0]),
        bars=class_bars(summary),
        sections=[section for section in sections if section.cards],
        fixed_threshold=FIXED_THRESHOLD,
        metrics=METRICS,
        gt_known_at=GT_KNOWN_AT,
        error_titles=ERROR_TITLES,
        status_titles=STATUS_TITLES,
        percent=percent,
        nothing=NOTHING,
        verdict=verdict,
    )


def percent(value: float | None, digits: int = 2) -> str:
    """Return a fraction as a percentage, or NOTHING for None."""
    return NOTHING if value is None else f"{100 * value:.{digits}f}%"


def describe_recipe(recipe: Recipe) -> str:
    """Return one line about how the rows were made."""
    spec, stride = recipe.frame_spec, recipe.output_stride
    return (
        f"{recipe.network}, input {spec.input_size} ({spec.resize}), "
        f"views {spec.views}, precision {recipe.precision}"
        + (f", output stride {stride}" if stride else "")
        + (f", maps refined by {recipe.refinement.kind}" if recipe.refinement else "")
    )


def headline(summary: Summary) -> list[tuple[str, list[HeadlineRow]]]:
    """Return the headline table: rows by group, those at the fixed threshold after those at the best one."""
    groups = []
    for group, metrics in groupby(METRICS, lambda metric: metric.group):
        rows = []
        for metric in metrics:
            estimate = summary.estimates[metric.name]
            counted = f"{estimate.count:,} {metric.counted}"
            rows.append(HeadlineRow(metric.title + _threshold_note(metric, summary), estimate, counted))
            if summary.thresholds is not None and metric in (MAX_BOX_ACC, MAX_BOX_ACC_V2):
                fixed = summary.thresholds.fixed if metric is MAX_BOX_ACC else summary.thresholds.fixed_v2
                title = f"{metric.title}, threshold fixed at {FIXED_THRESHOLD:.2f}"
                rows.append(HeadlineRow(title, fixed, counted))
        groups.append((group, rows))
    return groups


def threshold_sentence(summary: Summary) -> str | None:
    """Return what the thresholds of MaxBoxAcc were chosen on, None without a sweep."""
    if summary.thresholds is None:
        return None
    fixed = (
        f"with a threshold fixed at {FIXED_THRESHOLD:.2f} in advance, MaxBoxAcc is "
        f"{percent(summary.thresholds.fixed.value)}."
    )
    chosen_on, reported_on = summary.swept_instances
    if (share := summary.select_threshold_on) is not None:
        return (
            f"The thresholds of MaxBoxAcc were chosen on {share:.0%} of the images, selected by a hash of "
            f"their ids (n = {chosen_on:,} labels), and the results are reported on the others "
            f"(n = {reported_on:,}), so they are no upper bounds. For comparison, {fixed}"
        )
    return (
        f"MaxBoxAcc takes the threshold that is best on the same images that it is reported on "
        f"({summary.thresholds.best:.2f}): it is an upper bound. For comparison, {fixed}"
    )


def differing(recipes: Sequence[Recipe]) -> list[tuple[str, list[str]]]:
    """Return the settings in which recipes differ: the name, and its value in each recipe."""
    flat = [recipe.settings() for recipe in recipes]
    rows = []
    for name in flat[0]:
        values = [settings.get(name) for settings in flat]
        if any(value != values[0] for value in values):
            rows.append((name.replace("_", " "), [_short(value) for value in values]))
    return rows


def verdict(metric: Metric, difference: Estimate) -> str:
    """Return "better" or "worse" if the interval of a difference excludes 0, else an empty string."""
    if difference.interval is None or difference.interval[0] <= 0 <= difference.interval[1]:
        return ""
    return "better" if (difference.interval[0] > 0) == metric.higher_is_better else "worse"


def _threshold_note(metric: Metric, summary: Summary) -> str:
    if summary.thresholds is None or metric not in (MAX_BOX_ACC, MAX_BOX_ACC_V2):
        return ""
    note = "chosen on other images" if summary.select_threshold_on is not None else "upper bound"
    if metric is MAX_BOX_ACC:
        return f" at threshold {summary.thresholds.best:.2f} ({note})"
    return f", mean over IoU 0.3, 0.5, 0.7 ({note})"


def _short(value: object) -> str:
    text = "default" if value is None else str(value)
    return text if len(text) <= 24 else f"{text[:12]}…"
