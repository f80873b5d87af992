"""The networks of Zhou et al., "Learning Deep Features for Discriminative Localization", CVPR 2016.

Each is the backbone of a classic network, followed by one or two 3x3 convolutions, global pooling and one
linear layer. NIN ends in maps of the classes already.

The backbones are those of torchvision, which differ from the Caffe models of the paper:

- AlexNet has 64/192/384/256/256 channels, no groups and no local response normalization (Caffe:
96/256/384/384/256
  channels, input 227).
- GoogLeNet has batch normalization, and a 3x3 convolution in the branch that the paper calls 5x5.

NIN (Lin et al., 2014) is in no library and is written out here.
"""

from collections import OrderedDict
from typing import Final

import torch
import torchvision
from torch import nn

from camworker.networks.gap import (
    HALF_PREPROCESSING,
    IMAGENET_PREPROCESSING,
    GapNetwork,
    Preprocessing,
)
from camworker.schemas import Pooling

# The network of torchvision from which each backbone is taken; NIN has none.
BACKBONE_ORIGINS: Final = {
    "vgg16-gap": "vgg16",
    "googlenet-gap": "googlenet",
    "alexnet-gap": "alexnet",
    "alexnet-plus-gap": "alexnet",
    "googlenet-gmp": "googlenet",
}
ZHOU2016_NETWORKS: Final = (*BACKBONE_ORIGINS, "nin")


class _Cut(nn.Module):
    """A backbone, the added convolutions, global pooling, dropout and a linear layer.

    The tensors of the backbone keep their names after "backbone.", so that its published weights fit.
    """

    def __init__(
        self, backbone: nn.Module, added: nn.Sequential, dropout: float, classes: int, pooling: Pooling
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.added = added
        self.dropout = nn.Dropout(dropout)
        width = [layer.out_channels for layer in added if isinstance(layer, nn.Conv2d)][-1]
        self.classifier = nn.Linear(width, classes)
        self._pooling = pooling
        _initialize(added)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)

    def forward_features(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        features_BCHW: torch.Tensor = self.added(self.backbone(images_BCHW))
        return features_BCHW

    def forward_head(self, features_BCHW: torch.Tensor) -> torch.Tensor:
        logits_BK: torch.Tensor = self.classifier(self.dropout(_pool(features_BCHW, self._pooling)))
        return logits_BK


class _NetworkInNetwork(nn.Module):
    """Four mlpconv blocks; the last layer computes a map for each class."""

    def __init__(self, classes: int, pooling: Pooling) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *_mlpconv(3, 96, 11, stride=4),
            nn.MaxPool2d(3, 2, ceil_mode=True),
            *_mlpconv(96, 256, 5, padding=2),
            nn.MaxPool2d(3, 2, ceil_mode=True),
            *_mlpconv(256, 384, 3, padding=1),
            nn.MaxPool2d(3, 2, ceil_mode=True),
            nn.Dropout(0.5),
            *_mlpconv(384, 1024, 3, padding=1, last=classes),
        )
        self._pooling = pooling
        _initialize(self.features)

    def forward_features(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        features_BCHW: torch.Tensor = self.features(images_BCHW)
        return features_BCHW

    def forward_head(self, features_BCHW: torch.Tensor) -> torch.Tensor:
        return _pool(features_BCHW, self._pooling)


def build_paper_network(name: str, classes: int, pooling: Pooling) -> GapNetwork:
    """Return a network of the paper with random weights.

    Args:
        name: One of `ZHOU2016_NETWORKS`.
        classes: Number of classes.
        pooling: The global pooling.
    """
    if name == "nin":
        nin = _NetworkInNetwork(classes, pooling)
        return _gap_network(nin, None, classes, pooling, (nin.features,))
    preprocessing = IMAGENET_PREPROCESSING
    if name == "vgg16-gap":
        # As released with the paper: two groups, and dropout before the linear layer.
        model = _Cut(_first_layers("vgg16", -1), _conv3x3(512, 1024, groups=2), 0.5, classes, pooling)
    elif name in ("googlenet-gap", "googlenet-gmp"):
        model = _Cut(_until_inception4e(), _conv3x3(832, 1024, groups=2), 0.0, classes, pooling)
        # torchvision renormalizes to this before the layers that are kept (transform_input).
        preprocessing = HALF_PREPROCESSING
    elif name == "alexnet-gap":
        model = _Cut(_first_layers("alexnet", -1), _conv3x3(256, 1024), 0.0, classes, pooling)
    else:
        # conv5 is wider than torchvision's, so it and its ReLU are among the added layers.
        added = nn.Sequential(
            *_conv3x3(256, 384),
            nn.MaxPool2d(3, stride=1),
            *_conv3x3(384, 512, groups=2),
            *_conv3x3(512, 512, groups=2),
        )
        model = _Cut(_first_layers("alexnet", -3), added, 0.5, classes, pooling)
    head = (model.added, model.classifier)
    return _gap_network(model, model.classifier, classes, pooling, head, preprocessing)


def _gap_network(
    model: _Cut | _NetworkInNetwork,
    classifier: nn.Linear | None,
    classes: int,
    pooling: Pooling,
    head: tuple[nn.Module, ...],
    preprocessing: Preprocessing = IMAGENET_PREPROCESSING,
) -> GapNetwork:
    return GapNetwork(
        model,
        features=model.forward_features,
        logits=model.forward_head,
        classifier=classifier,
        classes=classes,
        pooling=pooling,
        head=head,
        preprocessing=preprocessing,
    )


def _pool(features_BCHW: torch.Tensor, pooling: Pooling) -> torch.Tensor:
    return features_BCHW.amax((2, 3)) if pooling == "max" else features_BCHW.mean((2, 3))


def _first_layers(name: str, end: int) -> nn.Module:
    """Return the features of torchvision's AlexNet or VGG up to a layer; -1 excludes the last pooling."""
    with torch.device("meta"):
        layers = torchvision.models.get_model(name, num_classes=1).features[:end]
    return _at_random(nn.Sequential(OrderedDict(features=layers)))


def _until_inception4e() -> nn.Module:
    with torch.device("meta"):
        googlenet = torchvision.models.GoogLeNet(1, aux_logits=False, init_weights=False)
    layers = OrderedDict(googlenet.named_children())
    names = list(layers)
    kept = names[: names.index("inception4e") + 1]
    return _at_random(nn.Sequential(OrderedDict((name, layers[name]) for name in kept)))


def _at_random(layers: nn.Module) -> nn.Module:
    """Give memory and random weights to layers on the meta device; the discarded layers never had memory."""
    layers.to_empty(device="cpu")
    for layer in layers.modules():
        if isinstance(layer, nn.Conv2d | nn.BatchNorm2d):
            layer.reset_parameters()
    _initialize(layers)
    return layers


def _conv3x3(channels: int, out: int, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, out, 3, padding=1, groups=groups), nn.ReLU())


def _mlpconv(
    channels: int, width: int, kernel: int, *, stride: int = 1, padding: int = 0, last: int | None = None
) -> list[nn.Module]:
    """Return a convolution and two 1x1 convolutions, each with ReLU (Lin et al. 2014, section 3.1)."""
    layers: list[nn.Module] = [nn.Conv2d(channels, width, kernel, stride, padding), nn.ReLU()]
    for out in (width, last or width):
        layers += [nn.Conv2d(width, out, 1), nn.ReLU()]
    return layers


def _initialize(layers: nn.Module) -> None:
    for layer in layers.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
