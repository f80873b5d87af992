"""Networks by name: many networks of timm and torchvision with the result of the check, and dilation."""

import pytest
import torch
from torchvision.models.resnet import Bottleneck, ResNet

from camworker.errors import NetworkError
from camworker.networks.gap_check import check_gap_head
from camworker.networks.graph_surgery import cut, dilate, trace
from camworker.networks.registry import DEFAULT, create_network, default_pooling

HIDDEN = "linear layer takes"  # another width is pooled than enters the linear layer
BETWEEN = "between its pooling and its linear layer"
NOT_LINEAR = "no single linear layer"
TOKENS = "3 dimensions"
NO_POOLING = "no global average pooling"

# Name -> the map's side at 224, or the reason for which it is refused.
ANSWERS = {
    "torchvision:resnet18": 7,
    "torchvision:densenet121": 7,
    "torchvision:squeezenet1_0": 13,
    "torchvision:squeezenet1_1": 13,
    "torchvision:mobilenet_v2": 7,
    "torchvision:efficientnet_b0": 7,
    "torchvision:googlenet": 7,
    "torchvision:regnet_y_400mf": 7,
    "torchvision:mnasnet0_5": 7,
    "torchvision:shufflenet_v2_x0_5": 7,
    "torchvision:inception_v3": 5,
    "torchvision:swin_t": 7,
    "timm:resnet10t": 7,
    "timm:repvgg_a0": 7,
    "timm:nf_regnet_b0": 7,
    "timm:regnety_002": 7,
    "timm:hrnet_w18_small": 7,
    "timm:resnetv2_18": 7,
    "timm:mobileone_s0": 7,
    "timm:fastvit_t8": 7,
    "timm:mobilevit_xxs": 7,
    "timm:swin_tiny_patch4_window7_224": 7,
    "timm:pvt_v2_b0": 7,
    "timm:mobilenetv2_050": 7,
    "timm:semnasnet_075": 7,
    "timm:mnasnet_050": 7,
    "timm:rexnet_100": 7,
    "timm:seresnet18": 7,
    "timm:starnet_s1": 7,
    "timm:tinynet_e": 7,
    "timm:gernet_s": 7,
    "timm:spnasnet_100": 7,
    "timm:coatnet_nano_rw_224": 7,
    "timm:convnext_tiny_hnf": 7,
    "timm:ese_vovnet19b_dw": 7,
    "torchvision:convnext_tiny": BETWEEN,
    "torchvision:mobilenet_v3_small": HIDDEN,
    "torchvision:vgg11": NO_POOLING,
    "torchvision:alexnet": NO_POOLING,
    "torchvision:vit_b_32": NO_POOLING,
    "torchvision:maxvit_t": BETWEEN,
    "timm:mobilenetv3_small_050": HIDDEN,
    "timm:mobilenetv4_conv_small": HIDDEN,
    "timm:lcnet_050": HIDDEN,
    "timm:ghostnet_050": HIDDEN,
    "timm:hgnet_tiny": HIDDEN,
    "timm:fbnetv3_b": HIDDEN,
    "timm:convnext_atto": BETWEEN,
    "timm:edgenext_xx_small": BETWEEN,
    "timm:poolformer_s12": BETWEEN,
    "timm:davit_tiny": BETWEEN,
    "timm:vit_tiny_patch16_224": TOKENS,
    "timm:xcit_nano_12_p16_224": TOKENS,
    "timm:levit_128s": NOT_LINEAR,
    "timm:repvit_m0_9": NOT_LINEAR,
}


def built(name, **options):
    torch.manual_seed(0)
    return create_network(name, classes=7, **options)


@pytest.mark.parametrize("name", ANSWERS)
def test_the_result_of_the_check(name):
    answer = ANSWERS[name]
    if isinstance(answer, str):
        with pytest.raises(NetworkError, match=f"^refused: .*{answer}") as caught:
            check_gap_head(built(name), 224)
        assert str(caught.value).isprintable()
    else:
        network = built(name)
        assert not network.training
        assert check_gap_head(network, 224) == (answer, answer)
        assert network.weights_KC.shape[0] == network.bias_K.shape[0] == 7


def test_a_created_network_has_random_weights_and_its_classes():
    network = create_network(DEFAULT, classes=7)
    assert not network.training
    features_BCHW, logits_BK = network(torch.randn(2, 3, 64, 64))
    assert features_BCHW.shape == (2, 1280, 2, 2)
    assert logits_BK.shape == (2, 7)
    assert network.weights_KC.shape == (7, 1280)
    assert network.bias_K.shape == (7,)


@pytest.mark.parametrize(
    ("name", "size", "mean"),
    [
        (DEFAULT, 224, 0.5),
        ("timm:resnet10t", 176, 0.485),
        ("torchvision:mobilenet_v2", 224, 0.485),
        ("torchvision:efficientnet_b1", 240, 0.485),
        ("torchvision:inception_v3", 299, 0.5),  # it renormalises before its first layer
        ("torchvision:googlenet", 224, 0.5),
    ],
)
def test_preprocessing_is_that_of_the_library(name, size, mean):
    preprocessing = built(name).preprocessing
    assert preprocessing.input_size == size
    assert preprocessing.mean[0] == mean


