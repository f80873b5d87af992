"""Judge predictions by boxes that people drew: classification and localization errors, with intervals."""

import argparse
from typing import Any

from camworker.ledger import open_ledger
from camworker.store import open_store
from jobs.arguments import folder
from jobs.console import DONE, Console

HELP = "localization metrics against ground truth"

_HEADLINES = (
    ("top1_classification_error", "top-1 classification error"),
    ("top5_classification_error", "top-5 classification error"),
    ("top1_localization_error", "top-1 localization error"),
    ("top5_localization_error", "top-5 localization error"),
    ("gt_known_localization_accuracy", "GT-known localization accuracy"),
)
# Named by the contract and not computed yet: null, as for any figure without support.
_LATER = (
    *("max_box_acc", "max_box_acc_v2", "max_box_acc_at", "optimal_threshold"),
    *("pointing_game_accuracy", "corloc", "pxap"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("output", metavar="OUT", help="what localize was given as --output")
    parser.add_argument(
        "--truth",
        required=True,
        metavar="FILE",
        help="Parquet or CSV, a box a row: image_id, label, xmin, ymin, xmax, ymax",
    )
    parser.add_argument("--recipe", help="which, where OUT holds several")
    parser.add_argument(
        "--truth-boxes",
        choices=("half-open", "inclusive"),
        default="half-open",
        help="inclusive: xmax and ymax name the last pixel of a box (default half-open)",
    )
    parser.add_argument("--report", type=folder, metavar="DIR", help="write summary.html there too")


def run(args: argparse.Namespace, console: Console) -> int:
    ledger = open_ledger(open_store(args.output), args.recipe, args.output)
    recipe = ledger.read_recipe()

    from camworker.classes import Classes
    from camworker.dataset import iter_latest
    from camworker.metrics import COLUMNS, Tally
    from camworker.truth import read_truth

    classes = Classes.of_recipe(recipe)
    truth = read_truth(args.truth, classes, args.truth_boxes)
    tally = Tally()
    for rows in iter_latest(ledger, COLUMNS):
        tally.update(rows, truth)
    complete = all(ledger.read_run(generation) for generation in ledger.generations())
    summary: dict[str, Any] = {
        "recipe": ledger.recipe,
        "complete": complete,
        **tally.compute(truth, places=5 if len(classes) <= recipe["top_k"] else recipe["top_k"]),
        **dict.fromkeys(_LATER),
    }
    _tell(console, summary)
    if args.report:
        from camworker.report import write_summary

        console.say(f"open {write_summary(args.report, summary, _HEADLINES, recipe)}")
    console.result(summary)
    return DONE


def _tell(console: Console, summary: dict[str, Any]) -> None:
    console.say(
        f"{summary['images']} images, {sum(summary['failed'].values())} failed; "
        f"{summary['images_with_truth']} with truth ({summary['units']} labels)"
    )
    for name, title in _HEADLINES:
        value, interval = summary[name], summary[f"{name}_ci95"]
        text = "not supported by these rows and this truth"
        if value is not None:
            text = f"{100 * value:5.2f}%  [{100 * interval[0]:.2f}, {100 * interval[1]:.2f}]"
        console.say(f"{title:<32}{text}")
    if summary["units_without_target"]:
        console.say(
            f"{summary['units_without_target']} known labels have no map of their own: localize with "
            "--image-labels to get GT-known accuracy"
        )
    if summary["images_without_truth"] or summary["truth_without_image"]:
        console.say(
            f"outside these figures: images without truth: {summary['images_without_truth']}; images of the "
            f"truth that are not in these predictions: {summary['truth_without_image']}"
        )
    if not summary["complete"]:
        console.say("a generation is unfinished: run localize again to complete it")
