"""GAP networks by name, and the check that a network's head is what its CAMs assume.

No weights, class names or preprocessing here: those are a network package's (weights.py).
"""

from collections.abc import Callable
from typing import Final, Literal

import torch
from torch import nn

from camworker.cam import class_activation_maps
from camworker.errors import NetworkError

Pooling = Literal["avg", "max"]
DEFAULT: Final = "efficientnet_lite0"
NAMES: Final = (DEFAULT,)

_LOGIT_TOLERANCE: Final = 1e-3  # of the standard deviation of the logits
_SMALLEST_MAP: Final = 4


class GapNetwork(nn.Module):
    """A network cut at its pooling: images -> features -> logits.

    model: owns all parameters; its state_dict is what weights files hold.
    features: images_BCHW -> features_BCHW, what enters the pooling.
    logits: features_BCHW -> logits_BK, pooling and the linear layer, as the model itself has them.
    classifier: the linear layer (or 1x1 convolution) that is the head.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        features: Callable[[torch.Tensor], torch.Tensor],
        logits: Callable[[torch.Tensor], torch.Tensor],
        classifier: nn.Linear | nn.Conv2d,
        pooling: Pooling,
    ) -> None:
        super().__init__()
        self.model = model
        self.features = features
        self.logits = logits
        self.pooling = pooling
        # In a tuple, so that the layer is not registered a second time beside the model.
        self._classifier = (classifier,)

    def forward(self, images_BCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """images_BCHW, normalised -> (features_BCHW, logits_BK)."""
        features_BCHW = self.features(images_BCHW)
        return features_BCHW, self.logits(features_BCHW)

    @property
    def classifier(self) -> nn.Linear | nn.Conv2d:
        return self._classifier[0]

    @property
    def weights_KC(self) -> torch.Tensor:
        """A row per class: the weights of its CAM."""
        return self.classifier.weight.flatten(1)

    @property
    def bias_K(self) -> torch.Tensor:
        bias = self.classifier.bias
        return bias if bias is not None else self.classifier.weight.new_zeros(len(self.weights_KC))


def build(name: str, *, classes: int, pooling: Pooling = "avg") -> GapNetwork:
    """A network of that name with random weights, in eval mode. Raises NetworkError for another name."""
    if name not in NAMES:
        raise NetworkError(
            f"unknown network {name!r}: choose {', '.join(NAMES)}, or the folder of a network package"
        )
    import timm

    model = timm.create_model(f"tf_{name}", pretrained=False, num_classes=classes, global_pool=pooling)
    return GapNetwork(
        model,
        features=model.forward_features,
        logits=model.forward_head,
        classifier=model.get_classifier(),
        pooling=pooling,
    ).eval()


@torch.inference_mode()
def check_gap_head(network: GapNetwork, input_size: int) -> tuple[int, int]:
    """Prove on noise that the network's CAMs are what its logits are made of; return the map's (h, w).

    float32, eval mode: pooled maps plus bias equal the logits to 1e-3 of the logits' standard
    deviation; head weights are not all zero; the map is at least 4x4; changing one corner of the
    input off the diagonal changes the features most in that corner, which a transposed map fails.
    Raises NetworkError with the reason.
    """
    noise = torch.Generator().manual_seed(0)
    images_BCHW = torch.randn(2, 3, input_size, input_size, generator=noise)
    features_BCHW, logits_BK = network(images_BCHW)
    if features_BCHW.ndim != 4:
        raise NetworkError(f"refused: its features have {features_BCHW.ndim} dimensions, a map needs 4")
    height, width = features_BCHW.shape[2:]
    channels, wanted = features_BCHW.shape[1], network.weights_KC.shape[1]
    if channels != wanted:
        raise NetworkError(f"refused: its features have {channels} channels, its linear layer takes {wanted}")
    if min(height, width) < _SMALLEST_MAP:
        raise NetworkError(
            f"refused: its map is {height}x{width} at input size {input_size}, "
            f"and at least {_SMALLEST_MAP}x{_SMALLEST_MAP} is needed: raise --input-size"
        )
    if not network.weights_KC.any():
        raise NetworkError("refused: all weights of its linear layer are zero")
    error = (_logits_from_maps(network, features_BCHW) - logits_BK).abs().max()
    spread = logits_BK.std()
    if not error <= _LOGIT_TOLERANCE * spread:
        raise NetworkError(
            f"refused: pooled maps plus bias miss its logits by {error / spread:.2g} standard deviations: "
            "there is something between its pooling and its linear layer, or after it"
        )
    if not _keeps_corners(network, images_BCHW, features_BCHW):
        raise NetworkError("refused: its map does not lie as its input does")
    return height, width


def _logits_from_maps(network: GapNetwork, features_BCHW: torch.Tensor) -> torch.Tensor:
    if network.pooling == "max":
        return features_BCHW.amax((2, 3)) @ network.weights_KC.T + network.bias_K
    weights_BKC = network.weights_KC.expand(len(features_BCHW), -1, -1)
    return class_activation_maps(features_BCHW, weights_BKC).mean((2, 3)) + network.bias_K


def _keeps_corners(network: GapNetwork, images_BCHW: torch.Tensor, before_BCHW: torch.Tensor) -> bool:
    side = images_BCHW.shape[-1] // 4
    changed = images_BCHW.clone()
    changed[:, :, :side, -side:] = 3 * changed[:, :, :side, -side:].flip(0)
    change_HW = (network.features(changed) - before_BCHW).abs().mean((0, 1))
    h, w = (length // 2 for length in change_HW.shape)
    corners = [change_HW[:h, :w], change_HW[:h, -w:], change_HW[-h:, :w], change_HW[-h:, -w:]]
    return max(range(4), key=lambda index: float(corners[index].mean())) == 1
