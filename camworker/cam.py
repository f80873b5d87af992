"""Class activation maps as functions of tensors (Zhou et al., CVPR 2016). No paths, no devices chosen."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as F

from camworker.frame import Views, frame_size

TEN_CROP_CELLS: Final = 32  # side of a merged ten-crop map


@dataclass(frozen=True, slots=True)
class View:
    """One look at an image: where its crop starts in the frame, in pixels, and whether it is mirrored."""

    x: int
    y: int
    mirrored: bool

    def crop(self, images_BCHW: torch.Tensor, size: int) -> torch.Tensor:
        """The crop of size x size pixels, mirrored if this view is."""
        crop = images_BCHW[..., self.y : self.y + size, self.x : self.x + size]
        return crop.flip(-1) if self.mirrored else crop


def views_of(views: Views, input_size: int) -> tuple[View, ...]:
    """One view; it and its mirror image; or four corners, the centre and the mirror images of these."""
    last = frame_size(input_size, views) - input_size
    centre = last // 2
    corners = [(0, 0), (last, 0), (0, last), (last, last), (centre, centre)] if last else [(0, 0)]
    mirrors = (False,) if views == "single" else (False, True)
    return tuple(View(x, y, mirrored) for mirrored in mirrors for x, y in corners)


def merge_views(maps_VBKHW: Sequence[torch.Tensor], views: Sequence[View], input_size: int) -> torch.Tensor:
    """The map of an image from the maps of its views: maps_BKHW.

    One view: as it is. An image and its mirror image: the average of the map and of the mirrored map
    of the mirrored image. Ten crops (as in the paper's ILSVRC figures): each map upsampled to the crop's
    pixels and put back in its place, absolute values summed and not divided by coverage; then averaged
    over areas to 32x32.
    """
    maps = [maps.flip(-1) if v.mirrored else maps for maps, v in zip(maps_VBKHW, views, strict=True)]
    if len(views) <= 2:
        return torch.stack(maps).mean(0)
    side = max(view.x for view in views) + input_size
    total = maps[0].new_zeros(*maps[0].shape[:2], side, side)
    for maps_BKHW, view in zip(maps, views, strict=True):
        place = total[..., view.y : view.y + input_size, view.x : view.x + input_size]
        place += upsample(maps_BKHW, (input_size, input_size)).abs()
    return F.adaptive_avg_pool2d(total, TEN_CROP_CELLS)


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
