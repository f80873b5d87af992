"""Class activation maps as functions of tensors (Zhou et al., CVPR 2016)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as F

from camworker.frame import Views, frame_size

TEN_CROP_CELLS: Final = 32  # side of a merged ten-crop map


@dataclass(frozen=True, slots=True)
class View:
    """One view of an image: a crop of its frame, mirrored or not.

    Attributes:
        x: Left edge of the crop in the frame, in pixels.
        y: Upper edge of the crop in the frame, in pixels.
        mirrored: Whether the crop is mirrored left to right.
    """

    x: int
    y: int
    mirrored: bool

    def crop(self, images_BCHW: torch.Tensor, size: int) -> torch.Tensor:
        """Return this view of images, [B, C, size, size]."""
        crop = images_BCHW[..., self.y : self.y + size, self.x : self.x + size]
        return crop.flip(-1) if self.mirrored else crop


def views_of(views: Views, input_size: int) -> tuple[View, ...]:
    """Return the views to evaluate of each image.

    Args:
        views: "single" is the image, "flip" the image and its mirror image, "ten-crop" the four corners and
            the centre of a larger frame and the mirror images of these.
        input_size: Side of the network's square input, in pixels.
    """
    last = frame_size(input_size, views) - input_size
    centre = last // 2
    corners = [(0, 0), (last, 0), (0, last), (last, last), (centre, centre)] if last else [(0, 0)]
    mirrors = (False,) if views == "single" else (False, True)
    return tuple(View(x, y, mirrored) for mirrored in mirrors for x, y in corners)


def merge_views(maps: Sequence[torch.Tensor], views: Sequence[View], input_size: int) -> torch.Tensor:
    """Merge the maps of an image's views into the maps of the image.

    With two views the mirrored maps are mirrored back and averaged. With ten crops, as in the paper's
    figures for ILSVRC, each map is upsampled to the pixels of its crop and its absolute values are added up
    at the position of the crop in the frame; the sum is not divided by the number of crops that cover a
    pixel. It is then averaged over areas to 32x32 cells.

    Args:
        maps: The maps of each view, [..., h, w].
        views: The views, in the same order.
        input_size: Side of a crop, in pixels.

    Returns:
        The merged maps, [..., h, w], or [..., 32, 32] for ten crops.
    """
    maps = [view_maps.flip(-1) if v.mirrored else view_maps for view_maps, v in zip(maps, views, strict=True)]
    if len(views) <= 2:
        return torch.stack(maps).mean(0)
    side = max(view.x for view in views) + input_size
    total = maps[0].new_zeros(*maps[0].shape[:-2], side, side)
    for view_maps, view in zip(maps, views, strict=True):
        covered = total[..., view.y : view.y + input_size, view.x : view.x + input_size]
        covered += upsample(view_maps, (input_size, input_size)).abs()
    return F.adaptive_avg_pool2d(total, TEN_CROP_CELLS)


def class_activation_maps(features_BCHW: torch.Tensor, weights_BKC: torch.Tensor) -> torch.Tensor:
    """Return M_k(x, y) = sum_c w_k[c] f[c, x, y] (Zhou et al. 2016, eq. 2), signed and without bias.

    The mean of a map over (x, y), plus the bias of its class, is the logit of the class.

    Args:
        features_BCHW: The input of the global pooling, after its last normalization and activation.
        weights_BKC: For each image, the rows of the linear layer for K classes.

    Returns:
        The maps, [B, K, H, W].
    """
    batch, _, height, width = features_BCHW.shape
    maps = torch.bmm(weights_BKC, features_BCHW.flatten(2))
    return maps.view(batch, weights_BKC.shape[1], height, width)


def best_and_target_maps(
    features_BCHW: torch.Tensor,
    weights_KC: torch.Tensor,
    best_BK: torch.Tensor,
    targets_B: Sequence[torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the class activation maps of each image's best classes and of its target classes.

    One matrix product makes all maps of an image. Products of few rows round differently, so a class that
    is among both would have two maps if the target classes had a product of their own.

    Args:
        features_BCHW: The input of the global pooling.
        weights_KC: The weights of the linear layer, a row per class.
        best_BK: Indices of the K best classes of each image.
        targets_B: Indices of the target classes of each image, any number.

    Returns:
        The maps of the best classes, [B, K, H, W], and those of all T target classes, image after image,
        [T, H, W].
    """
    best = best_BK.shape[1]
    if len({len(targets) for targets in targets_B}) == 1:
        labels_BN = torch.cat([best_BK, torch.stack(list(targets_B))], dim=1)
        maps_BNHW = class_activation_maps(features_BCHW, weights_KC[labels_BN])
        return maps_BNHW[:, :best], maps_BNHW[:, best:].flatten(0, 1)
    maps_B = [
        class_activation_maps(features_CHW[None], weights_KC[None, torch.cat(labels)])[0]
        for features_CHW, *labels in zip(features_BCHW, best_BK, targets_B, strict=True)
    ]
    return (
        torch.stack([maps_NHW[:best] for maps_NHW in maps_B]),
        torch.cat([maps_NHW[best:] for maps_NHW in maps_B]),
    )


def upsample(maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Resize maps bilinearly with half-pixel centres.

    Args:
        maps: [..., h, w].
        size: Height and width of the result.

    Returns:
        The resized maps, [..., height, width].
    """
    flat = maps.reshape(-1, 1, *maps.shape[-2:])
    resized = F.interpolate(flat, size, mode="bilinear", align_corners=False)
    return resized.view(*maps.shape[:-2], *size)
