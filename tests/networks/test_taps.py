"""Taps: the nodes of many networks with channels and sizes, and what the load-time check finds."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import fx, nn
from torchvision.models.swin_transformer import SwinTransformer

from camworker.errors import NetworkError
from camworker.networks.gap import GapNetwork, Preprocessing
from camworker.networks.gap_check import check_gap_head
from camworker.networks.graph_surgery import cut, trace
from camworker.networks.registry import DEFAULT, NETWORK_NAMES, create_network
from camworker.networks.taps import Tap, Taps, at_stride, find_taps, with_taps
from camworker.networks.traced_features import TracedFeatures

# Name -> node, channels and side of the map at stride 8, and the same at stride 16; the sides at the input
# size of the network's published weights.
EXPECTED = {
    DEFAULT: ("model.blocks.2.1.add", 40, 28, "model.blocks.4.2.add", 112, 14),
    "alexnet-gap": ("backbone.features.4", 192, 27, "backbone.features.11", 256, 13),
    "nin": ("features.12", 256, 27, "features.19", 384, 13),
    "torchvision:resnet18": ("layer2.1.relu_1", 128, 28, "layer3.1.relu_1", 256, 14),
    "torchvision:mobilenet_v2": ("features.6.add", 32, 28, "features.13.add", 96, 14),
    "torchvision:squeezenet1_1": ("features.7.cat", 256, 27, "features.12.squeeze_activation", 64, 13),
    "torchvision:shufflenet_v2_x0_5": ("stage2.3.view_1", 48, 28, "stage3.7.view_1", 96, 14),
    "timm:resnet10t": ("model.layer2.0.act2", 128, 22, "model.layer3.0.act2", 256, 11),
    "timm:tinynet_e": ("model.blocks.2.0.bn3", 24, 14, "model.blocks.4.1.add", 56, 7),
}
MORE = {
    "torchvision:swin_t": ("features.3.1.add_1", 192, 28, "features.5.5.add_1", 384, 14),
    "vgg16-gap": ("backbone.features.22", 512, 28, "backbone.features.29", 512, 14),
    "googlenet-gap": ("backbone.inception3b.cat", 480, 28, "backbone.inception4e.cat", 832, 14),
    "googlenet-gmp": ("backbone.inception3b.cat", 480, 28, "backbone.inception4e.cat", 832, 14),
    "alexnet-plus-gap": ("backbone.features.4", 192, 27, "added.4", 512, 11),
    "torchvision:densenet121": ("features.transition2.conv", 256, 28, "features.transition3.conv", 512, 14),
    "torchvision:squeezenet1_0": ("features.10.cat", 512, 27, "features.12.squeeze_activation", 64, 13),
    "torchvision:efficientnet_b0": ("features.3.1.add", 40, 28, "features.5.2.add", 112, 14),
    "torchvision:googlenet": ("inception3b.cat", 480, 28, "inception4e.cat", 832, 14),
    "torchvision:regnet_y_400mf": (
        *("trunk_output.block2.block2-2.activation", 104, 28),
        *("trunk_output.block3.block3-5.activation", 208, 14),
    ),
    "torchvision:mnasnet0_5": ("layers.9.2.add", 24, 28, "layers.11.1.add", 48, 14),
    "torchvision:inception_v3": ("Mixed_5d.cat", 288, 35, "Mixed_6e.cat", 768, 17),
    "torchvision:resnext50_32x4d": ("layer2.3.relu_2", 512, 28, "layer3.5.relu_2", 1024, 14),
    "timm:repvgg_a0": ("model.stages.1.3.act", 96, 28, "model.stages.2.13.act", 192, 14),
    "timm:nf_regnet_b0": ("model.stages.1.2", 80, 24, "model.stages.2.5", 160, 12),
    "timm:regnety_002": ("model.s2.b1.act3", 56, 28, "model.s3.b4.act3", 152, 14),
    "timm:resnetv2_18": ("model.stages.2.blocks.0.norm1", 128, 28, "model.stages.3.blocks.0.norm1", 256, 14),
    "timm:mobileone_s0": ("model.stages.1.15.act", 128, 28, "model.stages.2.19.act", 256, 14),
    "timm:fastvit_t8": ("model.stages.1.blocks.1.add", 96, 32, "model.stages.2.blocks.3.add", 192, 16),
    "timm:mobilevit_xxs": ("model.stages.2.1", 48, 32, "model.stages.3.1", 64, 16),
    "timm:swin_tiny_patch4_window7_224": (
        *("model.layers.1.blocks.1.reshape_1", 192, 28),
        *("model.layers.2.blocks.5.reshape_1", 384, 14),
    ),
    "timm:pvt_v2_b0": ("model.stages.1.contiguous", 64, 28, "model.stages.2.contiguous", 160, 14),
    "timm:mobilenetv2_050": ("model.blocks.2.2.add", 16, 28, "model.blocks.4.2.add", 48, 14),
    "timm:semnasnet_075": ("model.blocks.2.2.add", 32, 28, "model.blocks.4.1.add", 88, 14),
    "timm:mnasnet_050": ("model.blocks.2.2.add", 24, 28, "model.blocks.4.1.add", 48, 14),
    "timm:rexnet_100": ("model.features.4.cat", 61, 28, "model.features.10.cat", 128, 14),
    "timm:seresnet18": ("model.layer2.1.act2", 128, 28, "model.layer3.1.act2", 256, 14),
    "timm:starnet_s1": ("model.stages.1.2.add", 48, 28, "model.stages.2.8.add", 96, 14),
    "timm:gernet_s": ("model.stages.1.2.act", 48, 28, "model.stages.2.6.act", 384, 14),
    "timm:spnasnet_100": ("model.blocks.2.3.add", 40, 28, "model.blocks.4.3.add", 96, 14),
    "timm:coatnet_nano_rw_224": (
        *("model.stages.1.blocks.3.add", 128, 28),
        *("model.stages.2.blocks.5.add_1", 256, 14),
    ),
    "timm:convnext_tiny_hnf": (
        *("model.stages.2.downsample.0", 192, 28),
        *("model.stages.3.downsample.0", 384, 14),
    ),
    "timm:ese_vovnet19b_dw": (
        *("model.stages.1.blocks.0.attn.mul", 512, 28),
        *("model.stages.2.blocks.0.attn.mul", 768, 14),
    ),
    "timm:maxvit_rmlp_pico_rw_256": (
        *("model.stages.1.blocks.1.permute_1", 64, 32),
        *("model.stages.2.blocks.4.permute_1", 128, 16),
    ),
    "timm:legacy_xception": ("model.block2.add", 256, 37, "model.block11.add", 728, 19),
    "timm:xception41": ("model.blocks.1.add", 256, 38, "model.blocks.10.add", 728, 19),
    "timm:resnext26ts": ("model.stages.1.1.act", 512, 32, "model.stages.2.1.act", 1024, 16),
    "timm:resnetv2_50x1_bit": (
        *("model.stages.2.blocks.0.norm1", 512, 28),
        *("model.stages.3.blocks.0.norm1", 1024, 14),
    ),
    "timm:densenet121": (
        *("model.features.transition2.conv", 256, 28),
        *("model.features.transition3.conv", 512, 14),
    ),
}


def built(name: str, **options: object) -> GapNetwork:
    torch.manual_seed(0)
    return create_network(name, classes=7, **options)


def assert_taps(network: GapNetwork, expected: tuple) -> None:
    """The taps of a network are the expected ones, pass the check, and have the stated channels and size."""
    node, channels, side, deep_node, deep_channels, deep_side = expected
    size = network.preprocessing.input_size
    check_gap_head(network, size)
    assert network.no_taps_reason is None
    assert [(tap.node, tap.channels) for tap in network.taps.all] == [
        (node, channels),
        (deep_node, deep_channels),
    ]
    with torch.inference_mode():
        features_BCHW, fine_BCHW, deep_BCHW = network.tapped_features(torch.zeros(1, 3, size, size))
    assert features_BCHW.shape[1] == network.weights_KC.shape[1]
    assert fine_BCHW.shape == (1, min(channels, 64), side, side)
    assert deep_BCHW.shape == (1, min(deep_channels, 128), deep_side, deep_side)


@pytest.mark.parametrize("name", EXPECTED)
def test_the_taps_of_common_networks(name):
    assert_taps(built(name), EXPECTED[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", MORE)
def test_the_taps_of_more_networks(name):
    assert_taps(built(name), MORE[name])


def test_every_named_network_is_in_a_list():
    assert {*EXPECTED, *MORE} >= set(NETWORK_NAMES)


def test_a_network_without_a_common_map_at_stride_8_is_accepted_without_taps():
    network = built("timm:hrnet_w18_small")  # parallel branches at every stride, from the start to the end
    assert check_gap_head(network, 224) == (7, 7)
    assert network.taps is None
    assert network.no_taps_reason == "no feature map at stride 8 has all of the computation pass through it"
    with pytest.raises(NetworkError, match="no feature maps to refine with: no feature map at stride 8"):
        network.tapped_features(torch.zeros(1, 3, 224, 224))


@pytest.mark.parametrize("name", [DEFAULT, "torchvision:resnet18", "timm:resnet10t"])
def test_a_dilated_network_has_the_taps_of_the_network_as_it_is_built(name):
    plain, dilated = built(name), built(name, output_stride=16)
    assert dilated.taps == plain.taps
    assert dilated.taps.deep.stride == 16
    check_gap_head(dilated, 128)
    assert dilated.taps == plain.taps
    # Dilation starts after these stages, so that their maps are the same numbers.
    dilated.model.load_state_dict(plain.model.state_dict())
    images_BCHW = torch.randn(1, 3, 128, 128)
    with torch.inference_mode():
        _, *maps = tapped(plain, images_BCHW)
        _, *dilated_maps = tapped(dilated, images_BCHW)
    assert all(torch.equal(*pair) for pair in zip(maps, dilated_maps, strict=True))


def test_the_stride_of_a_tap_is_that_of_the_dilated_network():
    dilated = built("torchvision:resnet18", output_stride=8)
    assert dilated.taps.fine == Tap("layer2.1.relu_1", 128, 8)
    assert dilated.taps.deep == Tap("layer3.1.relu_1", 256, 8)
    assert check_gap_head(dilated, 96) == (12, 12)
    assert dilated.taps is not None


def tapped(network: GapNetwork, images_BCHW: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return tuple(values for values in network.tapped_features(images_BCHW) if values is not None)


@pytest.mark.parametrize("size", [225, 227, 260, 299])
def test_odd_input_sizes(default_package, size):
    network = copy.deepcopy(default_package.network)
    check_gap_head(network, size)
    assert network.no_taps_reason is None
    with torch.inference_mode():
        _, fine_BCHW, deep_BCHW = network.tapped_features(torch.zeros(1, 3, size, size))
    # As TensorFlow pads: the side is divided and rounded up.
    assert fine_BCHW.shape == (1, 40, -(-size // 8), -(-size // 8))
    assert deep_BCHW.shape == (1, 112, -(-size // 16), -(-size // 16))


def test_the_taps_of_the_default_network_are_the_outputs_of_its_stages(default_package):
    network = copy.deepcopy(default_package.network)
    outputs = {}
    for stage in (2, 4):
        network.model.blocks[stage].register_forward_hook(
            lambda _, given, output, stage=stage: outputs.update({stage: output})
        )
    images_BCHW = torch.randn(2, 3, 224, 224)
    with torch.inference_mode():
        features_BCHW = network.features(images_BCHW)
        tapped_BCHW, fine_BCHW, deep_BCHW = default_package.network.tapped_features(images_BCHW)
    assert torch.equal(tapped_BCHW, features_BCHW)
    assert torch.equal(fine_BCHW, outputs[2])
    assert torch.equal(deep_BCHW, outputs[4])


def small_swin() -> GapNetwork:
    """A network whose maps are [B, h, w, C], with tensors outside of its layers, which a graph refers to."""
    torch.manual_seed(0)
    model = SwinTransformer([4, 4], 12, [1, 1, 1, 1], [1, 1, 1, 1], [7, 7], num_classes=7).eval()
    features, logits, classifier = cut(model, trace(model), "avg")
    return GapNetwork(
        model, features=features, logits=logits, classifier=classifier, classes=7, pooling="avg"
    ).eval()


def test_maps_with_channels_last_are_permuted():
    network = small_swin()
    # 28 x 28 cells of 24 channels: both sides of the wrong layout would be near stride 8 too.
    assert network.taps.fine == Tap("features.3.0.add_1", 24, 8, channels_last=True)
    assert_taps(network, ("features.3.0.add_1", 24, 28, "features.5.0.add_1", 48, 14))


def test_copies_and_conversions_share_all_parameters():
    network = small_swin()
    images_BCHW = torch.randn(1, 3, 224, 224)
    with torch.inference_mode():
        before = tapped(network, images_BCHW)
    for changed in (
        network,
        copy.deepcopy(network),
        copy.deepcopy(network).double(),
        network.to(torch.float64),
    ):
        with torch.inference_mode():
            after = tapped(changed, images_BCHW.to(next(changed.parameters()).dtype))
        for old, new in zip(before, after, strict=True):
            torch.testing.assert_close(new.float(), old, rtol=1e-3, atol=1e-3)
        assert addresses(changed._tapped[0]) <= addresses(changed.model)
        assert set(changed.state_dict()) == set(copy.deepcopy(changed).state_dict())


def addresses(module: nn.Module) -> set[int]:
    return {tensor.data_ptr() for tensor in (*module.parameters(), *module.buffers()) if tensor.numel()}


def test_weights_that_are_loaded_later_are_those_of_the_taps():
    network, other = built("timm:tinynet_e"), create_network("timm:tinynet_e", classes=7)
    images_BCHW = torch.randn(1, 3, 106, 106)
    with torch.inference_mode():
        before, expected = tapped(network, images_BCHW), tapped(other, images_BCHW)
        network.model.load_state_dict(other.model.state_dict())
        after = tapped(network, images_BCHW)
    assert not torch.equal(before[1], after[1])
    assert all(torch.equal(*pair) for pair in zip(after, expected, strict=True))


class Network(nn.Module):
    """Three stages, at strides 8, 16 and 32; `forward` may be replaced."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 8, stride=8)
        self.expand = nn.Conv2d(8, 24, 1)
        self.pad = nn.ZeroPad2d((0, 1, 0, 1))
        self.down = nn.Conv2d(24, 16, 2, stride=2)
        self.body = nn.Conv2d(16, 16, 3, padding=1)
        self.last = nn.Conv2d(16, 12, 2, stride=2)
        self.head = nn.Linear(12, 5)

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        fine = self.pad(torch.relu(self.expand(self.stem(images_BCHW))))
        deep = self.down(fine)
        deep = deep + self.body(deep)
        return torch.relu(self.last(deep))

    def logits(self, features_BCHW: torch.Tensor) -> torch.Tensor:
        return self.head(features_BCHW.mean((2, 3)))


