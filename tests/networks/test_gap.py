"""check_gap_head: networks that pass, and networks that are refused, each with its reason."""

import copy

import pytest
import torch
from torch import nn

from camworker.errors import NetworkError
from camworker.networks.gap import GapNetwork
from camworker.networks.gap_check import check_gap_head

SIZE = 32


class Head(nn.Module):
    """Pooling, further layers, and the linear layer, which other layers may follow."""

    def __init__(self, *layers: nn.Module, pooling: str = "avg") -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)
        self.pooling = pooling

    def forward(self, features_BCHW: torch.Tensor) -> torch.Tensor:
        pooled = features_BCHW.mean((2, 3)) if self.pooling == "avg" else features_BCHW.amax((2, 3))
        return self.layers(pooled)


def tiny(
    *after_pool: nn.Module, stride: int = 4, pooled: str = "avg", declared: str = "avg", **changed: object
) -> GapNetwork:
    """A network of eight channels and five classes whose map has SIZE / stride cells per side."""
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 8, 5, stride=stride, padding=2), nn.SiLU())
    head = Head(*(after_pool or [nn.Linear(8, 5)]), pooling=pooled)
    linear = [layer for layer in head.layers if isinstance(layer, nn.Linear)][-1]
    parts = {
        "features": body,
        "logits": head,
        "classifier": linear,
        "classes": 5,
        "pooling": declared,
    } | changed
    return GapNetwork(nn.ModuleList([body, head]), **parts).eval()


def transformed(change, axes: tuple[int, ...] = (2, 3)) -> GapNetwork:
    """A network with changed features; its head pools over axes and gives the same logits."""
    plain, linear = tiny(), nn.Linear(8, 5)
    return tiny(
        features=lambda images_BCHW: change(plain.features(images_BCHW)),
        logits=lambda features: linear(features.mean(axes)),
        classifier=linear,
    )


def test_the_default_network_passes(default_package):
    assert check_gap_head(default_package.network, 224) == (7, 7)
    assert check_gap_head(default_package.network, 256) == (8, 8)


def test_a_plain_head_passes():
    assert check_gap_head(tiny(), SIZE) == (8, 8)
    assert check_gap_head(tiny(nn.Linear(8, 5, bias=False)), SIZE) == (8, 8)
    assert check_gap_head(tiny(nn.Dropout(0.5), nn.Linear(8, 5)), SIZE) == (8, 8)  # inert in eval mode


def test_a_head_of_1x1_convolution_passes():
    convolution = nn.Conv2d(8, 5, 1)
    network = tiny(
        logits=lambda features_BCHW: convolution(features_BCHW.mean((2, 3), keepdim=True)).flatten(1),
        classifier=convolution,
    )
    assert network.weights_KC.shape == (5, 8)
    assert check_gap_head(network, SIZE) == (8, 8)


def test_max_pooling_passes_where_it_is_declared():
    assert check_gap_head(tiny(pooled="max", declared="max"), SIZE) == (8, 8)
    for pooled, declared in (("max", "avg"), ("avg", "max")):
        with pytest.raises(NetworkError, match="differ from its logits"):
            check_gap_head(tiny(pooled=pooled, declared=declared), SIZE)


@pytest.mark.parametrize(
    "layers",
    [
        [nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 5)],
        [nn.Linear(8, 8), nn.Linear(8, 5)],
        [nn.Tanh(), nn.Linear(8, 5)],
        [nn.LayerNorm(8), nn.Linear(8, 5)],
        [nn.Linear(8, 5), nn.Softmax(1)],
    ],
)
def test_layers_before_or_after_the_linear_one_are_refused(layers):
    with pytest.raises(NetworkError, match="between its pooling and its linear layer"):
        check_gap_head(tiny(*layers), SIZE)


def test_a_hidden_layer_of_another_width_is_refused():
    # As in MobileNetV3: 960 channels are pooled, 1280 enter the linear layer.
    with pytest.raises(NetworkError):
        check_gap_head(tiny(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 5)), SIZE)


@pytest.mark.parametrize(
    "change",
    [
        lambda features_BCHW: features_BCHW.transpose(2, 3),
        lambda features_BCHW: features_BCHW.flip(3),
        lambda features_BCHW: features_BCHW.flip(2),
        lambda features_BCHW: features_BCHW.mean((2, 3), keepdim=True).expand(features_BCHW.shape),
    ],
    ids=["transposed", "mirrored", "upside down", "without place"],
)
def test_a_map_that_is_not_oriented_as_the_input_is_refused(change):
    with pytest.raises(NetworkError, match="is not oriented as its input"):
        check_gap_head(transformed(change), SIZE)


def test_zero_weights_are_refused():
    linear = nn.Linear(8, 5)
    nn.init.zeros_(linear.weight)
    with pytest.raises(NetworkError, match=r"all weights .* are zero"):
        check_gap_head(tiny(linear), SIZE)
    with torch.no_grad():
        linear.weight[4, 7] = 1  # a single one is enough
    assert check_gap_head(tiny(linear), SIZE) == (8, 8)


def test_nan_is_refused():
    linear = nn.Linear(8, 5)
    nn.init.constant_(linear.weight, float("nan"))
    with pytest.raises(NetworkError):
        check_gap_head(tiny(linear), SIZE)


