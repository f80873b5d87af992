"""`GapNetwork`: a network split at its global pooling, and the check that CAMs explain its logits."""

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
_LOGIT_TOLERANCE: Final = 1e-3  # in standard deviations of the logits
_SMALLEST_MAP: Final = 4  # cells per side
_FAINT: Final = 1e-4  # in standard deviations of the features


@dataclass(frozen=True)
class Preprocessing:
    """The input that a network expects.

    Attributes:
        input_size: Side of the square input, in pixels.
        mean: Mean of each channel (R, G, B), of pixels scaled to 0..1.
        std: Standard deviation of each channel, of pixels scaled to 0..1.

    Raises:
        ValueError: A value is not finite, or a standard deviation or the input size is not positive.
    """

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
    """A network split at its global pooling: images to features to logits.

    `features` and `logits` have to be modules or bound methods of modules, because a deep copy does not
    copy a closure.

    Args:
        model: The network; it owns all parameters, and its state dict is what weights files hold.
        features: Maps normalized images, [B, 3, H, W], to the input of the pooling, [B, C, h, w].
        logits: Maps features to logits, [B, K], by the pooling and the linear layer of the model itself.
        classifier: The linear layer (or 1x1 convolution) after the pooling; None for a network whose
            features are the maps of its classes (NIN, SqueezeNet).
        classes: Number of classes.
        pooling: The global pooling.
        head: The layers that start at random when the weights of the backbone come from elsewhere. Default:
            the classifier.
        preprocessing: The input that the network's published weights were trained with.
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
        # Tuples keep torch from registering these layers a second time next to the model.
        self._classifier = (classifier,)
        self._head = head if head is not None else (classifier,) if classifier is not None else ()

    def forward(self, images_BCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the features, [B, C, h, w], and the logits, [B, K], of normalized images."""
        features_BCHW = self.features(images_BCHW)
        return features_BCHW, self.logits(features_BCHW)

    @property
    def classifier(self) -> Classifier | None:
        """The layer after the pooling; None if the features are the maps of the classes."""
        return self._classifier[0]

    @property
    def weights_KC(self) -> torch.Tensor:
        """The weights of each class's map, a row per class."""
        if self.classifier is not None:
            return self.classifier.weight.flatten(1)
        return torch.eye(self.classes, device=next(self.model.parameters()).device)

    @property
    def bias_K(self) -> torch.Tensor:
        """The bias of each class; zeros if the head has none."""
        if self.classifier is not None and self.classifier.bias is not None:
            return self.classifier.bias
        return self.weights_KC.new_zeros(self.classes)

    def head_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the layers that start at random when a backbone is given."""
        return [parameter for layer in self._head for parameter in layer.parameters()]

    def backbone_keys(self) -> dict[str, str]:
        """Return the key in the original network for each key of the model's state dict outside the head."""
        head = {id(tensor) for layer in self._head for tensor in layer.state_dict(keep_vars=True).values()}
        state = self.model.state_dict(keep_vars=True)
        return {key: key.removeprefix(BACKBONE) for key, tensor in state.items() if id(tensor) not in head}


@torch.inference_mode()
def check_gap_head(network: GapNetwork, input_size: int) -> tuple[int, int]:
    """Check on noise, in float32, that the logits of a network are its pooled maps plus bias.

    The difference may be 1e-3 of the standard deviation of the logits. The weights of the head must not all
    be zero, and the map must have at least 4x4 cells. A change in one corner of the input, off the
    diagonal, has to change the features most in that corner, which a transposed map fails.

    Args:
        network: The network, in eval mode.
        input_size: Side of the input, in pixels.

    Returns:
        Height and width of the map, in cells.

    Raises:
        NetworkError: The check failed; the message gives the reason.
    """
    noise = torch.Generator().manual_seed(0)
    images_BCHW = torch.randn(2, 3, input_size, input_size, generator=noise)
    try:
        features_BCHW, logits_BK = network(images_BCHW)
    except (RuntimeError, ValueError, AssertionError, TypeError) as error:
        raise NetworkError(
            f"refused: it does not run at input size {input_size}: {first_line(error)}"
        ) from error
    if features_BCHW.ndim != 4:
        raise NetworkError(f"refused: its features have {features_BCHW.ndim} dimensions, a map needs 4")
    height, width = features_BCHW.shape[2:]
    channels, wanted = features_BCHW.shape[1], network.weights_KC.shape[1]
    if channels != wanted:
        raise NetworkError(f"refused: its features have {channels} channels, its linear layer takes {wanted}")
    if min(height, width) < _SMALLEST_MAP:
        raise NetworkError(
            f"refused: its map is {height}x{width} at input size {input_size}, "
            f"and at least {_SMALLEST_MAP}x{_SMALLEST_MAP} is needed: use a larger input",
            parameter="input_size",
        )
    if not network.weights_KC.any():
        raise NetworkError("refused: all weights of its linear layer are zero")
    if logits_BK.shape != (len(images_BCHW), network.classes):
        raise NetworkError(
            f"refused: it gives {tuple(logits_BK.shape[1:])} logits for {network.classes} classes"
        )
    difference = (_logits_from_maps(network, features_BCHW) - logits_BK).abs().max()
    spread = logits_BK.std()
    if not spread > 0:
        raise NetworkError("refused: its logits are all the same, or not finite")
    if not difference <= _LOGIT_TOLERANCE * spread:
        raise NetworkError(
            "refused: its pooled maps plus bias differ from its logits by "
            f"{difference / spread:.2g} standard deviations: there is a layer between its pooling and its "
            "linear layer, or after the linear layer"
        )
    if not _keeps_corners(network, images_BCHW, features_BCHW):
        raise NetworkError("refused: its map is not oriented as its input is")
    return height, width


def _logits_from_maps(network: GapNetwork, features_BCHW: torch.Tensor) -> torch.Tensor:
    if network.pooling == "max":
        return features_BCHW.amax((2, 3)) @ network.weights_KC.T + network.bias_K
    weights_BKC = network.weights_KC.expand(len(features_BCHW), -1, -1)
    return class_activation_maps(features_BCHW, weights_BKC).mean((2, 3)) + network.bias_K


def _keeps_corners(network: GapNetwork, images_BCHW: torch.Tensor, before_BCHW: torch.Tensor) -> bool:
    change_HW = _change_by_corner(network, images_BCHW, before_BCHW)
    if change_HW.max() < _FAINT * before_BCHW.std():
        # The response of an untrained network to its input may be below the precision of float32.
        exact, images_BCHW = copy.deepcopy(network).double(), images_BCHW.double()
        change_HW = _change_by_corner(exact, images_BCHW, exact.features(images_BCHW))
    h, w = (length // 2 for length in change_HW.shape)
    corners = [change_HW[:h, :w], change_HW[:h, -w:], change_HW[-h:, :w], change_HW[-h:, -w:]]
    return max(range(4), key=lambda index: float(corners[index].mean())) == 1


def _change_by_corner(
    network: GapNetwork, images_BCHW: torch.Tensor, before_BCHW: torch.Tensor
) -> torch.Tensor:
    """Return how much each cell of the features changes with the upper right corner of the input, [h, w]."""
    side = images_BCHW.shape[-1] // 4
    changed = images_BCHW.clone()
    changed[:, :, :side, -side:] = 3 * changed[:, :, :side, -side:].flip(0)
    return (network.features(changed) - before_BCHW).abs().mean((0, 1))
