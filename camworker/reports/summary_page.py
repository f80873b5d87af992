"""summary.html: the figures of a summary, their charts and pictures, on one page that opens from disk."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from camworker.ledger.recipe import Recipe
from camworker.metrics.confidence import wilson
from camworker.metrics.published_results import HOW_MADE, PAPER, TEST_SET, is_whole_ilsvrc_validation
from camworker.metrics.summary import FIXED_THRESHOLD, TruthFacts
from camworker.reports.cards import Section
from camworker.reports.render import write_page
from camworker.reports.summary_charts import class_bars, summary_charts

TITLES: Final = {
    "top1_classification_error": "top-1 classification error",
    "top5_classification_error": "top-5 classification error",
    "top1_localization_error": "top-1 localization error",
    "top5_localization_error": "top-5 localization error",
    "gt_known_localization_accuracy": "GT-known localization accuracy",
    "corloc": "CorLoc, mean over classes",
    "max_box_acc": "MaxBoxAcc",
    "max_box_acc_v2": "MaxBoxAccV2",
    "pointing_game_accuracy": "pointing game, mean over classes",
    "pxap": "PxAP",
}
_GROUPS: Final = (
    ("Class", ("top1_classification_error", "top5_classification_error")),
    ("Class and box", ("top1_localization_error", "top5_localization_error")),
    (
        "Box of the known label",
        ("gt_known_localization_accuracy", "corloc", "max_box_acc", "max_box_acc_v2"),
    ),
    ("Map of the known label", ("pointing_game_accuracy", "pxap")),
)
_OWN_MAP: Final = {
    "gt_known_localization_accuracy",
    "max_box_acc",
    "max_box_acc_v2",
    "pointing_game_accuracy",
}

ERROR_TITLES: Final = {
    "correct": "right class, IoU at least 0.5",
    "wrong_class": "wrong class",
    "several_instances": "box over several instances",
    "part": "box over a part of the object",
    "too_large": "box too large",
    "too_small": "box too small",
    "no_box": "no box: the image failed",
}
STATUS_TITLES: Final = {
    "decode_error": "the image is damaged",
    "unsupported": "not an image in a supported format",
    "too_large": "more bytes or pixels than are allowed",
    "read_error": "the bytes could not be read",
    "changed": "the file was replaced after it was planned",
    "poison": "the image killed its decoder",
}
NOTHING: Final = "\u2013"  # a dash, where there is no number


@dataclass(frozen=True, slots=True)
class Figure:
    """A line of the headline table. of: what it is a share or a mean of. note: why it is missing."""

    title: str
    value: float | None
    interval: Sequence[float] | None
    of: str
    note: str = ""


def write_summary(
    folder: str | Path,
    summary: Mapping[str, Any],
    recipes: Sequence[Recipe],
    facts: TruthFacts,
    sections: Sequence[Section],
    *,
    output: str,
    truth: str,
) -> Path:
    """Write summary.html into folder; returns its path.

    summary: summary_tables.full_summary. recipes: in full, the summary's own first, then those it is compared
    with. sections: the best and the worst images. output, truth: where predictions and truth were read.
    """
    return write_page(
        folder,
        "summary.html",
        summary=summary,
        recipe=recipes[0],
        facts=facts,
        output=output,
        truth=truth,
        about=about(recipes[0]),
        groups=headline(summary, facts, recipes[0]),
        threshold=threshold_sentence(summary),
        paper=PAPER if is_whole_ilsvrc_validation(summary, facts, recipes[0]) else (),
        how_made=HOW_MADE,
        test_set=TEST_SET,
        differing=differing(recipes),
        charts=summary_charts(summary, recipes[0]),
        bars=class_bars(summary),
        sections=[section for section in sections if section.cards],
        fixed_threshold=FIXED_THRESHOLD,
        titles=TITLES,
        error_titles=ERROR_TITLES,
        status_titles=STATUS_TITLES,
        percent=percent,
        nothing=NOTHING,
        verdict=verdict,
    )


def percent(value: float | None, digits: int = 2) -> str:
    """A fraction for people."""
    return NOTHING if value is None else f"{100 * value:.{digits}f}%"


def about(recipe: Recipe) -> str:
    """How the rows were made, in a line."""
    spec, stride = recipe.frame_spec, recipe.output_stride
    return (
        f"{recipe.network}, input {spec.input_size} ({spec.resize}), "
        f"views {spec.views}, precision {recipe.precision}" + (f", output stride {stride}" if stride else "")
    )


def headline(summary: Mapping[str, Any], facts: TruthFacts, recipe: Recipe) -> list[tuple[str, list[Figure]]]:
    """The headline table: groups of figures, those at the fixed threshold beside those at the best one."""
    boxed = f"{summary['units_with_boxes']:,} labels"
    swept = f"{summary['sweep_units']['reported_on']:,} labels"
    of = dict.fromkeys(TITLES, boxed) | {
        "top1_classification_error": f"{summary['units']:,} labels",
        "top5_classification_error": f"{summary['units']:,} labels",
        "corloc": _classes_with(summary, "corloc"),
        "pointing_game_accuracy": _classes_with(summary, "pointing_game_accuracy"),
        "max_box_acc": swept,
        "max_box_acc_v2": swept,
        "pxap": f"{summary['mask_pixels']:,} pixels",
    }
    found = []
    for group, names in _GROUPS:
        figures = []
        for name in names:
            note = "" if summary[name] is not None else why_missing(name, summary, facts, recipe)
            title = TITLES[name] + _threshold_words(name, summary)
            figures.append(Figure(title, summary[name], summary[f"{name}_ci95"], of[name], note))
            if name in ("max_box_acc", "max_box_acc_v2") and summary[name] is not None:
                fixed = f"{TITLES[name]}, threshold fixed at {FIXED_THRESHOLD:.2f}"
                figures.append(Figure(fixed, *_at_fixed(name, summary), swept))
        found.append((group, figures))
    return found


def why_missing(name: str, summary: Mapping[str, Any], facts: TruthFacts, recipe: Recipe) -> str:
    """Why a figure is null: what the rows or the truth lack."""
    lacking = summary["units_without_target"]
    if name == "pxap" and not facts.masks:
        return "not supported: the truth has no masks"
    if not summary["units"]:
        return "not supported: no image has truth"
    if not (facts.boxes or name == "pointing_game_accuracy" or name.endswith("classification_error")):
        return "not supported: the truth has no boxes"
    if name in _OWN_MAP and lacking:
        return (
            f"not supported: {lacking:,} known labels have no map of their own; localize with --image-labels"
        )
    if name.startswith("top5") and recipe.top_k < 5:
        return f"not supported: the rows rank {recipe.top_k} classes; localize with --top-k 5"
    if name.startswith("max_box_acc") and summary["sweep"] is None and summary["units_with_boxes"]:
        return f"not supported: {summary['box_rule']} has no threshold to sweep"
    if name.startswith("max_box_acc") and not all(summary["sweep_units"].values()):
        return "not supported: one share of the images holds none with boxes"
    return "not supported: no image has such truth"


def threshold_sentence(summary: Mapping[str, Any]) -> str | None:
    """What MaxBoxAcc's threshold was chosen on; None where there is no sweep."""
    if summary["max_box_acc"] is None:
        return None
    fixed = (
        f"with the threshold fixed at {FIXED_THRESHOLD:.2f} beforehand, MaxBoxAcc is "
        f"{percent(summary['max_box_acc_fixed_threshold'])}."
    )
    chosen_on, reported = summary["sweep_units"].values()
    if (share := summary["select_threshold_on"]) is not None:
        return (
            f"MaxBoxAcc's thresholds were chosen on {share:.0%} of the images, drawn by the hash of their "
            f"ids (n = {chosen_on:,} labels), and what they give is reported on the others "
            f"(n = {reported:,}): no upper bound. On these, {fixed}"
        )
    return (
        f"MaxBoxAcc takes the threshold that is best on the very images that it is reported on "
        f"({summary['max_box_acc_threshold']:.2f} here): it is an upper bound. For comparison, {fixed}"
    )


