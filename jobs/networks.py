"""List networks with their parameters and map sizes, and whether they support class activation maps."""

import argparse
from dataclasses import asdict, dataclass
from typing import Final

from jobs.console import DONE, Console
from jobs.options import whole_number

HELP = "list networks and whether they can localize"

# One member of each family that is worth trying, besides the default network and those of the paper.
_FAMILIES: Final = (
    "timm:resnet18",
    "timm:resnet50",
    "timm:tf_efficientnetv2_b0",
    "timm:regnety_002",
    "timm:repvgg_a0",
    "timm:fastvit_t8",
    "timm:swin_tiny_patch4_window7_224",
    "timm:convnext_tiny",
    "timm:mobilenetv4_conv_small",
    "timm:vit_tiny_patch16_224",
    "torchvision:resnet50",
    "torchvision:densenet121",
    "torchvision:squeezenet1_1",
    "torchvision:mobilenet_v2",
    "torchvision:mobilenet_v3_small",
    "torchvision:efficientnet_b0",
    "torchvision:googlenet",
    "torchvision:regnet_y_400mf",
    "torchvision:vgg16",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `camworker networks`."""
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help="a name from the list, timm:NAME, torchvision:NAME or a package (default: the whole list)",
    )
    parser.add_argument(
        "--input-size",
        type=whole_number(1, 4096),
        default=224,
        metavar="PIXELS",
        help="side of the network's input (default 224)",
    )


def run(args: argparse.Namespace, console: Console) -> int:
    """Run `camworker networks`; return its exit code."""
    from camworker.networks.package import is_package
    from camworker.networks.registry import NETWORK_NAMES, create_network

    names = args.names or [*NETWORK_NAMES, *_FAMILIES]
    for name in args.names:
        if name not in NETWORK_NAMES and not name.partition(":")[2] and not is_package(name):
            create_network(name, classes=1)  # raises an error that lists the names
    console.out(
        f"{'network':<36}{'parameters':>12}  {'map at ' + str(args.input_size):<12}{'head':<6}localizes, "
        "refines maps by"
    )
    rows = []
    for name in names:
        row = _check(name, args.input_size)
        rows.append(asdict(row))
        size = "x".join(map(str, row.map)) if row.map else "-"
        count = f"{row.parameters / 1e6:.1f} M" if row.parameters else "-"
        localizes = f"yes, {row.taps or 'nothing'}" if row.passes else f"no: {row.reason}"
        console.out(f"{name:<36}{count:>12}  {size:<12}{'yes' if row.foreground else '-':<6}{localizes}")
    console.result({"input_size": args.input_size, "networks": rows})
    return DONE


@dataclass
class _NetworkRow:
    network: str
    parameters: int | None = None
    map: list[int] | None = None
    passes: bool = False
    reason: str | None = None
    taps: str | None = None
    foreground: bool = False


def _check(name: str, input_size: int) -> _NetworkRow:
    """Load a package, or build a network of 1000 classes with random weights, and check its head."""
    from camworker.errors import NetworkError
    from camworker.networks.foreground_file import describe_taps
    from camworker.networks.gap_check import check_gap_head
    from camworker.networks.package import is_package, load
    from camworker.networks.registry import DEFAULT, create_network, default_pooling

    row = _NetworkRow(name)
    try:
        if is_package(name):
            package = load(name)
            network, row.foreground = package.network, package.foreground is not None
        else:
            network = create_network(name, classes=1000, pooling=default_pooling(name))
            row.foreground = name == DEFAULT  # with its published weights
        row.parameters = sum(parameter.numel() for parameter in network.parameters())
        row.map = list(check_gap_head(network, input_size))
        row.passes = True
        row.taps = describe_taps(network.taps) if network.taps else None
    except NetworkError as error:
        row.reason = str(error).removeprefix("refused: ")
    return row
