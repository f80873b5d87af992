"""The effective receptive field: how much of the input a cell of the feature map depends on."""

import copy
from typing import Final

import torch

from camworker.networks.gap import GapNetwork

_FRACTION: Final = 0.5


def effective_side(network: GapNetwork, images_BCHW: torch.Tensor) -> int:
    """Return the side, in input pixels, of the square around the centre cell with half of its sensitivity.

    The sensitivity of a pixel is the squared gradient of the centre cell's activations (summed over units)
    with respect to the pixel, summed over colours, divided by the total of the image, and averaged over
    images. The squared gradient measures how much noise in the pixel changes the activation. The gradient
    follows Luo et al., "Understanding the Effective Receptive Field in Deep Convolutional Neural Networks",
    NeurIPS 2016. They count the pixels whose mean absolute gradient exceeds 4.55% of its maximum. In deep
    networks that is nearly every pixel, and the count grows with the number of images, while this side hardly
    changes.

    Args:
        network: The network.
        images_BCHW: Normalized images in the network's precision and on its device.
    """
    network = copy.deepcopy(network).requires_grad_(
        False
    )  # gradients of the weights are expensive and not needed
    sensitivity_HW = torch.zeros(images_BCHW.shape[2:], dtype=torch.float64)
    for image_CHW in images_BCHW:
        image_1CHW = image_CHW[None].detach().clone().requires_grad_()
        features_1CHW = network.features(image_1CHW)
        rows, columns = features_1CHW.shape[2:]
        cell_C = features_1CHW[0, :, rows // 2, columns // 2]
        (gradient_1CHW,) = torch.autograd.grad(cell_C.sum(), image_1CHW)
        squared_HW = gradient_1CHW[0].double().square().sum(0).cpu()
        sensitivity_HW += squared_HW / squared_HW.sum().clamp(min=1e-300)
    height, width = sensitivity_HW.shape
    y, x = (rows // 2 + 0.5) * height / rows, (columns // 2 + 0.5) * width / columns
    # Chebyshev distance of each pixel's centre to the centre of the cell.
    distance_HW = torch.maximum(
        (torch.arange(height) + 0.5 - y).abs()[:, None], (torch.arange(width) + 0.5 - x).abs()[None]
    )
    by_distance, order = distance_HW.flatten().sort(stable=True)
    cumulative = sensitivity_HW.flatten()[order].cumsum(0)
    inside = int((cumulative < _FRACTION * cumulative[-1]).sum())
    radius = float(by_distance[min(inside, len(cumulative) - 1)]) + 0.5
    return max(1, min(height, width, round(2 * radius)))