def test_a_map_too_small_is_refused():
    assert check_gap_head(tiny(stride=8), SIZE) == (4, 4)
    with pytest.raises(NetworkError, match=r"3x3 at input size 24.*4x4.*use a larger input"):
        check_gap_head(tiny(stride=8), 24)
    # The shorter side counts.
    with pytest.raises(NetworkError, match="8x3"):
        check_gap_head(transformed(lambda features_BCHW: features_BCHW[..., :3]), SIZE)


def test_features_without_a_map_are_refused():
    # A list of tokens, as a vision transformer has them.
    tokens = transformed(lambda features_BCHW: features_BCHW.flatten(2), axes=(2,))
    with pytest.raises(NetworkError, match="3 dimensions"):
        check_gap_head(tokens, SIZE)


@pytest.mark.parametrize("size", [32, 64])  # at 32 the map's sides equal the channels, and all shapes fit
def test_features_with_channels_last_are_refused(size):
    channels_last = transformed(lambda features_BCHW: features_BCHW.permute(0, 2, 3, 1), axes=(1, 2))
    with pytest.raises(NetworkError):
        check_gap_head(channels_last, size)


def class_maps(**changed: object) -> GapNetwork:
    """A network without a linear layer, as NIN and SqueezeNet: its features are the maps of the classes."""
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 5, 5, stride=4, padding=2), nn.ReLU())
    parts = {"logits": Head(), "classifier": None, "classes": 5, "pooling": "avg"} | changed
    return GapNetwork(body, features=body, **parts).eval()


def test_class_maps_pass():
    network = class_maps()
    assert check_gap_head(network, SIZE) == (8, 8)
    assert network.weights_KC.tolist() == torch.eye(5).tolist()
    assert network.bias_K.tolist() == [0] * 5
    assert network.head_parameters() == []
    assert check_gap_head(class_maps(logits=Head(pooling="max"), pooling="max"), SIZE) == (8, 8)


def test_the_number_of_class_maps_has_to_be_the_number_of_classes():
    with pytest.raises(NetworkError, match=r"features have 5 channels.* takes 4"):
        check_gap_head(class_maps(classes=4), SIZE)
    with pytest.raises(NetworkError, match="between its pooling"):
        check_gap_head(class_maps(logits=Head(nn.Softmax(1))), SIZE)


class Transposed(nn.Module):
    def forward(self, features_BCHW: torch.Tensor) -> torch.Tensor:
        return features_BCHW.transpose(2, 3)


@pytest.mark.parametrize("transposed", [False, True])
def test_a_response_below_the_precision_of_float32_is_found(transposed):
    # As of an untrained network of many blocks: what the input changes is below the bias's last digit.
    network = tiny()
    convolution = network.features[0]
    with torch.no_grad():
        convolution.weight *= 1e-9
        convolution.bias.normal_(generator=torch.Generator().manual_seed(0))
    if transposed:
        network.features.append(Transposed())
    with torch.inference_mode():
        features_BCHW = network.features(torch.randn(2, 3, SIZE, SIZE))
    assert features_BCHW.std() > 0.1
    assert torch.equal(features_BCHW[0], features_BCHW[1])
    if transposed:
        with pytest.raises(NetworkError, match="is not oriented as its input"):
            check_gap_head(network, SIZE)
    else:
        assert check_gap_head(network, SIZE) == (8, 8)


def test_a_network_that_does_not_run_is_refused_in_one_line():
    square = nn.Sequential(nn.Flatten(), nn.Unflatten(1, (8, 8, 8)))
    network = tiny()
    network.features.append(square)
    assert check_gap_head(network, SIZE) == (8, 8)
    with pytest.raises(NetworkError, match="does not run at input size 36") as caught:
        check_gap_head(network, 36)
    assert str(caught.value).isprintable()


def test_a_deep_copy_is_independent():
    network = tiny()
    images_BCHW = torch.randn(2, 3, SIZE, SIZE)
    before = network(images_BCHW)[1]
    copied = copy.deepcopy(network).double()
    assert {tensor.dtype for tensor in network.state_dict().values()} == {torch.float32}
    assert copied.weights_KC.dtype == copied.bias_K.dtype == torch.float64
    torch.testing.assert_close(copied(images_BCHW.double())[1].float(), before)
    with torch.no_grad():
        copied.classifier.weight.zero_()
        copied.features[0].weight.zero_()
    assert not copied.weights_KC.any()
    assert torch.equal(copied.head_parameters()[0], copied.classifier.weight)
    assert torch.equal(network(images_BCHW)[1], before)


def test_the_backbone_is_everything_but_the_head():
    network = tiny()
    assert [tuple(parameter.shape) for parameter in network.head_parameters()] == [(5, 8), (5,)]
    # The model is a list of body and head, whose names are kept but for "backbone." before them.
    assert network.backbone_keys() == {"0.0.weight": "0.0.weight", "0.0.bias": "0.0.bias"}
    cut = nn.ModuleDict({"backbone": network.model[0], "head": network.model[1]})
    network = GapNetwork(
        cut,
        features=cut["backbone"],
        logits=cut["head"],
        classifier=network.classifier,
        classes=5,
        pooling="avg",
    )
    assert network.backbone_keys() == {"backbone.0.weight": "0.weight", "backbone.0.bias": "0.bias"}
