"""Boxes as weak labels for tools that train on them or correct them: COCO, YOLO, Pascal VOC and others."""

import argparse
import csv
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from camworker.errors import UsageError
from camworker.exports.provenance import FORMATS
from camworker.ledger.ledger import open_ledger
from camworker.storage.store import local_path, open_store
from jobs.console import DONE, Console, ImageProgress
from jobs.options import share, whole

if TYPE_CHECKING:
    from camworker.exports.weak_labels import Counts

HELP = "weak labels for the tools that train on them"

_IMAGES_BETWEEN_UPDATES: Final = 64


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("output", metavar="OUT", help="what localize was given as --output")
    parser.add_argument(
        "--format", required=True, choices=FORMATS, metavar="F", help=f"one of {', '.join(FORMATS)}"
    )
    parser.add_argument(
        "--to",
        required=True,
        metavar="PATH",
        help="a new folder; for coco and coco-results a new file, such as boxes.json",
    )
    parser.add_argument("--recipe", help="which, where OUT holds several")
    which = parser.add_argument_group("which boxes")
    which.add_argument(
        "--min-score",
        type=share,
        default=0.0,
        metavar="S",
        help="only labels with this score or more",
    )
    which.add_argument(
        "--classes",
        metavar="A,B or FILE",
        help="only these: names, indices or WordNet ids, with commas between, or in a file, one a line",
    )
    which.add_argument(
        "--box-rank", type=whole(1), metavar="N", help="of the N best labels of an image (default 1)"
    )
    which.add_argument(
        "--targets",
        action="store_true",
        help="of the labels that an image is known to have (localize --image-labels), not of predicted ones",
    )
    which.add_argument(
        "--box-rule", metavar="R", help="other boxes, made from the stored maps (default: the stored boxes)"
    )


def run(args: argparse.Namespace, console: Console) -> int:
    if args.targets and args.box_rank is not None:
        raise UsageError("known labels have no rank: give --targets or --box-rank")
    ledger = open_ledger(open_store(args.output), args.recipe, args.output)
    to = local_path(args.to)
    _refuse_inside(to, args.output)

    from camworker.exports.export import export
    from camworker.exports.weak_labels import LabelSelection

    choice = LabelSelection(
        classes=_classes(args.classes, ledger.read_recipe()),
        ranks=args.box_rank or 1,
        min_score=args.min_score,
        targets=args.targets,
        box_rule=args.box_rule,
    )
    planned = sum(ledger.read_plan(generation).items for generation in ledger.generations())
    with ImageProgress(planned) as progress:

        def show(counts: "Counts") -> None:
            if counts.images % _IMAGES_BETWEEN_UPDATES == 0:
                progress.update(counts.seen, counts.failed.total())

        counts = export(ledger, args.format, Path(to), choice, show)
    complete = all(ledger.read_run(generation) for generation in ledger.generations())
    _tell(console, counts, to, complete)
    figures = {name: value for name, value in vars(counts).items() if name != "known_labels"}
    console.result(
        {"recipe": ledger.recipe, "format": args.format, "path": to, "complete": complete, **figures}
    )
    return DONE


def _classes(given: str | None, recipe: dict[str, Any]) -> frozenset[int] | None:
    """The class indices that --classes names. Raises UsageError for one that the network lacks."""
    if given is None:
        return None

    import pyarrow as pa

    from camworker.classes import Classes

    if os.path.isfile(given):
        try:
            labels = Path(given).read_text(encoding="utf-8").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"--classes: {given} cannot be read as UTF-8 text: {error}") from error
    else:
        labels = next(csv.reader([given], skipinitialspace=True), [])
    labels = [label.strip() for label in labels if label.strip()]
    if not labels:
        raise UsageError(f"--classes: {given!r} names no class")
    found = Classes.of_recipe(recipe).indices(pa.array(labels, pa.string()), "--classes")
    return frozenset(found.tolist())


def _refuse_inside(to: str, out: str) -> None:
    """Raises UsageError when an export would lie among what localize committed."""
    if "://" in out:
        return
    for folder in ("predictions", "ledger"):
        inside = os.path.join(os.path.realpath(out), folder)
        if os.path.commonpath([inside, os.path.realpath(to)]) == inside:
            raise UsageError(f"{to} lies in {inside}, where only localize writes: name another place")


def _tell(console: Console, counts: "Counts", to: str, complete: bool) -> None:
    console.say(f"{counts.boxes} boxes of {counts.images} images in {to}")
    failed = ", ".join(f"{count} {status}" for status, count in sorted(counts.failed.items()))
    unreadable = ", ".join(f"{count} {status}" for status, count in sorted(counts.unreadable.items()))
    left_out = (
        (counts.failed.total(), f"images that could not be localized ({failed})"),
        (counts.empty_images, "images without a chosen box"),
        (counts.unreadable.total(), f"images that cannot be read again ({unreadable})"),
        (counts.labels_of_other_classes, "labels of other classes"),
        (counts.labels_under_min_score, "labels under --min-score"),
        (counts.boxes_without_area, "boxes without area"),
    )
    for count, what in left_out:
        if count:
            console.say(f"left out: {count} {what}")
    if not complete:
        console.say("a generation is unfinished: run localize again to complete it")
