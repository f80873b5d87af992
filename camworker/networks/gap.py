"""`GapNetwork`: a network split at its global pooling, with taps of its earlier stages."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Self

import torch
from torch import fx, nn

from camworker.errors import NetworkError, first_line
from camworker.networks.taps import Taps, find_taps, with_taps
from camworker.networks.traced_features import TracedFeatures
from camworker.schemas import Pooling

Classifier = nn.Linear | nn.Conv2d

BACKBONE: Final = "backbone."


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
        undilated: For a dilated network: builds it as it is without dilation.
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
        undilated: "Callable[[], GapNetwork] | None" = None,
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
        self._undilated = undilated
        self._taps: Taps | str | None = None  # None until they are asked for; why there are none
        self._tapped: tuple[fx.GraphModule, ...] = ()

    def forward(self, images_BCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the features, [B, C, h, w], and the logits, [B, K], of normalized images."""
        features_BCHW = self.features(images_BCHW)
        return features_BCHW, self.logits(features_BCHW)

    @property
    def taps(self) -> Taps | None:
        """The feature maps of earlier stages that `tapped_features` returns; None if the network has none.

        They are chosen when they are first asked for, which takes as long as a few images. The network has to
        be in eval mode. `check_gap_head` drops taps that it finds wrong.
        """
        if self._taps is None:
            self._taps = self._find_taps()
        return self._taps if isinstance(self._taps, Taps) else None

    @property
    def no_taps_reason(self) -> str | None:
        """Why the network has no taps; None if it has."""
        return None if self.taps is not None else str(self._taps)

    def drop_taps(self, reason: str) -> None:
        """Give up the taps: `taps` is None from now on."""
        self._taps, self._tapped = reason, ()

    def tapped_features(
        self, images_BCHW: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Return the features of normalized images and the maps of earlier stages, from one pass.

        Returns:
            The features, [B, C, h, w]; the map at stride 8, of at most `MAX_TAP_CHANNELS` channels; and the
            map at stride 16, of at most `MAX_DEEP_CHANNELS` channels, None if the network has none.

        Raises:
            NetworkError: The network has no taps.
        """
        if not self._tapped:
            if self.taps is None:
                raise NetworkError(f"it has no feature maps to refine with: {self.no_taps_reason}")
            self._tapped = (with_taps(TracedFeatures.of(self.features), self.taps),)
        features_BCHW, fine_BCHW, *deep = self._tapped[0](images_BCHW)
        return features_BCHW, fine_BCHW, deep[0] if deep else None

    def _find_taps(self) -> Taps | str:
        try:
            features, undilated = TracedFeatures.of(self.features), None
            if self._undilated is not None:
                with torch.device("meta"):  # Only its code and its shapes are needed, no weights.
                    undilated = TracedFeatures.of(self._undilated().features)
            taps = find_taps(features, self.preprocessing.input_size, undilated)
        except NetworkError as error:
            return str(error)
        except Exception as error:  # Libraries raise nearly any error where the network is built on "meta".
            return f"without dilation it cannot be built: {first_line(error)}"
        self._tapped = (with_taps(features, taps),)
        return taps

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        # What `to` and the like replace (buffers) is shared again when the module is next made.
        self._tapped = ()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch's own
        return self

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
