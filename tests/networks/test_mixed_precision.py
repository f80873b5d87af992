"""A network in bfloat16 whose fine map is computed in float32."""

import copy

import pytest
import torch

from camworker.networks.mixed_precision import lower_precision
from camworker.networks.registry import DEFAULT, create_network
from camworker.networks.taps import with_taps
from camworker.networks.traced_features import TracedFeatures


@pytest.mark.parametrize("name", [DEFAULT, "torchvision:resnet18", "torchvision:shufflenet_v2_x0_5"])
@torch.inference_mode()
def test_the_fine_map_is_that_of_float32(name):
    torch.manual_seed(0)
    exact = create_network(name, classes=10)
    lowered = copy.deepcopy(exact)
    assert exact.taps is not None
    tapped = with_taps(TracedFeatures.of(lowered.features), exact.taps)
    lower_precision(lowered, torch.bfloat16, tapped)
    images_BCHW = torch.randn(1, 3, 64, 64)
    expected = with_taps(TracedFeatures.of(exact.features), exact.taps)(images_BCHW)
    features_BCHW, fine_BCHW, deep_BCHW = tapped(images_BCHW)
    assert torch.equal(fine_BCHW, expected[1])
    for map_BCHW, other_BCHW in ((features_BCHW, expected[0]), (deep_BCHW, expected[2])):
        assert map_BCHW.dtype == torch.bfloat16
        difference = (map_BCHW.float() - other_BCHW).square().mean().sqrt()
        assert 0 < difference < 0.1 * other_BCHW.std()
    # Only the layers up to the fine map keep their numbers.
    kept = [n for n, tensor in lowered.named_parameters() if tensor.dtype == torch.float32]
    parameters = dict(exact.named_parameters())
    assert 0 < len(kept) < len(parameters)
    assert all(torch.equal(lowered.get_parameter(n), parameters[n]) for n in kept)
