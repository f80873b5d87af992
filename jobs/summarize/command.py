"""Arguments and the run of `camworker summarize`."""

import argparse
from typing import TYPE_CHECKING, Any

from camworker.errors import UsageError
from camworker.ledger.ledger import Ledger, open_ledger
from camworker.ledger.recipe import Recipe
from camworker.storage.uris import open_store
from jobs.console import DONE, Console
from jobs.options import (
    add_address_option,
    add_out_argument,
    add_truth_boxes_option,
    fraction,
    output_folder,
    whole_number,
)

if TYPE_CHECKING:
    from camworker.ledger.snapshot import Snapshot
    from camworker.metrics.summary import TruthFacts
    from camworker.metrics.tally import EvaluationConfig

HELP = "localization metrics against ground truth"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_out_argument(parser)
    parser.add_argument(
        "--report", type=output_folder, metavar="DIR", help="write summary.html and tables there too"
    )
    parser.add_argument(
        "--recipe", action="append", default=[], help="which, where OUT holds several; again to compare"
    )
    what = parser.add_argument_group("what is true")
    what.add_argument(
        "--truth",
        required=True,
        metavar="PATH",
        help="Parquet or CSV (a box a row: image_id, label, xmin, ymin, xmax, ymax), COCO JSON, a folder of "
        "Pascal VOC XML, of masks (CLASS/IMAGE.png), or of image_ids.txt and the like",
    )
    add_truth_boxes_option(what)
    what.add_argument(
        "--truth-classes", choices=("name", "index"), default="name", help="match classes by (default name)"
    )
    what.add_argument("--masks", metavar="DIR", help="where the mask files lie that localization.txt names")
    what.add_argument(
        "--exclude", metavar="FILE", help="image ids, one a line, that count for classification only"
    )
    how = parser.add_argument_group("how to judge")
    how.add_argument(
        "--box-rule",
        metavar="RULE",
        help="make boxes anew from the stored maps: cam20, cam:T, cam20-multi, dtbox or maxboxacc:TAU",
    )
    how.add_argument(
        "--iou-convention",
        choices=("half-open", "inclusive"),
        default="half-open",
        help="inclusive: widths and heights get 1 added, as in ILSVRC's kit (default half-open)",
    )
    how.add_argument(
        "--select-threshold-on",
        type=fraction,
        metavar="SHARE",
        help="choose MaxBoxAcc's threshold on a share of the images, drawn by hash, and report on the rest",
    )
    where = parser.add_argument_group("where")
    where.add_argument(
        "--workers", type=whole_number(1), metavar="N", help="tasks at a time (default: all cores)"
    )
    add_address_option(where, default="start Ray on this machine if there is enough to read")


def run(args: argparse.Namespace, console: Console) -> int:
    ledgers = _open(args)

    from camworker.ledger.snapshot import Snapshot
    from camworker.metrics.summary import METRICS, compare, compute
    from camworker.metrics.tally import Tally
    from jobs.summarize.tally_parts import tally_all

    found = []
    for ledger in ledgers:
        snapshot = Snapshot.load(ledger)
        recipe = snapshot.recipe
        snapshot.check()
        measure = _measure(args, snapshot)
        tally = Tally()
        facts, shown = tally_all(args, console, snapshot, measure, tally)
        names = recipe.classes.names
        places = 5 if len(names) <= recipe.top_k else recipe.top_k
        summary: dict[str, Any] = {
            "recipe": ledger.recipe,
            "complete": snapshot.complete,
            "box_rule": args.box_rule or recipe.box_rule,
            "iou_convention": args.iou_convention,
            "select_threshold_on": args.select_threshold_on,
            **compute(tally, facts, measure, places),
        }
        found.append((snapshot, recipe, tally, facts, shown, summary))
    snapshot, recipe, tally, facts, shown, summary = found[0]
    summary["compared"] = [
        {
            "recipe": other["recipe"],
            **{name: other[name] for name in METRICS},
            "difference": compare(tally, others, summary, other),
        }
        for _, _, others, _, _, other in found[1:]
    ]
    _tell(console, summary, facts)
    if args.report:
        from jobs.summarize.report_files import write_report

        page = write_report(
            args.report,
            snapshot,
            [recipe for _, recipe, *_ in found],
            tally,
            facts,
            summary,
            shown,
            output=args.output,
            truth=args.truth,
        )
        console.out(f"open {page}")
    console.result(summary)
    return DONE


