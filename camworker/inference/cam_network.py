"""`CamNetwork`: from the pixels of a batch to the scores and class activation maps of its classes."""

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import chain
from typing import TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from camworker.cam import TEN_CROP_CELLS, best_and_target_maps, merge_views, views_of
from camworker.frame import FrameSpec
from camworker.inference.pixel_network import PixelNetwork
from camworker.networks.package import NetworkPackage
from camworker.presets import Settings
from camworker.schemas import CamShape, Scoring

_Kind = TypeVar("_Kind", bound=np.generic)

# From maps_Mhw, the index of the image of each, and the images' features at strides 8 and 16: refined maps.
RefineOnDevice: TypeAlias = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor
]


@dataclass(frozen=True, slots=True)
class ScoredMaps:
    """Scores and maps of M pairs of an image and a class, image after image, on the CPU.

    Attributes:
        labels_M: Index of each pair's class, int32.
        scores_M: Score of each pair, in 0..1, float32.
        maps_Mhw: Class activation map of each pair, signed and without bias, float32.
        refined_Mhw: Refined map of each pair, uint8, if it was made on the device.
    """

    labels_M: NDArray[np.int32]
    scores_M: NDArray[np.float32]
    maps_Mhw: NDArray[np.float32]
    refined_Mhw: NDArray[np.uint8] | None = None

    def select(self, kept_M: NDArray[np.bool_]) -> "ScoredMaps":
        """Return the pairs that are marked."""
        refined_Mhw = None if self.refined_Mhw is None else self.refined_Mhw[kept_M]
        return ScoredMaps(self.labels_M[kept_M], self.scores_M[kept_M], self.maps_Mhw[kept_M], refined_Mhw)

    def replaced(self, at_M: NDArray[np.bool_], other: "ScoredMaps") -> "ScoredMaps":
        """Return these pairs with those of another in the places that are marked."""
        refined_Mhw = None
        if self.refined_Mhw is not None and other.refined_Mhw is not None:
            refined_Mhw = _replaced(at_M, self.refined_Mhw, other.refined_Mhw)
        return ScoredMaps(
            _replaced(at_M, self.labels_M, other.labels_M),
            _replaced(at_M, self.scores_M, other.scores_M),
            _replaced(at_M, self.maps_Mhw, other.maps_Mhw),
            refined_Mhw,
        )


