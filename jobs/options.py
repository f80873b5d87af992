"""Options that several commands share, and types that check the values of options."""

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Final

# The precisions of camworker.schemas, which would load pyarrow.
_PRECISIONS: Final = ("auto", "float32", "bfloat16", "float16")

DEFAULT_NETWORK: Final = "efficientnet_lite0"

# A parser or one of its groups. argparse has no public name for their common base class.
Options = argparse._ActionsContainer


def add_out_argument(parser: Options) -> None:
    """Add the positional argument OUT: an output of localize that a command reads."""
    parser.add_argument("output", metavar="OUT", help="an output of localize: a folder or an s3:// prefix")


def add_package_output_option(parser: Options) -> None:
    """Add --output PACKAGE: the network package that a command writes."""
    parser.add_argument(
        "--output",
        required=True,
        metavar="PACKAGE",
        help="the new network package: a folder or an s3:// prefix",
    )


def add_recipe_option(parser: Options) -> None:
    """Add --recipe: which recipe of OUT to read."""
    parser.add_argument(
        "--recipe",
        metavar="ID",
        help="the recipe to read; needed if OUT holds several (see camworker status)",
    )


def add_selection_options(group: Options) -> None:
    """Add --limit, --sample and --seed: which of the listed images to process."""
    group.add_argument(
        "--limit", type=whole_number(1), metavar="N", help="process only the first N images listed"
    )
    group.add_argument(
        "--sample", type=whole_number(1), metavar="N", help="process N images, chosen by a hash of their ids"
    )
    group.add_argument("--seed", type=int, default=0, help="seed of --sample (default 0)")


def add_id_column_option(group: Options) -> None:
    """Add --id-column: the column of an input table that holds the image ids."""
    group.add_argument(
        "--id-column", metavar="NAME", help="id column of the input table (default image_id, or else id)"
    )


def add_local_root_option(group: Options) -> None:
    """Add --local-root: a folder outside the manifest's own in which a manifest may name files."""
    group.add_argument(
        "--local-root",
        action="append",
        default=[],
        metavar="DIR",
        help="allow a manifest to name files in this folder as well as in its own; may be repeated",
    )


def add_network_option(group: Options, *, default: str | None = None) -> None:
    """Add --network.

    Args:
        group: The parser or group.
        default: None lets a command tell whether a network was named.
    """
    group.add_argument(
        "--network",
        default=default,
        metavar="NAME",
        help=f"network name; camworker networks lists them (default {DEFAULT_NETWORK})",
    )


def add_network_options(group: Options) -> None:
    """Add --network and --weights: the network that a command applies."""
    add_network_option(group)
    group.add_argument(
        "--weights",
        metavar="PATH",
        help="a network package (which also names its network), a weights file, or DEFAULT to download the "
        "weights that the network's library publishes",
    )


def add_input_size_option(group: Options, *, default: str = "the network's") -> None:
    """Add --input-size; `default` describes the default in the help."""
    group.add_argument(
        "--input-size",
        type=whole_number(1, 4096),
        metavar="PIXELS",
        help=f"side of the network's input (default: {default})",
    )


def add_pooling_option(group: Options) -> None:
    """Add --pooling: the global pooling of the network."""
    group.add_argument(
        "--pooling", choices=("avg", "max"), help="global pooling of the network (default: the network's)"
    )


def add_precision_option(group: Options) -> None:
    """Add --precision."""
    group.add_argument(
        "--precision",
        choices=_PRECISIONS,
        default="auto",
        help="floating point type of the network (default auto: the fastest that the device computes well)",
    )


def add_batch_size_option(group: Options) -> None:
    """Add --batch-size of inference."""
    group.add_argument(
        "--batch-size", type=whole_number(1), metavar="N", help="images per batch (default 16, on a GPU 64)"
    )


def add_class_names_option(group: Options, *, required: bool = False) -> None:
    """Add --class-names: a text file with the names of the classes."""
    group.add_argument(
        "--class-names",
        required=required,
        metavar="FILE",
        help="text file with one class name per line, in the order of the labels",
    )


def add_truth_boxes_option(group: Options) -> None:
    """Add --truth-boxes: the convention of the boxes in a table of ground truth."""
    group.add_argument(
        "--truth-boxes",
        choices=("half-open", "inclusive"),
        default="half-open",
        help="inclusive: xmax and ymax are the last pixels inside a box (default half-open)",
    )


def add_worker_options(group: Options, *, workers: str = "as many as the cluster fits") -> None:
    """Add --workers, --gpus-per-worker and --address; `workers` describes the default in the help."""
    group.add_argument(
        "--workers", type=whole_number(1), metavar="N", help=f"worker processes (default: {workers})"
    )
    group.add_argument(
        "--gpus-per-worker",
        type=gpu_count,
        metavar="G",
        help="GPUs of a worker, or a fraction of one (default: 1 if there are GPUs)",
    )
    add_address_option(group)


def add_address_option(group: Options, *, default: str = "start Ray on this machine") -> None:
    """Add --address: the Ray cluster to join; `default` describes the default in the help."""
    group.add_argument("--address", metavar="HOST:PORT", help=f"Ray cluster to join (default: {default})")


def whole_number(low: int, high: int | None = None) -> Callable[[str], int]:
    """Return the type of an option that takes an integer from low to high, both included."""
    expected = f"a whole number, at least {low}" if high is None else f"a whole number from {low} to {high}"

    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < low or (high is not None and int(text) > high):
            raise argparse.ArgumentTypeError(f"has to be {expected}")
        return int(text)

    return parse


def fraction(text: str) -> float:
    """Parse a number from 0 to 1."""
    return _number(text, 0, 1)


def non_negative(text: str) -> float:
    """Parse a finite number that is not negative."""
    return _number(text, 0, math.inf)


def gpu_count(text: str) -> float:
    """Parse a number of GPUs: 0, a fraction of one, or several."""
    return _number(text, 0, 64)


def output_folder(text: str) -> str:
    """Parse the path of a folder that exists or can be made; a file at the path is refused."""
    if any(path.exists() and not path.is_dir() for path in (Path(text), *Path(text).parents)):
        raise argparse.ArgumentTypeError(f"{text} cannot be a folder: there is a file of that name")
    return text


def _number(text: str, low: float, high: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not low <= value <= high or math.isinf(value):
        raise argparse.ArgumentTypeError(f"has to be a number between {low} and {high}")
    return value