def gap(network: Network, size: int = 128) -> GapNetwork:
    return GapNetwork(
        network,
        features=network.forward,
        logits=network.logits,
        classifier=network.head,
        classes=5,
        pooling="avg",
        preprocessing=Preprocessing(size, (0.5,) * 3, (0.5,) * 3),
    ).eval()


def test_the_walk_goes_back_over_pointwise_layers_and_padding_to_the_narrowest():
    torch.manual_seed(0)
    network = gap(Network())
    assert network.taps == Taps(Tap("stem", 8, 8), Tap("add", 16, 16))
    assert check_gap_head(network, 128) == (4, 4)
    assert network.taps is not None


class NarrowedByPadding(Network):
    """The same channels before and after the padding: what is padded is not aligned with the image."""

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        fine = self.pad(torch.relu(self.stem(images_BCHW)))
        return torch.relu(self.last(self.down(self.expand(fine))))


def test_padding_is_not_tapped():
    assert gap(NarrowedByPadding()).taps.fine == Tap("relu", 8, 8)


class WithoutDeep(Network):
    """The map before the pooling is at stride 16, and nothing but pointwise layers lies before it there."""

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.down(torch.relu(self.expand(self.stem(images_BCHW)))))


def test_the_map_before_the_pooling_is_not_tapped():
    assert gap(WithoutDeep()).taps == Taps(Tap("stem", 8, 8), None)
    network = gap(WithoutDeep())
    with torch.inference_mode():
        features_BCHW, fine_BCHW, deep_BCHW = network.tapped_features(torch.zeros(2, 3, 128, 128))
    assert (features_BCHW.shape, fine_BCHW.shape, deep_BCHW) == ((2, 16, 8, 8), (2, 8, 16, 16), None)


