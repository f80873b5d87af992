"""Make a network package of weights that were trained elsewhere."""

import argparse
from pathlib import Path
from typing import Any

from jobs.console import DONE, Console
from jobs.options import (
    add_class_names_option,
    add_input_size_option,
    add_package_output_option,
    add_pooling_option,
    non_negative,
)

HELP = "make a package of a network trained elsewhere"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "weights", metavar="WEIGHTS", help="state dict: .pth, .pt or .safetensors, local or s3://"
    )
    parser.add_argument(
        "--network", required=True, help="what it is a state dict of: torchvision:resnet50, timm:NAME, ..."
    )
    add_class_names_option(parser, required=True)
    add_package_output_option(parser)
    how = parser.add_argument_group("how it was trained (default: as its library's published weights)")
    add_input_size_option(how)
    how.add_argument(
        "--mean", type=non_negative, nargs=3, metavar="M", help="of red, green, blue, of pixels in 0..1"
    )
    how.add_argument("--std", type=non_negative, nargs=3, metavar="S")
    add_pooling_option(how)
    how.add_argument(
        "--scoring",
        choices=("softmax", "sigmoid"),
        default="softmax",
        help="sigmoid: several labels",
    )


def run(args: argparse.Namespace, console: Console) -> int:
    from camworker.networks.gap import Preprocessing
    from camworker.networks.package import build_package, save
    from camworker.networks.registry import create_network, default_pooling
    from camworker.networks.state_dicts import read_state
    from camworker.training.labelled_images import read_class_names

    classes = read_class_names(args.class_names)
    given: Any = create_network(
        args.network, classes=1, pooling=args.pooling or default_pooling(args.network)
    )
    own = given.preprocessing
    preprocessing = Preprocessing(
        args.input_size or own.input_size, tuple(args.mean or own.mean), tuple(args.std or own.std)
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
        f"{args.network} of {len(classes)} classes is in {args.output}: "
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
