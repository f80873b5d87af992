"""The networks of Zhou et al.: maps, sizes, training, and the weights of their backbones."""

import re

import pytest
import torch
import torchvision
from torch import nn

from camworker.errors import NetworkError
from camworker.networks.gap_check import check_gap_head
from camworker.networks.package import build_for_training
from camworker.networks.registry import create_network, default_pooling
from camworker.networks.zhou2016 import BACKBONE_ORIGINS, ZHOU2016_NETWORKS

# The side of the map at 224, what is added to the backbone (conv5 of alexnet-plus-gap too) in parameters,
# and the width of the linear layer.
TABLE = {
    "vgg16-gap": (14, 512 // 2 * 1024 * 9 + 1024, 1024),
    "googlenet-gap": (14, 832 // 2 * 1024 * 9 + 1024, 1024),
    "googlenet-gmp": (14, 832 // 2 * 1024 * 9 + 1024, 1024),
    "alexnet-gap": (13, 256 * 1024 * 9 + 1024, 1024),
    "alexnet-plus-gap": (
        11,
        (256 * 384 * 9 + 384) + (384 // 2 * 512 * 9 + 512) + (512 // 2 * 512 * 9 + 512),
        512,
    ),
}


def built(name, classes=5):
    torch.manual_seed(0)
    return create_network(name, classes=classes, pooling=default_pooling(name))


def parameters(*modules):
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def original(name):
    """The layers of torchvision that a backbone consists of, under their names, without memory."""
    with torch.device("meta"):
        if name.startswith("googlenet"):
            model = torchvision.models.GoogLeNet(init_weights=False, aux_logits=False)
            del model.inception5a, model.inception5b, model.fc
            return model
        features = torchvision.models.get_model(BACKBONE_ORIGINS[name]).features
        end = {"vgg16-gap": 30, "alexnet-gap": 12, "alexnet-plus-gap": 10}[name]
        return nn.ModuleDict({"features": features[:end]})


def published(name):
    """Random weights in the form that torchvision publishes for the origin of a backbone."""
    random = torch.Generator().manual_seed(1)
    state = {
        key: torch.rand(tensor.shape, generator=random) / 20
        if tensor.is_floating_point()
        else torch.tensor(7)
        for key, tensor in original(name).state_dict().items()
    }
    return state | {"classifier.6.weight": torch.zeros(3, 4), "aux1.fc1.bias": torch.zeros(2)}


def test_the_names():
    assert set(ZHOU2016_NETWORKS) == {*TABLE, "nin"}


@pytest.mark.parametrize("name", ZHOU2016_NETWORKS)
def test_preprocessing_is_that_of_the_published_backbone(name):
    # In front of its layers torchvision's GoogLeNet turns ImageNet's mean and deviation into halves.
    googlenet = torchvision.models.GoogLeNet(transform_input=True, init_weights=False, aux_logits=False)
    pixels_BCHW = torch.rand(1, 3, 4, 4)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    seen_BCHW = (pixels_BCHW - mean) / std
    if name.startswith("googlenet"):
        seen_BCHW = googlenet._transform_input(seen_BCHW)
    ours = built(name).preprocessing
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (ours.mean, ours.std))
    torch.testing.assert_close((pixels_BCHW - mean) / std, seen_BCHW)
    assert ours.input_size == 224


@pytest.mark.parametrize("name", ZHOU2016_NETWORKS)
def test_the_map_at_224_and_the_head(name):
    side = TABLE[name][0] if name in TABLE else 6
    network = built(name)
    assert not network.training
    assert check_gap_head(network, 224) == (side, side)
    assert network.pooling == ("max" if name == "googlenet-gmp" else "avg")


@pytest.mark.parametrize("name", TABLE)
def test_the_backbone_is_torchvisions_and_the_rest_is_added(name):
    _, added, width = TABLE[name]
    network = built(name)
    model = network.model
    ours = {key: tuple(tensor.shape) for key, tensor in model.backbone.state_dict().items()}
    theirs = {key: tuple(tensor.shape) for key, tensor in original(name).state_dict().items()}
    assert list(ours.items()) == list(theirs.items())
    assert parameters(model.backbone) == parameters(original(name))
    assert parameters(model.added) == added
    assert network.weights_KC.shape == (5, width)
    assert sum(map(torch.Tensor.numel, network.head_parameters())) == added + 5 * width + 5
    assert len(network.backbone_keys()) == len(theirs)


def test_counts_of_parameters_that_are_known():
    # Of the convolutions of VGG-16 (configuration D) and of torchvision's AlexNet.
    assert parameters(built("vgg16-gap").model.backbone) == 14_714_688
    assert parameters(built("alexnet-gap").model.backbone) == 2_469_696


def test_network_in_network_equals_a_second_implementation():
    network = built("nin", classes=7)
    shapes = [tuple(layer.weight.shape) for layer in network.model.modules() if isinstance(layer, nn.Conv2d)]
    assert shapes == [
        *((96, 3, 11, 11), (96, 96, 1, 1), (96, 96, 1, 1)),
        *((256, 96, 5, 5), (256, 256, 1, 1), (256, 256, 1, 1)),
        *((384, 256, 3, 3), (384, 384, 1, 1), (384, 384, 1, 1)),
        *((1024, 384, 3, 3), (1024, 1024, 1, 1), (7, 1024, 1, 1)),
    ]
    pools = [layer for layer in network.model.modules() if isinstance(layer, nn.MaxPool2d)]
    sides = []
    for layer in pools:
        layer.register_forward_hook(lambda _, given, made: sides.append((given[0].shape[-1], made.shape[-1])))
    with torch.inference_mode():
        maps_BKHW, logits_BK = network(torch.randn(1, 3, 224, 224))
    assert sides == [(54, 27), (27, 13), (13, 6)]
    assert maps_BKHW.min() >= 0  # after the last ReLU
    torch.testing.assert_close(maps_BKHW.mean((2, 3)), logits_BK)


@pytest.mark.parametrize("name", ZHOU2016_NETWORKS)
def test_a_few_steps_lower_the_loss(name):
    network = built(name, classes=3).train()
    for layer in network.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0  # without dice a few steps are enough
    images_BCHW = torch.randn(3, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-5)
    losses = []
    for _ in range(5):
        loss = nn.functional.cross_entropy(network(images_BCHW)[1], torch.arange(3))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())
    assert losses[-1] < 0.95 * losses[0], losses


def test_the_max_pooling_variant_pools_maxima():
    averages, maxima = built("googlenet-gap"), built("googlenet-gmp")
    images_BCHW = torch.randn(2, 3, 96, 96)
    with torch.inference_mode():
        features_BCHW, logits_BK = maxima(images_BCHW)
        expected_BK = features_BCHW.amax((2, 3)) @ maxima.weights_KC.T + maxima.bias_K
        torch.testing.assert_close(logits_BK, expected_BK)
        assert (averages(images_BCHW)[1] - logits_BK).abs().max() > logits_BK.std() / 100
    maxima.pooling = "avg"
    with pytest.raises(NetworkError, match="differ from its logits"):
        check_gap_head(maxima, 96)


@pytest.mark.parametrize("name", TABLE)
def test_published_weights_are_loaded_into_the_backbone_only(name, tmp_path):
    state = published(name)
    torch.save(state, tmp_path / "published.pth")
    heads = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        network = build_for_training(name, 3, backbone_weights=str(tmp_path / "published.pth"))
        backbone = network.model.backbone.state_dict()
        assert all(torch.equal(tensor, state[key]) for key, tensor in backbone.items())
        heads.append(torch.cat([parameter.flatten() for parameter in network.head_parameters()]))
    assert (heads[0] != heads[1]).float().mean() > 0.99  # all but the zeros of the biases
    assert network.classes == 3


def test_a_backbone_can_be_loaded_from_a_trained_network(tmp_path):
    before = built("alexnet-gap", classes=4)
    torch.save(before.model.state_dict(), tmp_path / "ours.pt")
    network = build_for_training("alexnet-gap", 9, backbone_weights=str(tmp_path / "ours.pt"))
    for key, tensor in before.model.backbone.state_dict().items():
        assert torch.equal(network.model.backbone.state_dict()[key], tensor)
    assert not torch.equal(network.model.added[0].weight, before.model.added[0].weight)


def refusal(name, state, path):
    torch.save(state, path)
    with pytest.raises(NetworkError) as caught:
        build_for_training(name, 3, backbone_weights=str(path))
    assert str(caught.value).isprintable()
    return str(caught.value)


def test_weights_that_fit_no_backbone_are_refused(tmp_path):
    path, state = tmp_path / "published.pth", published("alexnet-gap")
    assert "no backbone" in refusal("nin", state, path)
    assert re.search(
        r"features\.0\.weight .*\(64, 3, 11, 11\).*\(64, 3, 3, 3\)", refusal("vgg16-gap", state, path)
    )
    assert re.search(r"conv1\.conv\.weight .*nothing", refusal("googlenet-gap", state, path))
    del state["features.10.bias"]
    assert re.search(
        r"1 tensors differ, for example features\.10\.bias is nothing and .*\(256,\)",
        refusal("alexnet-gap", state, path),
    )
    # conv5 of the wider AlexNet is no part of its backbone.
    assert build_for_training("alexnet-plus-gap", 3, backbone_weights=str(path)).classes == 3


def test_network_in_network_has_no_published_weights():
    with pytest.raises(NetworkError, match="nin has no published weights: a file is needed"):
        build_for_training("nin", 3, backbone_weights="DEFAULT")