class AroundTheStage(Network):
    """A connection from the image to the end, around everything at stride 8."""

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        around = nn.functional.avg_pool2d(images_BCHW, 16).mean(1, keepdim=True)
        return torch.relu(self.last(self.down(self.expand(self.stem(images_BCHW))) + around))


class Branching(Network):
    """Its code depends on values, which cannot be traced."""

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        return super().forward(images_BCHW if images_BCHW.sum() > 0 else -images_BCHW)


@pytest.mark.parametrize(
    ("network", "size", "reason"),
    [
        (AroundTheStage, 128, "no feature map at stride 8"),
        (Branching, 128, "its features cannot be traced: .*control flow"),
        (Network, 4, "it does not run at input size 4"),
    ],
)
def test_why_there_are_no_taps(network, size, reason):
    unusual = gap(network(), size)
    assert unusual.taps is None
    with pytest.raises(NetworkError, match=reason):
        raise NetworkError(unusual.no_taps_reason)


def test_a_dilated_network_whose_plain_twin_cannot_be_built_has_no_taps():
    network = gap(Network())
    network._undilated = lambda: [][0]
    assert network.taps is None
    assert network.no_taps_reason == "without dilation it cannot be built: list index out of range"


def test_features_of_no_module_have_no_taps():
    network = gap(Network())
    network.features = lambda images_BCHW: network.model(images_BCHW)
    assert network.taps is None
    assert network.no_taps_reason == "its features are not computed by a method of a module"
    assert check_gap_head(network, 128) == (4, 4)