@pytest.mark.parametrize(
    "name", ["timm:resnet10t", "torchvision:shufflenet_v2_x0_5", "torchvision:squeezenet1_1"]
)
def test_max_pooling_in_place_of_averages(name):
    network = built(name, pooling="max")
    assert check_gap_head(network, 128) == check_gap_head(built(name), 128)
    with torch.inference_mode():
        features_BCHW, logits_BK = network(torch.randn(2, 3, 128, 128))
        expected_BK = features_BCHW.amax((2, 3)) @ network.weights_KC.T + network.bias_K
    torch.testing.assert_close(logits_BK, expected_BK)


def test_default_pooling():
    assert default_pooling("googlenet-gmp") == "max"
    assert default_pooling("googlenet-gap") == default_pooling(DEFAULT) == "avg"


@pytest.mark.parametrize("name", ["resnet5000", "timm:", "vgg16", "keras:vgg16", "timm", ""])
def test_unknown_names(name):
    with pytest.raises(NetworkError, match=rf"'{name}'.*{DEFAULT}"):
        create_network(name, classes=3)


def test_names_that_no_library_knows():
    with pytest.raises(NetworkError, match=r"timm [\d.]+ has no network 'resnet5000'"):
        create_network("timm:resnet5000", classes=3)
    # Of torchvision only the networks that classify images.
    for name in ("resnet5000", "fcn_resnet50", "raft_small"):
        with pytest.raises(NetworkError, match=f"no classification network '{name}'"):
            create_network(f"torchvision:{name}", classes=3)


DILATED = [
    DEFAULT,
    "timm:resnet18",
    "timm:repvgg_a0",
    "timm:efficientnet_lite0",
    "torchvision:resnet18",
    "torchvision:mobilenet_v2",
    "torchvision:efficientnet_b0",
    "torchvision:regnet_y_400mf",
    "torchvision:mnasnet0_5",
    "torchvision:shufflenet_v2_x0_5",
]


@pytest.mark.parametrize("name", DILATED)
def test_dilated_maps_are_finer_and_pass(name):
    assert check_gap_head(built(name, output_stride=16), 224) == (14, 14)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "mnasnet0_5", "shufflenet_v2_x0_5"])
@pytest.mark.parametrize("stride", [16, 8])
def test_dilation_keeps_the_values_at_the_old_positions(name, stride):
    # None of these looks at the whole map on the way (squeeze and excitation). In float64: they are deep.
    plain, dilated = built(f"torchvision:{name}"), built(f"torchvision:{name}", output_stride=stride)
    images_BCHW = torch.randn(1, 3, 160, 160, dtype=torch.float64)
    with torch.inference_mode():
        before_BCHW = plain.double().features(images_BCHW)
        after_BCHW = dilated.double().features(images_BCHW)
    every = 32 // stride
    assert before_BCHW.shape[2:] == (5, 5)
    assert after_BCHW.shape[2:] == (5 * every, 5 * every)
    scale = before_BCHW.std()
    torch.testing.assert_close(after_BCHW[..., ::every, ::every] / scale, before_BCHW / scale)
    # What lies between them is no copy of a neighbour.
    assert (after_BCHW[..., 1::every, ::every] - before_BCHW).abs().mean() > scale / 1000


@pytest.mark.parametrize(("stride", "replaced"), [(16, (False, False, True)), (8, (False, True, True))])
def test_dilation_equals_that_of_torchvision(stride, replaced):
    torch.manual_seed(0)
    ours = ResNet(Bottleneck, [1, 1, 2, 2]).eval()
    theirs = ResNet(Bottleneck, [1, 1, 2, 2], replace_stride_with_dilation=replaced).eval()
    theirs.load_state_dict(ours.state_dict())
    graph = trace(ours)
    dilate(ours, graph, stride)
    images_BCHW = torch.randn(1, 3, 128, 128)
    with torch.inference_mode():
        got_BCHW = cut(ours, graph, "avg")[0](images_BCHW)
        expected_BCHW = cut(theirs, trace(theirs), "avg")[0](images_BCHW)
    assert got_BCHW.shape[2:] == (128 // stride, 128 // stride)
    torch.testing.assert_close(got_BCHW, expected_BCHW)
    assert got_BCHW.std() > 0.1


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("torchvision:densenet121", r"transition3\.pool is AvgPool2d"),
        ("torchvision:squeezenet1_1", "reduces 256 pixels to 127 cells"),
        ("torchvision:googlenet", "maxpool4 is MaxPool2d of 2x2"),
        ("torchvision:maxvit_t", "does not run at 256 pixels"),
        ("timm:densenet121", "does not build densenet121 with output stride 16"),
        ("timm:starnet_s1", "does not build starnet_s1 with output stride 16"),
        *(
            (name, f"{name} cannot be dilated")
            for name in ("vgg16-gap", "googlenet-gap", "alexnet-gap", "nin")
        ),
    ],
)
def test_networks_that_cannot_be_dilated(name, reason, capfd):
    with pytest.raises(NetworkError, match=reason) as caught:
        create_network(name, classes=3, output_stride=16)
    assert str(caught.value).isprintable()
    assert capfd.readouterr() == ("", "")
