"""Networks of timm and torchvision, split at their pooling without hooks.

Networks of timm have `forward_features` and `forward_head`. Those of torchvision are traced (torch.fx), and
their graph is split before the pooling.
"""

from functools import partial
from typing import Any, Final

import timm
import torch
import torchvision
from torch import nn

from camworker.errors import NetworkError
from camworker.networks.gap import GapNetwork, Preprocessing
from camworker.networks.graph_surgery import cut, dilate, trace
from camworker.schemas import Pooling

# With its published weights, torchvision renormalizes inside these two from ImageNet's mean and standard
# deviation to 0.5 (transform_input). Preprocessing with 0.5 does the same in one step.
_INCEPTIONS: Final = ("googlenet", "inception_v3")


class _Timm(nn.Module):
    """The two halves of a network of timm; features that are [B, h, w, C] are permuted to [B, C, h, w]."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self._channels_last = getattr(model, "output_fmt", "NCHW") == "NHWC"

    def features(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.model.forward_features(images_BCHW)
        return features.permute(0, 3, 1, 2) if self._channels_last else features

    def logits(self, features_BCHW: torch.Tensor) -> torch.Tensor:
        features = features_BCHW.permute(0, 2, 3, 1) if self._channels_last else features_BCHW
        logits_BK: torch.Tensor = self.model.forward_head(features)
        return logits_BK


def lite0(classes: int, pooling: Pooling, output_stride: int | None) -> GapNetwork:
    """Return EfficientNet-Lite0, whose weights are part of the installation (mean and deviation 0.5)."""
    return network_of_timm("tf_efficientnet_lite0", classes, pooling, output_stride)


def network_of_timm(name: str, classes: int, pooling: Pooling, output_stride: int | None) -> GapNetwork:
    """Return a network of timm, see `create_network`.

    Raises:
        NetworkError: timm has no such network, or its head is not a single linear layer.
    """
    if not timm.is_model(name):
        raise NetworkError(f"timm {timm.__version__} has no network {name!r}: see timm.list_models()")
    options: dict[str, Any] = {} if output_stride is None else {"output_stride": output_stride}
    try:
        model = timm.create_model(name, pretrained=False, num_classes=classes, global_pool=pooling, **options)
    except (TypeError, AssertionError, ValueError, RuntimeError) as error:
        what = f"with output stride {output_stride}" if options else f"with global {pooling} pooling"
        raise NetworkError(f"timm does not build {name} {what}: {error!r}") from error
    classifier = model.get_classifier() if hasattr(model, "get_classifier") else None
    if not isinstance(classifier, nn.Linear | nn.Conv2d):
        kind = type(classifier).__name__
        raise NetworkError(f"refused: timm's {name} ends in no single linear layer but in a {kind}")
    parts = _Timm(model)
    config = model.pretrained_cfg
    return GapNetwork(
        model,
        features=parts.features,
        logits=parts.logits,
        classifier=classifier,
        classes=classes,
        pooling=pooling,
        preprocessing=Preprocessing(
            int(config["input_size"][1]), tuple(config["mean"]), tuple(config["std"])
        ),
        undilated=partial(network_of_timm, name, classes, pooling, None) if options else None,
    ).eval()


def network_of_torchvision(
    name: str, classes: int, pooling: Pooling, output_stride: int | None
) -> GapNetwork:
    """Return a network of torchvision, see `create_network`.

    Raises:
        NetworkError: torchvision has no such network, or it has no global average pooling.
    """
    if name not in torchvision.models.list_models(module=torchvision.models):
        raise NetworkError(
            f"torchvision {torchvision.__version__} has no classification network {name!r}: "
            "see torchvision.models.list_models()"
        )
    options: dict[str, Any] = {"aux_logits": False, "init_weights": False} if name in _INCEPTIONS else {}
    model = torchvision.models.get_model(name, num_classes=classes, **options).eval()
    graph = trace(model)
    if output_stride is not None:
        dilate(model, graph, output_stride)
    features, logits, classifier = cut(model, graph, pooling)
    return GapNetwork(
        model,
        features=features,
        logits=logits,
        classifier=classifier,
        classes=classes,
        pooling=pooling,
        # Without a linear layer, the last convolution computes the maps of the classes.
        head=None if classifier else (_last_convolution(model),),
        preprocessing=_torchvision_preprocessing(name),
        undilated=None
        if output_stride is None
        else partial(network_of_torchvision, name, classes, pooling, None),
    ).eval()


def _last_convolution(model: nn.Module) -> nn.Module:
    return [layer for layer in model.modules() if isinstance(layer, nn.Conv2d)][-1]


def _torchvision_preprocessing(name: str) -> Preprocessing:
    """Return the input that torchvision's published weights of a network were trained with."""
    if name in _INCEPTIONS:
        return Preprocessing(299 if name == "inception_v3" else 224, (0.5,) * 3, (0.5,) * 3)
    transforms = torchvision.models.get_model_weights(name).DEFAULT.transforms()
    return Preprocessing(transforms.crop_size[0], tuple(transforms.mean), tuple(transforms.std))