def _open(args: argparse.Namespace) -> list[Ledger]:
    """The ledgers asked for. Raises UsageError for what cannot be, before anything is read."""
    if args.box_rule:
        from camworker.boxes.rules import check_rule

        args.box_rule = check_rule(args.box_rule, maxboxacc=True)
    if args.select_threshold_on in (0, 1):
        raise UsageError("--select-threshold-on is a share above 0 and below 1: both parts need images")
    store = open_store(args.output)
    names = list(dict.fromkeys(args.recipe)) or [None]
    return [open_ledger(store, name, args.output) for name in names]


def _measure(args: argparse.Namespace, snapshot: "Snapshot") -> "EvaluationConfig":
    from camworker.metrics.matching import Criteria
    from camworker.metrics.tally import EvaluationConfig

    recipe, shape = snapshot.recipe, snapshot.cam_shape()
    criteria = Criteria.of_recipe(
        recipe,
        (shape.h, shape.w),
        box_rule=args.box_rule if args.box_rule != recipe.box_rule else None,
        inclusive=args.iou_convention == "inclusive",
    )
    return EvaluationConfig(
        criteria, len(recipe.classes), _sweep_rule(args, recipe), args.select_threshold_on
    )


def _sweep_rule(args: argparse.Namespace, recipe: Recipe) -> Any:
    """Whose sweep: Choe et al.'s, unless boxes of the cam rules were asked for; dtbox has none."""
    if (args.box_rule or recipe.box_rule) == "dtbox":
        return None
    return "cam" if args.box_rule and args.box_rule.startswith("cam") else "maxboxacc"


def _tell(console: Console, summary: dict[str, Any], facts: "TruthFacts") -> None:
    from camworker.reports.summary_page import TITLES

    bound = "" if summary["select_threshold_on"] else " (upper bound)"
    titles = {name: title + bound * name.startswith("max_box_acc") for name, title in TITLES.items()}
    console.out(
        f"{summary['images']} images, {sum(summary['failed'].values())} failed; "
        f"{summary['images_with_truth']} with truth ({summary['units']} labels)"
    )
    for name, title in titles.items():
        value, interval = summary[name], summary[f"{name}_ci95"]
        if value is not None:
            console.out(f"{title:<36}{100 * value:5.2f}%  [{100 * interval[0]:.2f}, {100 * interval[1]:.2f}]")
        elif name != "pxap":
            console.out(f"{title:<36}not supported by these rows and this truth")
    for other in summary["compared"]:
        console.out(f"{other['recipe']} less {summary['recipe']}, in points:")
        for name, title in titles.items():
            value, interval = other["difference"][name], other["difference"][f"{name}_ci95"]
            if value is not None:
                low, high = (100 * end for end in interval)
                console.out(f"  {title:<34}{100 * value:+6.2f}  [{low:+.2f}, {high:+.2f}]")
    if summary["units_without_target"]:
        console.out(
            f"{summary['units_without_target']} known labels have no map of their own: localize with "
            "--image-labels to get the figures that need it"
        )
    if summary["images_without_truth"] or summary["truth_without_image"]:
        console.out(
            f"outside these figures: images without truth: {summary['images_without_truth']}; images of the "
            f"truth that are not in these predictions: {summary['truth_without_image']}"
        )
    if facts.unknown:
        some = ", ".join(list(facts.unknown)[:3])
        rest = ", ..." if len(facts.unknown) > 3 else ""
        console.out(
            f"rows of the truth left out: {sum(facts.unknown.values())}, of {len(facts.unknown)} classes "
            f"that this network lacks ({some}{rest})"
        )
    for what, count in facts.notes.items():
        if count:
            console.out(f"truth: {what}: {count}")
    if not summary["complete"]:
        console.out("a generation is unfinished: run localize again to complete it")
