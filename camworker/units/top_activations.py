"""Class-specific units, and the images that activate each unit most.

A unit is a channel of the feature map that enters the pooling. A class weighs the units in its class
activation map (Zhou et al., "Learning Deep Features for Discriminative Localization", CVPR 2016).
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from camworker.frame import Frame, Resize

# The peak of one unit in one image: the maximum of the map, its mean, the number of the image, the cell of
# the maximum (row y, column x), and the size of the image in pixels, as displayed.
PEAK: Final = np.dtype(
    [
        *(("value", np.float32), ("mean", np.float32), ("number", np.int64)),
        *(("y", np.int32), ("x", np.int32), ("width", np.int32), ("height", np.int32)),
    ]
)
_NONE: Final = np.array((0, 0, np.iinfo(np.int64).max, 0, 0, 0, 0), PEAK)


def units_of_classes(
    weights_KC: NDArray[np.floating], classes: Sequence[int] | NDArray[np.integer], count: int
) -> NDArray[np.int32]:
    """Return the units of largest weight for each class.

    Args:
        weights_KC: Weights of the network's head: K classes, C units.
        classes: Indices of the classes.
        count: Number of units for each class.

    Returns:
        The units by descending weight, int32 [len(classes), min(count, C)]; equal weights are ordered by
        unit.
    """
    order = np.argsort(-weights_KC[np.asarray(classes, np.int64)], axis=1, kind="stable")
    return order[:, :count].astype(np.int32)


class TopActivations:
    """The N images that activate each of U units most, with one peak per image and unit.

    Instances of different images can be merged in any order.

    Args:
        best_UN: Array of dtype PEAK, ordered by descending value, then by descending mean, then by the number
            of the image. The mean decides if activations are capped (a ReLU6 caps them at 6). Unused entries,
            where too few images have a positive activation, have the value 0.
    """

    def __init__(self, best_UN: NDArray[np.void]) -> None:
        self.best_UN = best_UN

    @classmethod
    def empty(cls, units: int, count: int) -> "TopActivations":
        """Return an instance without images."""
        return cls(np.full((units, count), _NONE))

    @property
    def is_used_UN(self) -> NDArray[np.bool_]:
        """Whether each entry holds a peak."""
        return self.best_UN["value"] > 0

    def update(self, peaks_BU: NDArray[np.void]) -> "TopActivations":
        """Return the result of adding the peaks (dtype PEAK) of a batch of further images."""
        peaks_UB = np.where(peaks_BU["value"] > 0, peaks_BU, _NONE).T
        return self.merge(TopActivations(peaks_UB))

    def merge(self, other: "TopActivations") -> "TopActivations":
        """Return the best peaks of both, which hold different images; N is that of this instance."""
        both = np.concatenate([self.best_UN, other.best_UN], axis=1)
        order = np.lexsort((both["number"], -both["mean"], -both["value"]), axis=-1)
        return TopActivations(np.take_along_axis(both, order[:, : self.best_UN.shape[1]], axis=1))


@dataclass(frozen=True, slots=True, eq=False)
class CollectedActivations:
    """The result of running a network over images.

    Attributes:
        activations: The images that activate each unit most.
        images: Number of images by status.
        top1_counts_K: Number of images whose best class is each class.
    """

    activations: TopActivations
    images: Counter[str]
    top1_counts_K: NDArray[np.int64]

    def merge(self, other: "CollectedActivations") -> "CollectedActivations":
        """Return the combined result of both, which are of different images."""
        return CollectedActivations(
            self.activations.merge(other.activations),
            self.images + other.images,
            self.top1_counts_K + other.top1_counts_K,
        )


def patch_boxes(
    peaks_UN: NDArray[np.void], map_size: tuple[int, int], side: int, input_size: int, resize: Resize
) -> NDArray[np.float32]:
    """Return the patch around each peak, in pixels of its original image.

    A patch is a square around the centre of the peak's cell, shifted to lie inside the network's input, and
    then mapped to the original image.

    Args:
        peaks_UN: Array of dtype PEAK.
        map_size: Rows and columns of the feature map.
        side: Side of the patch in pixels of the network's input.
        input_size: Side of the network's input in pixels.
        resize: How images are fitted into the input.

    Returns:
        Half-open boxes, float32 [U, N, 4]; zeros for unused entries.
    """
    rows, columns = map_size
    x = (peaks_UN["x"] + 0.5) * input_size / columns - side / 2
    y = (peaks_UN["y"] + 0.5) * input_size / rows - side / 2
    left, top = (np.clip(edge, 0, input_size - side) for edge in (x, y))
    squares_UN4 = np.stack([left, top, left + side, top + side], axis=-1)
    boxes_UN4 = np.zeros(squares_UN4.shape, np.float32)
    for unit, rank in np.argwhere(peaks_UN["value"] > 0):
        peak = peaks_UN[unit, rank]
        frame = Frame(int(peak["width"]), int(peak["height"]), input_size, resize)
        boxes_UN4[unit, rank] = frame.to_original(squares_UN4[unit, rank])[0]
    return boxes_UN4
