"""Make a network package from weights that were trained elsewhere."""

import argparse
from pathlib import Path

from jobs.console import DONE, Console
from jobs.options import (
    add_class_names_option,
    add_input_size_option,
    add_package_output_option,
    add_pooling_option,
    non_negative,
)

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
    from camworker.networks.gap import Preprocessing
    from camworker.networks.package import build_package, save
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
    save(package, args.output)
    console.out(
        f"{args.output} is a package of {args.network} with {len(classes)} classes: "
        f"camworker localize INPUT --output OUT --weights {args.output}"
    )
    console.result(
        {
            "package": args.output,
            "network": package.name,
            "classes": len(classes),
            "fingerprint": package.fingerprint,
        }
    )
    return DONE
