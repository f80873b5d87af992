"""Make a network package from weights that were trained elsewhere."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.console import DONE, Console
from jobs.options import (
    add_class_names_option,
    add_input_size_option,
    add_package_output_option,
    add_pooling_option,
    non_negative,
)

if TYPE_CHECKING:
    from camworker.networks.foreground_file import FittedForeground

HELP = "make a network package from existing weights"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `camworker package`."""
    parser.add_argument(
        "weights",
        metavar="WEIGHTS",
        help="the state dict: a .pth, .pt or .safetensors file, local or s3://",
    )
    parser.add_argument(
        "--network",
        required=True,
        metavar="NAME",
        help="the network of the state dict, such as torchvision:resnet50 or timm:NAME",
    )
    add_class_names_option(parser, required=True)
    add_package_output_option(parser)
    parser.add_argument(
        "--foreground",
        metavar="SOURCE",
        help="copy the foreground head of a network with the same feature maps: a network package, a file "
        "that fit-foreground wrote, or DEFAULT for the default network's",
    )
    training = parser.add_argument_group("how the network was trained (default: as its published weights)")
    add_input_size_option(training)
    training.add_argument(
        "--mean",
        type=non_negative,
        nargs=3,
        metavar=("R", "G", "B"),
        help="channel means of pixels from 0 to 1",
    )
    training.add_argument(
        "--std",
        type=non_negative,
        nargs=3,
        metavar=("R", "G", "B"),
        help="channel standard deviations of pixels from 0 to 1",
    )
    add_pooling_option(training)
    training.add_argument(
        "--scoring",
        choices=("softmax", "sigmoid"),
        default="softmax",
        help="sigmoid for images with several labels (default softmax)",
    )


def run(args: argparse.Namespace, console: Console) -> int:
    """Run `camworker package`; return its exit code."""
    from camworker.networks.foreground_file import describe_taps
    from camworker.networks.gap import Preprocessing
    from camworker.networks.package import build_package, save, with_foreground
    from camworker.networks.registry import create_network, default_pooling
    from camworker.networks.state_dicts import read_state
    from camworker.training.labelled_images import read_class_names

    classes = read_class_names(args.class_names)
    network = create_network(args.network, classes=1, pooling=args.pooling or default_pooling(args.network))
    published = network.preprocessing
    preprocessing = Preprocessing(
        args.input_size or published.input_size,
        tuple(args.mean or published.mean),
        tuple(args.std or published.std),
    )
    package = build_package(
        args.network,
        read_state(args.weights),
        classes,
        pooling=args.pooling,
        preprocessing=preprocessing,
        scoring=args.scoring,
        provenance={"command": "package", "weights": Path(args.weights).name},
    )
    if args.foreground:
        package = with_foreground(package, _foreground(args.foreground), args.foreground)
    save(package, args.output)
    console.out(
        f"{args.output} is a package of {args.network} with {len(classes)} classes: "
        f"camworker localize INPUT --output OUT --weights {args.output}"
    )
    head = "with" if package.foreground else "without"
    console.out(f"{head} a foreground head; refined maps are made from {describe_taps(package.network.taps)}")
    console.result(
        {
            "package": args.output,
            "network": package.name,
            "classes": len(classes),
            "fingerprint": package.fingerprint,
            "taps": describe_taps(package.network.taps),
            "foreground": package.foreground.head.fingerprint if package.foreground else None,
        }
    )
    return DONE


def _foreground(source: str) -> "FittedForeground":
    """Return the foreground head that --foreground names."""
    from camworker.networks.foreground_file import FOREGROUND_FILE, published_foreground, read_foreground
    from camworker.networks.state_dicts import PUBLISHED
    from camworker.storage.uris import join_uri

    if source == PUBLISHED:
        return published_foreground()
    return read_foreground(source if source.endswith(".safetensors") else join_uri(source, FOREGROUND_FILE))
