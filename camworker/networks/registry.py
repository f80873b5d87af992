"""Networks by name: the default one, those of Zhou et al., and those of timm and torchvision."""

from typing import Final

from camworker.classes import Classes
from camworker.errors import NetworkError
from camworker.networks.gap import GapNetwork
from camworker.networks.timm_torchvision import lite0, network_of_timm, network_of_torchvision
from camworker.networks.zhou2016 import ZHOU2016_NETWORKS, build_paper_network
from camworker.schemas import Pooling

DEFAULT: Final = "efficientnet_lite0"
NETWORK_NAMES: Final = (DEFAULT, *ZHOU2016_NETWORKS)


def create_network(
    name: str, *, classes: int, pooling: Pooling = "avg", output_stride: int | None = None
) -> GapNetwork:
    """Return a network with random weights, in eval mode; `check_gap_head` is not run.

    Args:
        name: One of `NETWORK_NAMES`, "timm:NAME" or "torchvision:NAME".
        classes: Number of classes.
        pooling: The global pooling.
        output_stride: Input pixels per cell of the feature map, for networks whose last stages can be dilated
            instead of strided. Default: the network's own.

    Raises:
        NetworkError: The name is unknown, the network cannot be dilated, or its head cannot be separated.
    """
    if name == DEFAULT:
        return lite0(classes, pooling, output_stride)
    if name in ZHOU2016_NETWORKS:
        if output_stride is not None:
            raise NetworkError(
                f"{name} cannot be dilated: it has no other output stride", parameter="output_stride"
            )
        return build_paper_network(name, classes, pooling).eval()
    library, _, model = name.partition(":")
    if library == "timm" and model:
        return network_of_timm(model, classes, pooling, output_stride)
    if library == "torchvision" and model:
        return network_of_torchvision(model, classes, pooling, output_stride)
    raise NetworkError(
        f"unknown network {name!r}: choose {', '.join(NETWORK_NAMES)}, timm:NAME, torchvision:NAME, "
        "or the folder of a network package"
    )


def default_pooling(name: str) -> Pooling:
    """Return the pooling of a network: averages, except in the max-pooling ablation of Zhou et al. (-gmp)."""
    return "max" if name.endswith("-gmp") else "avg"


def imagenet() -> Classes:
    """Return the 1000 ILSVRC classes: torchvision's names, which are distinct, and their WordNet ids."""
    from timm.data import ImageNetInfo
    from torchvision.models import EfficientNet_B0_Weights

    names = EfficientNet_B0_Weights.IMAGENET1K_V1.meta["categories"]
    return Classes(tuple(names), tuple(ImageNetInfo("imagenet-1k").label_names()))
