"""Class activation maps: values computed by hand, means that are the logits, and torchcam for comparison."""

import cv2
import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torchcam.methods import CAM

from camworker.cam import class_activation_maps, upsample


def test_maps_by_hand():
    features_BCHW = torch.tensor([[[[1.0, 2, 0]], [[0, 1, -1]]], [[[1.0, 1, 1]], [[2, 0, 0]]]])
    assert features_BCHW.shape == (2, 2, 1, 3)
    weights_BKC = torch.tensor([[[1.0, 0], [2, -3], [0, 1]], [[1.0, 1], [0, -1], [0, 0]]])
    maps_BKHW = class_activation_maps(features_BCHW, weights_BKC)
    assert maps_BKHW.tolist() == [
        [[[1, 2, 0]], [[2, 1, 3]], [[0, 1, -1]]],  # signed: what speaks against a class stays
        [[[3, 1, 1]], [[-2, 0, 0]], [[0, 0, 0]]],  # each image by its own weights
    ]


def test_rows_stay_rows():
    features_BCHW = torch.arange(12.0).view(1, 2, 2, 3)
    maps_BKHW = class_activation_maps(features_BCHW, torch.tensor([[[1.0, 10.0]]]))
    assert maps_BKHW.tolist() == [[[[60, 71, 82], [93, 104, 115]]]]


def test_the_mean_of_a_map_plus_bias_is_the_logit():
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.SiLU(), nn.Conv2d(8, 12, 3), nn.BatchNorm2d(12))
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5))
    network = nn.Sequential(body, head).eval()
    images_BCHW = torch.randn(4, 3, 24, 32)
    with torch.inference_mode():
        weights_BKC = head[-1].weight.expand(4, -1, -1)
        maps_BKHW = class_activation_maps(body(images_BCHW), weights_BKC)
        logits_BK = network(images_BCHW)
    assert maps_BKHW.shape == (4, 5, 9, 13)
    torch.testing.assert_close(maps_BKHW.mean((2, 3)) + head[-1].bias, logits_BK)
    # The logits differ by more than the tolerance, else any map would do.
    assert logits_BK.std() > 0.05


def test_upsample_by_hand():
    # 2 -> 4 with half-pixel centres: 3/4 and 1/4 of the way, and the borders kept.
    row = upsample(torch.tensor([[0.0, 4.0]]), (1, 4))
    assert row.tolist() == [[0, 1, 3, 4]]
    square = upsample(torch.tensor([[1.0, 0], [0, 0]]), (4, 4))
    torch.testing.assert_close(square, torch.outer(*[torch.tensor([1, 0.75, 0.25, 0])] * 2))


# Where the ratio is no power of two, torch rounds its float32 coordinates a little more coarsely.
@pytest.mark.parametrize(
    ("shape", "size", "tolerance"),
    [
        ((7, 7), (224, 224), 1e-6),
        ((14, 7), (224, 224), 1e-6),
        ((8, 8), (256, 256), 1e-6),
        ((7, 10), (224, 224), 5e-6),
        ((7, 10), (100, 37), 5e-6),
        ((14, 9), (7, 7), 5e-6),
    ],
)
def test_upsample_is_opencvs_linear(shape, size, tolerance):
    maps_BKHW = torch.randn(2, 3, *shape, generator=torch.Generator().manual_seed(1))
    got = upsample(maps_BKHW, size)
    assert got.shape == (2, 3, *size)
    for ours, cam in zip(got.flatten(0, 1).numpy(), maps_BKHW.flatten(0, 1).numpy(), strict=True):
        np.testing.assert_allclose(ours, cv2.resize(cam, size[::-1]), atol=tolerance, rtol=0)


def photo(size: int) -> torch.Tensor:
    from skimage import data

    pixels_HWC = cv2.resize(data.chelsea(), (size, size), interpolation=cv2.INTER_AREA)
    return (torch.from_numpy(pixels_HWC).permute(2, 0, 1)[None].float() / 255 - 0.5) / 0.5


def torchcams(
    model: nn.Module, image: torch.Tensor, classes: list[int], target: str, head: str
) -> torch.Tensor:
    with CAM(model, target, head) as extractor, torch.inference_mode():
        model(image)
        return torch.stack([extractor(label, normalized=False)[0][0] for label in classes])


CLASSES = [281, 285, 0, 999]


def test_torchcam_agrees_on_the_default_network(default_package):
    network, image = default_package.network, photo(224)
    with torch.inference_mode():
        features_BCHW, _ = network(image)
        ours = class_activation_maps(features_BCHW, network.weights_KC[CLASSES][None])[0]
    theirs = torchcams(network.model, image, CLASSES, "bn2", "classifier")
    assert ours.shape == (4, 7, 7)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-5)
    assert ours.std() > 1


def test_torchcam_agrees_on_a_resnet():
    torch.manual_seed(0)
    model = torchvision.models.resnet18().eval()
    image = photo(160)
    body = nn.Sequential(*list(model.children())[:-2])
    with torch.inference_mode():
        ours = class_activation_maps(body(image), model.fc.weight[CLASSES][None])[0]
    theirs = torchcams(model, image, CLASSES, "layer4", "fc")
    assert ours.shape == (4, 5, 5)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-5)