@dataclass(frozen=True, slots=True)
class Maps:
    """What the network computes for B images.

    Attributes:
        best: The K best classes of each image, best first.
        targets: The target classes of each image, by class index.
        target_counts_B: Number of target classes of each image, int64.
        fine_BCHW: The feature map at stride 8, float32, if refined maps are made from it on the CPU.
        deep_BCHW: The feature map at stride 16, float32, likewise.
    """

    best: ScoredMaps
    targets: ScoredMaps
    target_counts_B: NDArray[np.int64]
    fine_BCHW: NDArray[np.float32] | None = None
    deep_BCHW: NDArray[np.float32] | None = None

    @property
    def best_images(self) -> NDArray[np.int64]:
        """The index of the image of each of the pairs `best`."""
        images = len(self.target_counts_B)
        return np.repeat(np.arange(images), len(self.best.labels_M) // max(1, images))

    @property
    def target_images(self) -> NDArray[np.int64]:
        """The index of the image of each of the pairs `targets`."""
        return np.repeat(np.arange(len(self.target_counts_B)), self.target_counts_B)

    def largest_values(self) -> NDArray[np.float32]:
        """Return the largest magnitude in the maps of each image, [B]; NaN if one is not a number."""
        largest_B = np.zeros(len(self.target_counts_B), np.float32)
        with np.errstate(invalid="ignore"):  # a maximum with NaN is NaN
            for images, maps in ((self.best_images, self.best), (self.target_images, self.targets)):
                np.maximum.at(largest_B, images, np.abs(maps.maps_Mhw).max((1, 2)))
        return largest_B

    def select(self, kept_B: NDArray[np.bool_]) -> "Maps":
        """Return the maps of the images that are marked."""
        return Maps(
            self.best.select(kept_B[self.best_images]),
            self.targets.select(kept_B[self.target_images]),
            self.target_counts_B[kept_B],
            None if self.fine_BCHW is None else self.fine_BCHW[kept_B],
            None if self.deep_BCHW is None else self.deep_BCHW[kept_B],
        )

    def replaced(self, at_B: NDArray[np.bool_], other: "Maps") -> "Maps":
        """Return these maps with those of another batch for the images that are marked.

        Args:
            at_B: The images.
            other: Maps of these images with the same number of classes, in order.
        """
        fine_BCHW = deep_BCHW = None
        if self.fine_BCHW is not None and other.fine_BCHW is not None:
            fine_BCHW = _replaced(at_B, self.fine_BCHW, other.fine_BCHW)
        if self.deep_BCHW is not None and other.deep_BCHW is not None:
            deep_BCHW = _replaced(at_B, self.deep_BCHW, other.deep_BCHW)
        return Maps(
            self.best.replaced(at_B[self.best_images], other.best),
            self.targets.replaced(at_B[self.target_images], other.targets),
            self.target_counts_B,
            fine_BCHW,
            deep_BCHW,
        )


def _replaced(at: NDArray[np.bool_], array: NDArray[_Kind], other: NDArray[_Kind]) -> NDArray[_Kind]:
    result = array.copy()
    result[at] = other
    return result


class CamNetwork:
    """A network with its views and its scoring.

    Args:
        pixel_network: The network.
        frame_spec: Which views of an image are evaluated, and their size.
        shape: Shape of the maps of an image's best classes.
        scoring: How logits become scores.
        refine_on_device: Makes the refined maps of a batch where the network runs; None leaves them to the
            caller, who gets the feature maps.
        keep_features: Whether the caller gets the feature map at stride 8 in any case.
    """

    def __init__(
        self,
        pixel_network: PixelNetwork,
        frame_spec: FrameSpec,
        shape: CamShape,
        scoring: Scoring,
        refine_on_device: RefineOnDevice | None = None,
        *,
        keep_features: bool = False,
    ) -> None:
        self._pixel_network = pixel_network
        self._input_size = frame_spec.input_size
        self._views = views_of(frame_spec.views, frame_spec.input_size)
        self._shape = shape
        self._score = torch.sigmoid if scoring == "sigmoid" else partial(torch.softmax, dim=-1)
        self._refine_on_device = refine_on_device
        self._keep_features = keep_features
        self._weights_KC = pixel_network.network.weights_KC.detach()

    def __call__(self, pixels_BCHW: torch.Tensor, targets: Sequence[Sequence[int]]) -> Maps:
        """Run the network on a batch, and make the maps of the best and of the target classes.

        Args:
            pixels_BCHW: Frames of images, uint8, on the device.
            targets: For each image the indices of its target classes, in order and distinct.
        """
        outputs_V = [
            self._pixel_network.evaluate(view.crop(pixels_BCHW, self._input_size)) for view in self._views
        ]
        logits_VBK = [output.logits_BK for output in outputs_V]
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
                best_and_target_maps(output.features_BCHW, self._weights_KC, best_BK, targets_B)
                for output in outputs_V
            ),
            strict=True,
        )
        best_maps_Mhw, target_maps_Mhw = (
            merge_views(maps_V, self._views, self._input_size).flatten(0, -3)
            for maps_V in (best_maps_V, target_maps_V)
        )
        fine_BCHW, deep_BCHW = (
            self._merged([tap for tap in taps_V if tap is not None])
            for taps_V in zip(*((output.fine_BCHW, output.deep_BCHW) for output in outputs_V), strict=True)
        )
        refined_best = refined_targets = None
        if self._refine_on_device is not None and fine_BCHW is not None:
            best_images_M = torch.arange(len(best_BK), device=device).repeat_interleave(self._shape.k)
            refined_Mhw = self._refine_on_device(
                torch.cat([best_maps_Mhw, target_maps_Mhw]),
                torch.cat([best_images_M, images_T]),
                fine_BCHW,
                deep_BCHW,
            )
            refined_best, refined_targets = refined_Mhw.tensor_split([len(best_maps_Mhw)])
            fine_BCHW, deep_BCHW = fine_BCHW if self._keep_features else None, None
        best_scores_M = scores_BK.gather(1, best_BK).flatten()
        return Maps(
            _scored_maps(best_BK.flatten(), best_scores_M, best_maps_Mhw, refined_best),
            _scored_maps(targets_T, scores_BK[images_T, targets_T], target_maps_Mhw, refined_targets),
            counts_B,
            None if fine_BCHW is None else fine_BCHW.cpu().numpy(),
            None if deep_BCHW is None else deep_BCHW.cpu().numpy(),
        )

    @cached_property
    def in_float32(self) -> "CamNetwork":
        """The same network, computing in float32, never compiled."""
        twin = copy(self)
        twin._pixel_network = self._pixel_network.in_float32()
        twin._weights_KC = twin._pixel_network.network.weights_KC.detach()
        return twin

    def no_maps(self) -> Maps:
        """Return the maps of a batch without images."""
        h, w = self._shape.h, self._shape.w
        none = ScoredMaps(np.empty(0, np.int32), np.empty(0, np.float32), np.empty((0, h, w), np.float32))
        return Maps(none, none, np.zeros(0, np.int64))

    def _merged(self, maps_V: Sequence[torch.Tensor]) -> torch.Tensor | None:
        """Merge the maps of all views; None without any."""
        return merge_views(maps_V, self._views, self._input_size) if maps_V else None


def _scored_maps(
    labels_M: torch.Tensor,
    scores_M: torch.Tensor,
    maps_Mhw: torch.Tensor,
    refined_Mhw: torch.Tensor | None,
) -> ScoredMaps:
    return ScoredMaps(
        labels_M.int().cpu().numpy(),
        scores_M.cpu().numpy(),
        maps_Mhw.cpu().numpy(),
        None if refined_Mhw is None else refined_Mhw.cpu().numpy(),
    )


@torch.inference_mode()
def row_shapes(
    settings: Settings, package: NetworkPackage, map_size: tuple[int, int]
) -> tuple[CamShape, CamShape | None]:
    """Return the shapes of a row's class activation maps and refined maps; None without refinement.

    Args:
        settings: How images are localized.
        package: The network.
        map_size: Height and width of its map of one view, in cells.
    """
    size = settings.frame_spec.input_size
    ten_crop = settings.frame_spec.views == "ten-crop"
    cells = (TEN_CROP_CELLS, TEN_CROP_CELLS) if ten_crop else map_size
    cams = CamShape(min(settings.top_k, len(package.classes)), *cells)
    if settings.refinement is None:
        return cams, None
    like = next(package.network.parameters())
    _, fine_BCHW, _ = package.network.tapped_features(like.new_zeros(1, 3, size, size))
    return cams, CamShape(cams.k if settings.refined == "all" else 1, *fine_BCHW.shape[2:])
