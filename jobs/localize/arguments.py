"""Arguments of `camworker localize`."""

import argparse
from typing import Final

from camworker.frame import RESIZES, VIEWS
from jobs.options import (
    add_batch_size_option,
    add_id_column_option,
    add_input_size_option,
    add_local_root_option,
    add_network_options,
    add_precision_option,
    add_selection_options,
    add_worker_options,
    fraction,
    output_folder,
    whole_number,
)

# Names from camworker.presets, camworker.refinement and camworker.schemas, which load torch or pyarrow.
_PRESETS: Final = ("paper", "default", "best")
_REFINES: Final = ("none", "ridge", "foreground")
_REFINED: Final = ("best", "all")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `camworker localize`."""
    parser.add_argument(
        "input",
        metavar="INPUT",
        help="images: a folder or s3:// prefix, a Parquet file or folder with image bytes, or a CSV or "
        "Parquet manifest of image files",
    )
    parser.add_argument(
        "-o",
        "--output",
        required=True,
        type=output_folder,
        metavar="OUT",
        help="folder or s3:// prefix for the predictions and their ledger",
    )
    images = parser.add_argument_group("images")
    images.add_argument(
        "--image-labels",
        metavar="FILE",
        help="known labels of the images (Parquet or CSV: image_id, label), which get maps and boxes too",
    )
    images.add_argument(
        "--truth",
        metavar="PATH",
        help="ground truth, as for summarize, which then measures the rows; without --image-labels, the "
        "labels of a truth in Parquet or CSV are the known labels",
    )
    add_selection_options(images)
    add_id_column_option(images)
    add_local_root_option(images)
    images.add_argument(
        "--identity-column",
        metavar="NAME",
        help="column of the input table whose value changes whenever the image changes",
    )
    images.add_argument("--retry-failed", action="store_true", help="plan images again that failed before")
    images.add_argument(
        "--remove-missing",
        action="store_true",
        help="write rows with the status removed for images that are no longer listed",
    )
    recipe = parser.add_argument_group("recipe (these options decide the rows)")
    recipe.add_argument(
        "--preset",
        choices=_PRESETS,
        default="default",
        help="paper: 224 pixels, raw maps and cam20, as Zhou et al. (2016); default: refined maps; best: "
        "larger maps too, at two to three times the cost. The options below replace settings of the preset",
    )
    add_network_options(recipe)
    add_input_size_option(recipe, default="the preset's")
    recipe.add_argument("--resize", choices=RESIZES, help="how to fit an image to the input (default squash)")
    recipe.add_argument("--views", choices=VIEWS, help="crops to evaluate per image (default single)")
    recipe.add_argument(
        "--output-stride",
        type=int,
        choices=(8, 16, 32),
        help="pixels per cell of the map; a smaller stride dilates the last stages (default: the preset's)",
    )
    recipe.add_argument(
        "--refine",
        choices=_REFINES,
        help="how to refine the maps: ridge needs nothing learned, foreground a package with a foreground "
        "head (default: the preset's, as far as the network allows it)",
    )
    recipe.add_argument(
        "--refined",
        choices=_REFINED,
        default="best",
        help="store the refined map of the best class, or of all ranked classes (default best); those of "
        "known labels are always stored",
    )
    recipe.add_argument(
        "--box-rule",
        metavar="RULE",
        help="cam20, cam:T, cam20-multi or dtbox, on raw maps; fine:T or fine-multi:T, on refined maps "
        "(default: the rule that goes with the refinement)",
    )
    recipe.add_argument(
        "--top-k", type=whole_number(1), default=5, metavar="K", help="classes per image (default 5)"
    )
    add_precision_option(recipe)
    execution = parser.add_argument_group("execution")
    execution.add_argument(
        "--dry-run", action="store_true", help="count the images, time a few of them and write nothing"
    )
    add_worker_options(execution)
    add_batch_size_option(execution)
    execution.add_argument(
        "--compile",
        choices=("auto", "on", "off"),
        default="auto",
        help="compile the network (default auto: if that saves more time than it takes)",
    )
    execution.add_argument(
        "--shard-size", type=whole_number(1), metavar="N", help="images per part (default: at most 4096)"
    )
    execution.add_argument(
        "--single-writer",
        action="store_true",
        help="trust that no other run writes to OUT, for stores without conditional writes",
    )
    execution.add_argument(
        "--max-error-rate",
        type=fraction,
        default=1.0,
        metavar="FRACTION",
        help="stop with exit code 3 if more images than this fail (default 1: never)",
    )
