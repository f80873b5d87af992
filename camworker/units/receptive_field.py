"""The effective receptive field: how much of its input a cell of the feature map really answers to."""

import copy
from typing import Final

import torch

from camworker.networks.gap import GapNetwork

_SHARE: Final = 0.5


def effective_side(network: GapNetwork, images_BCHW: torch.Tensor) -> int:
    """Side, in input pixels, of the square around the centre cell that holds half of what moves it.

    The gradient of the centre cell's activations, summed over units, with respect to the input (Luo et
    al., "Understanding the Effective Receptive Field in Deep Convolutional Neural Networks", NeurIPS
    2016); its square, summed over colours, as a share of the image's total, averaged over images. The
    squared gradient says how much noise in a pixel moves the activation. Luo et al. count the pixels
    whose mean absolute gradient exceeds 4.55% of its maximum; in networks as deep as today's that is
    nearly every pixel, and the count grows with the number of images, while this side hardly changes.

    images_BCHW: normalised, in the network's precision, on its device.
    """
    network = copy.deepcopy(network).requires_grad_(False)  # the weights' gradients cost more than ours
    share_HW = torch.zeros(images_BCHW.shape[2:], dtype=torch.float64)
    for image_CHW in images_BCHW:
        image_1CHW = image_CHW[None].detach().clone().requires_grad_()
        features_1CHW = network.features(image_1CHW)
        rows, columns = features_1CHW.shape[2:]
        cell_C = features_1CHW[0, :, rows // 2, columns // 2]
        (gradient_1CHW,) = torch.autograd.grad(cell_C.sum(), image_1CHW)
        moved_HW = gradient_1CHW[0].double().square().sum(0).cpu()
        share_HW += moved_HW / moved_HW.sum().clamp(min=1e-300)
    height, width = share_HW.shape
    y, x = (rows // 2 + 0.5) * height / rows, (columns // 2 + 0.5) * width / columns
    # How far each pixel's centre is from the cell's, measured as squares are.
    away_HW = torch.maximum(
        (torch.arange(height) + 0.5 - y).abs()[:, None], (torch.arange(width) + 0.5 - x).abs()[None]
    )
    by_distance, order = away_HW.flatten().sort(stable=True)
    held = share_HW.flatten()[order].cumsum(0)
    reached = int((held < _SHARE * held[-1]).sum())
    radius = float(by_distance[min(reached, len(held) - 1)]) + 0.5
    return max(1, min(height, width, round(2 * radius)))
