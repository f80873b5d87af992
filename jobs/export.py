"""Export boxes or masks as weak labels, in the formats of training and annotation tools."""

import argparse
import csv
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from camworker.errors import UsageError
from camworker.exports.provenance import FORMATS, MASK_ENCODINGS, MaskEncoding
from camworker.storage.uris import local_path, open_store
from jobs.console import DONE, Console
from jobs.options import add_out_argument, add_recipe_option, fraction, non_negative, whole_number
from jobs.progress import ImageProgress

if TYPE_CHECKING:
    from camworker.exports.selection import Counts
    from camworker.ledger.recipe import Recipe

HELP = "export boxes or masks as weak labels: COCO, YOLO, Pascal VOC, Label Studio, Hugging Face, PNG"

_IMAGES_BETWEEN_UPDATES: Final = 64


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `camworker export`."""
    add_out_argument(parser)
    parser.add_argument(
        "--format", required=True, choices=FORMATS, metavar="F", help=f"one of {', '.join(FORMATS)}"
    )
    parser.add_argument(
        "--to",
        required=True,
        metavar="PATH",
        help="the folder to create; for coco and coco-results the file to create, such as boxes.json",
    )
    add_recipe_option(parser)
    which = parser.add_argument_group("which boxes")
    which.add_argument(
        "--min-score",
        type=fraction,
        default=0.0,
        metavar="S",
        help="only labels with at least this score (default 0)",
    )
    which.add_argument(
        "--classes",
        metavar="A,B or FILE",
        help="only these classes: names, indices or WordNet ids separated by commas, or a file of them",
    )
    which.add_argument(
        "--top-labels",
        type=whole_number(1),
        metavar="N",
        help="only the N best labels of an image (default 1)",
    )
    which.add_argument(
        "--targets",
        action="store_true",
        help="the known labels of each image (localize --image-labels) instead of the predicted ones",
    )
    which.add_argument(
        "--box-rule", metavar="R", help="make new boxes from the stored maps (default: the stored boxes)"
    )
    which.add_argument(
        "--fallback",
        choices=("drop", "keep"),
        default="drop",
        help="boxes over the whole image, where a map has no positive value: drop (default) or keep",
    )
    masks = parser.add_argument_group("masks")
    masks.add_argument(
        "--masks",
        action="store_true",
        help="make masks from the stored refined maps in place of boxes: coco, coco-results, yolo; "
        "--format masks always does",
    )
    masks.add_argument(
        "--mask-threshold",
        type=non_negative,
        metavar="T",
        help="a mask is where the refined map exceeds T times its mean (default 1)",
    )
    masks.add_argument(
        "--mask-encoding",
        choices=MASK_ENCODINGS,
        help="masks of coco as polygons (default), which every tool reads, or exactly as rle (run lengths)",
    )


def run(args: argparse.Namespace, console: Console) -> int:
    """Run `camworker export` and return its exit code."""
    if args.targets and args.top_labels is not None:
        raise UsageError("known labels are not ranked: use either --targets or --top-labels")
    masks = args.masks or args.format == "masks"
    if args.mask_threshold is not None and not masks:
        raise UsageError("--mask-threshold needs --masks")
    if args.mask_encoding is not None and not (args.masks and args.format == "coco"):
        raise UsageError("--mask-encoding needs --format coco --masks")

    from camworker.ledger.ledger import open_ledger
    from camworker.ledger.snapshot import Snapshot

    snapshot = Snapshot.load(open_ledger(open_store(args.output), args.recipe, args.output))
    to = local_path(args.to)
    _refuse_inside(to, args.output)

    from camworker.exports.export import export
    from camworker.exports.selection import LabelSelection

    selection = LabelSelection(
        classes=_classes(args.classes, snapshot.recipe),
        ranks=args.top_labels or 1,
        min_score=args.min_score,
        targets=args.targets,
        box_rule=args.box_rule,
        keep_fallback=args.fallback == "keep",
        mask_threshold=(1.0 if args.mask_threshold is None else args.mask_threshold) if masks else None,
    )
    encoding: MaskEncoding = args.mask_encoding or "polygons"
    with ImageProgress(snapshot.planned) as progress:

        def show(counts: "Counts") -> None:
            if counts.images % _IMAGES_BETWEEN_UPDATES == 0:
                progress.update(counts.seen, counts.failed.total())

        counts = export(snapshot, args.format, Path(to), selection, show, mask_encoding=encoding)
    _print_counts(console, counts, "masks" if masks else "boxes", to, snapshot.complete)
    counts_by_name = {name: value for name, value in vars(counts).items() if name != "known_labels"}
    console.result(
        {
            "recipe": snapshot.ledger.recipe,
            "format": args.format,
            "path": to,
            "complete": snapshot.complete,
            **counts_by_name,
        }
    )
    return DONE


def _classes(text: str | None, recipe: "Recipe") -> frozenset[int] | None:
    """Return the class indices that --classes names; raise UsageError for an unknown class."""
    if text is None:
        return None

    import pyarrow as pa

    if os.path.isfile(text):
        try:
            labels = Path(text).read_text(encoding="utf-8").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"--classes: {text} cannot be read as UTF-8 text: {error}") from error
    else:
        labels = next(csv.reader([text], skipinitialspace=True), [])
    labels = [label.strip() for label in labels if label.strip()]
    if not labels:
        raise UsageError(f"--classes: {text!r} names no class")
    indices = recipe.classes.resolve(pa.array(labels, pa.string()), "--classes")
    return frozenset(indices.tolist())


def _refuse_inside(to: str, out: str) -> None:
    """Raise UsageError if the export would be written among the files that localize committed."""
    if "://" in out:
        return
    for folder in ("predictions", "ledger"):
        inside = os.path.join(os.path.realpath(out), folder)
        if os.path.commonpath([inside, os.path.realpath(to)]) == inside:
            raise UsageError(f"{to} is inside {inside}, where only localize writes: choose another path")


def _print_counts(console: Console, counts: "Counts", what: str, to: str, complete: bool) -> None:
    console.out(f"{counts.boxes} {what} of {counts.images} images in {to}")
    failed = ", ".join(f"{count} {status}" for status, count in sorted(counts.failed.items()))
    unreadable = ", ".join(f"{count} {status}" for status, count in sorted(counts.unreadable.items()))
    left_out = (
        (counts.failed.total(), f"images that could not be localized ({failed})"),
        (counts.empty_images, "images without a selected box or mask"),
        (counts.unreadable.total(), f"images that cannot be read again ({unreadable})"),
        (counts.labels_of_other_classes, "labels of other classes"),
        (counts.labels_under_min_score, "labels under --min-score"),
        (counts.labels_without_map, "labels without a stored refined map"),
        (counts.labels_without_mask, "labels without a pixel in their mask"),
        (counts.fallback_boxes, "boxes over the whole image, of maps without a positive value"),
        (counts.boxes_without_area, "boxes without area"),
    )
    for count, reason in left_out:
        if count:
            console.out(f"left out: {count} {reason}")
    if not complete:
        console.out("the output is incomplete: run localize again to finish it")
