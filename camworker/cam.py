"""Class activation maps as functions of tensors (Zhou et al., CVPR 2016). No paths, no devices chosen."""

import torch
import torch.nn.functional as F


def class_activation_maps(features_BCHW: torch.Tensor, weights_BKC: torch.Tensor) -> torch.Tensor:
    """M_k(x, y) = sum_c w_k[c] f[c, x, y] (Zhou et al. 2016, eq. 2): signed, without bias.

    features_BCHW: what enters the pooling, after its last norm and activation.
    weights_BKC: for each image, the linear layer's rows of the K classes wanted.
    Returns maps_BKHW. The mean of a map over (x, y), plus the class's bias, is the class's logit.
    """
    batch, _, height, width = features_BCHW.shape
    maps = torch.bmm(weights_BKC, features_BCHW.flatten(2))
    return maps.view(batch, weights_BKC.shape[1], height, width)


def upsample(maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Bilinear, half-pixel centres: maps [..., h, w] -> [..., height, width], size = (height, width)."""
    flat = maps.reshape(-1, 1, *maps.shape[-2:])
    resized = F.interpolate(flat, size, mode="bilinear", align_corners=False)
    return resized.view(*maps.shape[:-2], *size)
