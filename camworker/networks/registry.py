"""Networks by name: the default one, the paper's, and those of timm and torchvision. Random weights only."""

from typing import Final

from camworker.errors import NetworkError
from camworker.networks import timm_torchvision as zoo
from camworker.networks import zhou2016 as paper_networks
from camworker.networks.gap import GapNetwork
from camworker.schemas import Pooling

DEFAULT: Final = "efficientnet_lite0"
NAMES: Final = (DEFAULT, *paper_networks.NAMES)
PREFIXES: Final = ("timm:", "torchvision:")


def create_network(
    name: str, *, classes: int, pooling: Pooling = "avg", output_stride: int | None = None
) -> GapNetwork:
    """A network of that name with random weights, in eval mode. Whether its head is one is not checked.

    output_stride: input pixels a cell of the feature map, where the last stages can be dilated instead
    of strided; default the network's own. Raises NetworkError for an unknown name, and for a network
    that cannot be dilated or whose head cannot be taken apart.
    """
    if name == DEFAULT:
        return zoo.lite0(classes, pooling, output_stride)
    if name in paper_networks.NAMES:
        if output_stride is not None:
            raise NetworkError(f"{name} cannot be dilated: leave --output-stride out")
        return paper_networks.build_paper_network(name, classes, pooling).eval()
    library, _, model = name.partition(":")
    if library == "timm" and model:
        return zoo.of_timm(model, classes, pooling, output_stride)
    if library == "torchvision" and model:
        return zoo.of_torchvision(model, classes, pooling, output_stride)
    raise NetworkError(
        f"unknown network {name!r}: choose {', '.join(NAMES)}, timm:NAME, torchvision:NAME, "
        "or the folder of a network package"
    )


def default_pooling(name: str) -> Pooling:
    """How a network of that name pools when nobody says: by averages, but for the paper's ablation."""
    return "max" if name.endswith("-gmp") else "avg"