def differing(recipes: Sequence[Recipe]) -> list[tuple[str, list[str]]]:
    """The settings in which recipes differ: name, and its value in each."""
    flat = [recipe.settings() for recipe in recipes]
    found = []
    for name in flat[0]:
        values = [settings.get(name) for settings in flat]
        if any(value != values[0] for value in values):
            found.append((name.replace("_", " "), [_short(value) for value in values]))
    return found


def verdict(name: str, interval: Sequence[float] | None) -> str:
    """ "better" or "worse" where the interval of a difference excludes 0, else ""."""
    if interval is None or interval[0] <= 0 <= interval[1]:
        return ""
    return "better" if (interval[0] > 0) != name.endswith("_error") else "worse"


def _classes_with(summary: Mapping[str, Any], name: str) -> str:
    return f"{sum(row[name] is not None for row in summary['per_class']):,} classes"


def _threshold_words(name: str, summary: Mapping[str, Any]) -> str:
    if summary[name] is None or name not in ("max_box_acc", "max_box_acc_v2"):
        return ""
    chosen = summary["select_threshold_on"] is not None
    words = "chosen on other images" if chosen else "upper bound"
    if name == "max_box_acc":
        return f" at threshold {summary['max_box_acc_threshold']:.2f} ({words})"
    return f", mean over IoU 0.3, 0.5, 0.7 ({words})"


def _at_fixed(name: str, summary: Mapping[str, Any]) -> tuple[float, list[float] | None]:
    """MaxBoxAcc at the fixed threshold, and its interval where it is a plain share of images."""
    if name == "max_box_acc_v2":
        by_delta = summary["max_box_acc_at_fixed_threshold"].values()
        return sum(by_delta) / len(by_delta), None
    share, trials = summary["max_box_acc_fixed_threshold"], summary["sweep_units"]["reported_on"]
    single = summary["units"] == summary["images_with_truth"]
    return share, wilson(round(share * trials), trials) if single else None


def _short(value: Any) -> str:
    text = "default" if value is None else str(value)
    return text if len(text) <= 24 else f"{text[:12]}…"
