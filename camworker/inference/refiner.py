"""`Refiner`: from the maps of a batch to what is stored, rounded and refined maps with their boxes."""

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from camworker.boxes.refine import decode_refined, refined_maps
from camworker.boxes.rules import boxes_from_cams, uses_refined
from camworker.errors import Failure
from camworker.frame import Frame
from camworker.images.decode import PreprocessedImage
from camworker.inference.cam_network import Maps, ScoredMaps
from camworker.inference.predictions import ClassMaps
from camworker.inference.refine_on_device import refined_maps_on_device
from camworker.refinement import ForegroundHead, Refinement

_FLOAT16_END: Final = 65520.0  # the smallest magnitude that float16 rounds to infinity


class Refiner:
    """Rounds maps as they are stored, refines them, and makes their boxes from what is stored.

    Args:
        refinement: How class activation maps are refined; None if they are not.
        head: The foreground head that the refinement needs, if it does.
        box_rule: How boxes are made.
        keep_all: Whether the refined maps of all ranked classes are stored, or those of the best class.

    Attributes:
        needs_features: Whether the box rule needs the features at stride 8.
    """

    def __init__(
        self, refinement: Refinement | None, head: ForegroundHead | None, box_rule: str, *, keep_all: bool
    ) -> None:
        self._refinement = refinement
        self._head = head
        self._box_rule = box_rule
        self._keep_all = keep_all
        self.needs_features = box_rule.startswith("fine-multi:")

    @property
    def on_device(self) -> Callable[..., torch.Tensor] | None:
        """Refines maps where the network runs, see `CamNetwork`; None without refinement."""
        return None if self._refinement is None else self._refined_on_device

    def class_maps(self, maps: Maps, frames: Sequence[Frame]) -> tuple[ClassMaps, ClassMaps]:
        """Return the stored maps and the boxes of the best and of the target classes of a batch.

        Args:
            maps: The maps of G images; none of their values overflows float16.
            frames: The frames of the images.
        """
        best, targets = maps.best, maps.targets
        cams_Mhw = np.concatenate([best.maps_Mhw, targets.maps_Mhw]).astype(np.float16)
        images_M = np.concatenate([maps.best_images, maps.target_images])
        refined_Mhw = self._refined(maps, cams_Mhw, images_M)
        boxes = boxes_from_cams(
            decode_refined(refined_Mhw)
            if refined_Mhw is not None and uses_refined(self._box_rule)
            else cams_Mhw,
            frames,
            images_M,
            self._box_rule,
            maps.fine_BCHW if self.needs_features else None,
        )
        end_M = len(best.labels_M)
        end_L = int(boxes.counts_M[:end_M].sum())
        step = 1 if self._keep_all else max(1, end_M // max(1, len(frames)))

        def piece(scored: ScoredMaps, pairs: slice, kept: slice, found: slice) -> ClassMaps:
            return ClassMaps(
                scored.labels_M,
                scored.scores_M,
                cams_Mhw[pairs],
                boxes.corners_L4[found],
                boxes.counts_M[pairs],
                boxes.fallback_L[found],
                None if refined_Mhw is None else refined_Mhw[kept],
            )

        return (
            piece(best, slice(end_M), slice(0, end_M, step), slice(end_L)),
            piece(targets, slice(end_M, None), slice(end_M, None), slice(end_L, None)),
        )

    def _refined(
        self, maps: Maps, cams_Mhw: NDArray[np.float16], images_M: NDArray[np.int64]
    ) -> NDArray[np.uint8] | None:
        if self._refinement is None or not len(images_M):
            return None
        if maps.best.refined_Mhw is not None and maps.targets.refined_Mhw is not None:
            return np.concatenate([maps.best.refined_Mhw, maps.targets.refined_Mhw])
        if maps.fine_BCHW is None:
            raise ValueError("maps without features cannot be refined")
        return refined_maps(cams_Mhw, images_M, maps.fine_BCHW, maps.deep_BCHW, self._refinement, self._head)

    def _refined_on_device(
        self,
        cams_Mhw: torch.Tensor,
        images_M: torch.Tensor,
        fine_BCHW: torch.Tensor,
        deep_BCHW: torch.Tensor | None,
    ) -> torch.Tensor:
        """Refine maps rounded to float16, as on the CPU."""
        assert self._refinement is not None  # otherwise `on_device` is None
        rounded_Mhw = cams_Mhw.half().float()
        return refined_maps_on_device(
            rounded_Mhw, images_M, fine_BCHW, deep_BCHW, self._refinement, self._head
        )


def settle_overflow(
    maps: Maps,
    batch: Sequence[PreprocessedImage | Failure],
    in_float32: Callable[[Sequence[PreprocessedImage], Sequence[Sequence[int]]], Maps | None] | None,
) -> tuple[Maps, Sequence[PreprocessedImage | Failure]]:
    """Compute maps that float16 cannot hold again in float32; images that still have one fail.

    Args:
        maps: The maps of the images of the batch that did not fail.
        batch: The images.
        in_float32: Computes the maps of images with these target classes in float32; None if `maps` are so.

    Returns:
        Maps and batch, with a Failure "map_overflow" in place of each image that has such a map.
    """
    largest_B = maps.largest_values()
    if (largest_B < _FLOAT16_END).all():
        return maps, batch
    places = [n for n, image in enumerate(batch) if not isinstance(image, Failure)]
    images = [image for image in batch if not isinstance(image, Failure)]
    if in_float32 is not None:
        labels_B = np.split(maps.targets.labels_M, np.cumsum(maps.target_counts_B)[:-1])
        again_B = ~(largest_B < _FLOAT16_END)
        chosen = np.flatnonzero(again_B)
        result = in_float32([images[n] for n in chosen], [labels_B[n].tolist() for n in chosen])
        if result is not None:
            maps = maps.replaced(again_B, result)
        largest_B = maps.largest_values()
    kept_B = largest_B < _FLOAT16_END
    settled = list(batch)
    for n in np.flatnonzero(~kept_B):
        reason = f"a class activation map holds {largest_B[n]:g}, which float16 cannot represent"
        settled[places[n]] = Failure("map_overflow", reason)
    return maps.select(kept_B), settled