class Mirrored(Network):
    """Its map at stride 8 is mirrored, and the next stage mirrors it again."""

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        mirrored = self.stem(images_BCHW.flip(3))
        deep = self.down(torch.relu(self.expand(mirrored))).flip(3)
        return torch.relu(self.last(deep + self.body(deep)))


def test_a_map_that_does_not_keep_corners_is_dropped():
    torch.manual_seed(0)
    network = gap(Mirrored())
    assert network.taps is not None
    assert check_gap_head(network, 128) == (4, 4)
    assert network.taps is None
    assert network.no_taps_reason.endswith("is not oriented as the input is")


def test_taps_that_are_not_as_described_are_dropped():
    for wrong, reason in (
        (Taps(Tap("stem", 9, 8), None), "stem has 8 channels, not 9"),
        (Taps(Tap("stem", 8, 4), None), "stem has 16x16 cells at input size 128, not one per 4 pixels"),
        (Taps(Tap("stem", 8, 8), Tap("add", 16, 8)), "add has 8x8 cells at input size 128"),
        (Taps(Tap("branch", 8, 8), None), "with taps it does not run at input size 128: "),
    ):
        torch.manual_seed(0)
        network = gap(Network())
        network._taps = wrong
        assert check_gap_head(network, 128) == (4, 4)
        assert network.taps is None
        assert network.no_taps_reason.startswith(reason)


def test_an_existing_graph_is_not_traced_again_and_not_changed():
    network = gap(Network())
    module = fx.symbolic_trace(network.model)
    traced = TracedFeatures.of(module)
    assert traced.graph is module.graph
    nodes = len(module.graph.nodes)
    with_taps(traced, find_taps(traced, 128))
    assert len(module.graph.nodes) == nodes


@given(st.integers(32, 1024), st.sampled_from([8, 16]))
def test_a_map_that_is_rounded_up_or_down_is_at_its_stride(size, stride):
    assert at_stride((size // stride, -(-size // stride)), size, stride) or size < 3 * stride
    assert not at_stride((size // stride, size // (2 * stride)), size, stride) or size < 3 * stride
    assert not at_stride((0, 1), size, stride)
