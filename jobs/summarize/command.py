"""Arguments and the run of `camworker summarize`."""

import argparse
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from camworker.errors import UsageError
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
    from camworker.ledger.ledger import Ledger
    from camworker.ledger.snapshot import Snapshot
    from camworker.metrics.map_scores import SweepRule
    from camworker.metrics.summary import Summary
    from camworker.metrics.tally import EvaluationConfig, Tally
    from jobs.summarize.tally_parts import TalliedTruth

HELP = "localization metrics against ground truth"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `camworker summarize`."""
    add_out_argument(parser)
    parser.add_argument(
        "--report",
        type=output_folder,
        metavar="DIR",
        help="also write summary.html and tables to this folder",
    )
    parser.add_argument(
        "--recipe",
        action="append",
        default=[],
        help="recipe to evaluate if OUT holds several; repeat it to compare recipes",
    )
    what = parser.add_argument_group("ground truth")
    what.add_argument(
        "--truth",
        required=True,
        metavar="PATH",
        help="Parquet or CSV with one row per box (image_id, label, xmin, ymin, xmax, ymax), COCO JSON, or a "
        "folder of Pascal VOC XML, of masks (CLASS/IMAGE.png), or of image_ids.txt and its metadata files",
    )
    add_truth_boxes_option(what)
    what.add_argument(
        "--truth-classes",
        choices=("name", "index"),
        default="name",
        help="what identifies a class (default name)",
    )
    what.add_argument("--masks", metavar="DIR", help="folder of the mask files that localization.txt names")
    what.add_argument(
        "--exclude",
        metavar="FILE",
        help="file of image ids, one per line, that count for classification only",
    )
    how = parser.add_argument_group("evaluation")
    how.add_argument(
        "--box-rule",
        metavar="RULE",
        help="make boxes anew from the stored maps: cam20, cam:T, cam20-multi, dtbox or maxboxacc:TAU from "
        "the raw ones, fine:T from the refined ones",
    )
    how.add_argument(
        "--maps",
        choices=("raw", "refined"),
        default="raw",
        help="which maps MaxBoxAcc, the pointing game and PxAP are about (default raw)",
    )
    how.add_argument(
        "--iou-convention",
        choices=("half-open", "inclusive"),
        default="half-open",
        help="inclusive: add 1 to widths and heights, as the ILSVRC kit does (default half-open)",
    )
    how.add_argument(
        "--select-threshold-on",
        type=fraction,
        metavar="SHARE",
        help="choose the threshold of MaxBoxAcc on this share of the images (by hash); report on the rest",
    )
    where = parser.add_argument_group("execution")
    where.add_argument(
        "--workers", type=whole_number(1), metavar="N", help="number of parallel tasks (default: all cores)"
    )
    add_address_option(where, default="start Ray on this machine if there is enough to read")


@dataclass(frozen=True)
class _Evaluated:
    """A recipe of the output, evaluated."""

    snapshot: "Snapshot"
    tally: "Tally"
    truth: "TalliedTruth"
    summary: "Summary"


def run(args: argparse.Namespace, console: Console) -> int:
    """Evaluate the predictions of an output by ground truth, print the metrics and write the report."""
    ledgers = _open_ledgers(args)

    from camworker.metrics.compute import compare
    from camworker.metrics.summary_json import to_json
    from jobs.summarize.text import print_summary

    first, *others = [_evaluate(args, console, ledger) for ledger in ledgers]
    compared = tuple(compare(first.tally, other.tally, first.summary, other.summary) for other in others)
    summary = replace(first.summary, compared=compared)
    print_summary(console, summary)
    if args.report:
        from jobs.summarize.report_files import write_report

        page = write_report(
            args.report,
            first.snapshot,
            [first.snapshot.recipe, *(other.snapshot.recipe for other in others)],
            first.tally,
            first.truth,
            summary,
            output=args.output,
            truth_path=args.truth,
        )
        console.out(f"open {page}")
    console.result(to_json(summary))
    return DONE


def _open_ledgers(args: argparse.Namespace) -> "list[Ledger]":
    """Open the recipes to evaluate, after a check of the options."""
    if args.box_rule:
        from camworker.boxes.rules import check_rule

        args.box_rule = check_rule(args.box_rule, stored=True)
    if args.select_threshold_on in (0, 1):
        raise UsageError("--select-threshold-on is a share above 0 and below 1: both parts need images")
    store = open_store(args.output)
    names = list(dict.fromkeys(args.recipe)) or [None]

    from camworker.ledger.ledger import open_ledger

    return [open_ledger(store, name, args.output) for name in names]


def _evaluate(args: argparse.Namespace, console: Console, ledger: "Ledger") -> _Evaluated:
    from camworker.ledger.snapshot import Snapshot
    from camworker.metrics.compute import summarize_tally
    from camworker.metrics.criteria import map_kind
    from camworker.metrics.summary import RunSettings
    from jobs.summarize.tally_parts import TruthSource, tally_parts

    snapshot = Snapshot.load(ledger)
    recipe = snapshot.recipe
    snapshot.check()
    config = _evaluation_config(args, snapshot)
    criteria = config.criteria
    source = TruthSource(
        args.truth, recipe.classes, args.truth_boxes, args.truth_classes, args.masks, args.exclude
    )
    tally, truth = tally_parts(
        args.output,
        snapshot,
        source,
        config,
        workers=args.workers,
        address=args.address,
        verbose=console.verbose,
    )
    names = recipe.classes.names
    settings = RunSettings(
        recipe=ledger.recipe,
        box_rule=args.box_rule or recipe.box_rule,
        # Rows that rank all classes support top-5 metrics even if there are fewer than five.
        ranked_classes=max(5, recipe.top_k) if len(names) <= recipe.top_k else recipe.top_k,
        class_names=names,
        complete=snapshot.complete,
        best_class_only=criteria.box_rule is not None
        and criteria.shape(map_kind(criteria.box_rule)).k < criteria.cam_shape.k,
        maps=criteria.maps,
    )
    return _Evaluated(snapshot, tally, truth, summarize_tally(tally, truth.facts, config, settings))


def _evaluation_config(args: argparse.Namespace, snapshot: "Snapshot") -> "EvaluationConfig":
    from camworker.metrics.criteria import RAW_RULE, Criteria, map_kind
    from camworker.metrics.tally import EvaluationConfig

    recipe, refined_shape = snapshot.recipe, snapshot.refined_shape()
    new_rule = args.box_rule if args.box_rule != recipe.box_rule else None
    if refined_shape is None:
        for option, needed in (
            (f"--box-rule {new_rule}", new_rule is not None and map_kind(new_rule) == "refined"),
            ("--maps refined", args.maps == "refined"),
        ):
            if needed:
                raise UsageError(
                    f"recipe {snapshot.ledger.recipe} holds no refined maps for {option}: it was localized "
                    "without refinement"
                )
    criteria = Criteria(
        recipe.frame_spec,
        snapshot.cam_shape(),
        box_rule=new_rule,
        inclusive=args.iou_convention == "inclusive",
        refined_shape=refined_shape,
        maps=args.maps,
    )
    refined = map_kind(args.box_rule or recipe.box_rule) == "refined"
    return EvaluationConfig(
        criteria,
        len(recipe.classes),
        _sweep_rule(args.box_rule, recipe.box_rule),
        args.select_threshold_on,
        RAW_RULE if refined else None,
    )


def _sweep_rule(new_rule: str | None, stored_rule: str) -> "SweepRule | None":
    """Return whose boxes are evaluated at every threshold.

    These are the boxes of Choe et al., or those of cam:T if new boxes of a cam rule are asked for. dtbox has
    no threshold.
    """
    if (new_rule or stored_rule) == "dtbox":
        return None
    return "cam" if new_rule and new_rule.startswith("cam") else "maxboxacc"
