"""`CamNetwork`: from the pixels of a batch to the scores and class activation maps of its classes."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray

from camworker.cam import TEN_CROP_CELLS, best_and_target_maps, merge_views, views_of
from camworker.frame import FrameSpec, Views
from camworker.inference.pixel_network import PixelNetwork
from camworker.schemas import CamShape, Scoring


@dataclass(frozen=True, slots=True)
class ScoredMaps:
    """Scores and maps of M pairs of an image and a class, image after image, on the CPU.

    Attributes:
        labels_M: Index of each pair's class, int32.
        scores_M: Score of each pair, in 0..1, float32.
        maps_Mhw: Class activation map of each pair, signed and without bias, float32.
    """

    labels_M: NDArray[np.int32]
    scores_M: NDArray[np.float32]
    maps_Mhw: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Maps:
    """What the network computes for B images.

    Attributes:
        best: The K best classes of each image, best first.
        targets: The target classes of each image, by class index.
        target_counts_B: Number of target classes of each image, int64.
    """

    best: ScoredMaps
    targets: ScoredMaps
    target_counts_B: NDArray[np.int64]


class CamNetwork:
    """A network with its views and its scoring.

    Args:
        pixel_network: The network.
        frame_spec: Which views of an image are evaluated, and their size.
        shape: Shape of the maps of an image's best classes.
        scoring: How logits become scores.
    """

    def __init__(
        self, pixel_network: PixelNetwork, frame_spec: FrameSpec, shape: CamShape, scoring: Scoring
    ) -> None:
        self._pixel_network = pixel_network
        self._input_size = frame_spec.input_size
        self._views = views_of(frame_spec.views, frame_spec.input_size)
        self._shape = shape
        self._score = torch.sigmoid if scoring == "sigmoid" else partial(torch.softmax, dim=-1)
        self._weights_KC = pixel_network.network.weights_KC.detach()

    def __call__(self, pixels_BCHW: torch.Tensor, targets: Sequence[Sequence[int]]) -> Maps:
        """Run the network on a batch, and make the maps of the best and of the target classes.

        Args:
            pixels_BCHW: Frames of images, uint8, on the device.
            targets: For each image the indices of its target classes, in order and distinct.
        """
        features_VBCHW, logits_VBK = [], []
        for view in self._views:
            crop_BCHW = view.crop(pixels_BCHW, self._input_size)
            features_BCHW, logits_BK = self._pixel_network.features_and_logits(crop_BCHW)
            features_VBCHW.append(features_BCHW)
            logits_VBK.append(logits_BK)
        scores_BK = self._score(torch.stack(logits_VBK)).mean(0)

        # A single view is ranked by its logits: many sigmoids are 1 to the last digit.
        best_BK = (logits_VBK[0] if len(self._views) == 1 else scores_BK).topk(self._shape.k).indices
        counts_B = np.array([len(classes) for classes in targets], np.int64)
        device = pixels_BCHW.device
        targets_T = torch.tensor(list(chain.from_iterable(targets)), dtype=torch.int64, device=device)
        images_T = torch.from_numpy(np.repeat(np.arange(len(targets)), counts_B)).to(device)
        targets_B = torch.split(targets_T, counts_B.tolist())
        best_maps_V, target_maps_V = zip(
            *(
                best_and_target_maps(features_BCHW, self._weights_KC, best_BK, targets_B)
                for features_BCHW in features_VBCHW
            ),
            strict=True,
        )
        return Maps(
            self._scored_maps(best_BK.flatten(), scores_BK.gather(1, best_BK).flatten(), best_maps_V),
            self._scored_maps(targets_T, scores_BK[images_T, targets_T], target_maps_V),
            counts_B,
        )

    def no_maps(self) -> Maps:
        """Return the maps of a batch without images."""
        h, w = self._shape.h, self._shape.w
        none = ScoredMaps(np.empty(0, np.int32), np.empty(0, np.float32), np.empty((0, h, w), np.float32))
        return Maps(none, none, np.zeros(0, np.int64))

    def _scored_maps(
        self, labels_M: torch.Tensor, scores_M: torch.Tensor, maps_V: Sequence[torch.Tensor]
    ) -> ScoredMaps:
        maps = merge_views(maps_V, self._views, self._input_size)
        return ScoredMaps(
            labels_M.int().cpu().numpy(),
            scores_M.cpu().numpy(),
            maps.reshape(-1, *maps.shape[-2:]).cpu().numpy(),
        )


def cam_shape(top_k: int, classes: int, map_size: tuple[int, int], views: Views) -> CamShape:
    """Return the shape of the maps of a row.

    Args:
        top_k: Number of classes to rank.
        classes: Number of classes of the network.
        map_size: Height and width of the map of one view, in cells.
        views: Which views of an image are evaluated.
    """
    cells = (TEN_CROP_CELLS, TEN_CROP_CELLS) if views == "ten-crop" else map_size
    return CamShape(min(top_k, classes), *cells)
