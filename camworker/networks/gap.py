"""GapNetwork: a network cut at its pooling, and the check that its head is what its CAMs assume.

Which networks there are by name is networks.py's; weights and class names are a package's (weights.py).
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch
from torch import nn

from camworker.cam import class_activation_maps
from camworker.errors import NetworkError, first_line
from camworker.schemas import Pooling

Classifier = nn.Linear | nn.Conv2d

BACKBONE: Final = "backbone."
_LOGIT_TOLERANCE: Final = 1e-3  # of the standard deviation of the logits
_SMALLEST_MAP: Final = 4
_FAINT: Final = 1e-4  # of the standard deviation of the features


@dataclass(frozen=True)
class Preprocessing:
    """input_size: side in pixels. mean, std: per channel, of pixels scaled to 0..1."""

    input_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __post_init__(self) -> None:
        numbers = (*self.mean, *self.std)
        if len(self.mean) != 3 or len(self.std) != 3 or not all(map(math.isfinite, numbers)):
            raise ValueError("mean and std are three numbers each")
        if min(self.std) <= 0 or self.input_size < 1:
            raise ValueError("std and input_size have to be positive")


IMAGENET_PREPROCESSING: Final = Preprocessing(224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF_PREPROCESSING: Final = Preprocessing(224, (0.5,) * 3, (0.5,) * 3)


class GapNetwork(nn.Module):
    """A network cut at its pooling: images -> features -> logits.

    model: owns all parameters; its state_dict is what weights files hold.
    features: images_BCHW -> features_BCHW, what enters the pooling.
    logits: features_BCHW -> logits_BK, pooling and the linear layer, as the model itself has them.
    Both are modules or bound methods of modules: these survive a deep copy, a closure does not.
    classifier: the linear layer (or 1x1 convolution) that is the head; None where the features are
    the maps of the classes themselves (NIN, SqueezeNet).
    classes: how many. head: the layers that start at random when the backbone's weights come from
    elsewhere; default the classifier alone.
    preprocessing: what the network's published weights were trained with.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        features: Callable[[torch.Tensor], torch.Tensor],
        logits: Callable[[torch.Tensor], torch.Tensor],
        classifier: Classifier | None,
        classes: int,
        pooling: Pooling,
        head: tuple[nn.Module, ...] | None = None,
        preprocessing: Preprocessing = IMAGENET_PREPROCESSING,
    ) -> None:
        super().__init__()
        self.model = model
        self.features = features
        self.logits = logits
        self.classes = classes
        self.pooling = pooling
        self.preprocessing = preprocessing
        # In tuples, so that the layers are not registered a second time beside the model.
        self._classifier = (classifier,)
        self._head = head if head is not None else (classifier,) if classifier is not None else ()

    def forward(self, images_BCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """images_BCHW, normalised -> (features_BCHW, logits_BK)."""
        features_BCHW = self.features(images_BCHW)
        return features_BCHW, self.logits(features_BCHW)

    @property
    def classifier(self) -> Classifier | None:
        return self._classifier[0]

    @property
    def weights_KC(self) -> torch.Tensor:
        """A row per class: the weights of its CAM."""
        if self.classifier is not None:
            return self.classifier.weight.flatten(1)
        return torch.eye(self.classes, device=next(self.model.parameters()).device)

    @property
    def bias_K(self) -> torch.Tensor:
        if self.classifier is not None and self.classifier.bias is not None:
            return self.classifier.bias
        return self.weights_KC.new_zeros(self.classes)

    def head_parameters(self) -> list[nn.Parameter]:
        """The parameters of the layers that start at random when the backbone's weights are given."""
        return [parameter for layer in self._head for parameter in layer.parameters()]

    def backbone_keys(self) -> dict[str, str]:
        """Keys of model's state dict outside the head -> the key in the network it was cut from."""
        head = {id(tensor) for layer in self._head for tensor in layer.state_dict(keep_vars=True).values()}
        state = self.model.state_dict(keep_vars=True)
        return {key: key.removeprefix(BACKBONE) for key, tensor in state.items() if id(tensor) not in head}


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
    try:
        features_BCHW, logits_BK = network(images_BCHW)
    except (RuntimeError, ValueError, AssertionError, TypeError) as error:
        reason = first_line(error)
        raise NetworkError(f"refused: it does not run at input size {input_size}: {reason}") from error
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
    if logits_BK.shape != (len(images_BCHW), network.classes):
        raise NetworkError(
            f"refused: it gives {tuple(logits_BK.shape[1:])} logits for {network.classes} classes"
        )
    miss = (_logits_from_maps(network, features_BCHW) - logits_BK).abs().max()
    spread = logits_BK.std()
    if not spread > 0:
        raise NetworkError("refused: its logits are all the same, or not finite")
    if not miss <= _LOGIT_TOLERANCE * spread:
        raise NetworkError(
            f"refused: pooled maps plus bias miss its logits by {miss / spread:.2g} standard deviations: "
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
    change_HW = _change_by_corner(network, images_BCHW, before_BCHW)
    if change_HW.max() < _FAINT * before_BCHW.std():
        # An untrained network may hardly answer to its input: below float32's digits.
        exact, images_BCHW = copy.deepcopy(network).double(), images_BCHW.double()
        change_HW = _change_by_corner(exact, images_BCHW, exact.features(images_BCHW))
    h, w = (length // 2 for length in change_HW.shape)
    corners = [change_HW[:h, :w], change_HW[:h, -w:], change_HW[-h:, :w], change_HW[-h:, -w:]]
    return max(range(4), key=lambda index: float(corners[index].mean())) == 1


def _change_by_corner(
    network: GapNetwork, images_BCHW: torch.Tensor, before_BCHW: torch.Tensor
) -> torch.Tensor:
    """How much the features change where (h, w), when the input's upper right corner does."""
    side = images_BCHW.shape[-1] // 4
    changed = images_BCHW.clone()
    changed[:, :, :side, -side:] = 3 * changed[:, :, :side, -side:].flip(0)
    return (network.features(changed) - before_BCHW).abs().mean((0, 1))
