"""Class-specific units: which units speak for a class, and the images that excite each of them most.

A unit is a channel of the feature map that enters the pooling; the class weighs it in its class
activation map (Zhou et al., "Learning Deep Features for Discriminative Localization", CVPR 2016).
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from camworker.frame import Frame, Resize

# The maximum of one unit over one image's map: value; mean over the map; the image's number; the cell
# of the maximum (row y, column x); the image's size in pixels, as displayed.
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
    """For each of these classes the count units of largest weight, descending (int32, classes x count).

    Of equal weights the lower unit comes first. All units where there are fewer than count.
    """
    order = np.argsort(-weights_KC[np.asarray(classes, np.int64)], axis=1, kind="stable")
    return order[:, :count].astype(np.int32)


class TopActivations:
    """The n images that excite each of U units most, one peak an image and unit. Values of it merge.

    best_UN: dtype PEAK, the best first: by value, then by mean, then by the image's number. The mean
    decides where activations are capped (a ReLU6 at 6). A value of zero, or not a number, excites
    nothing: such places are empty, and is_real_UN is False there.
    """

    def __init__(self, best_UN: NDArray[np.void]) -> None:
        self.best_UN = best_UN

    @classmethod
    def none(cls, units: int, count: int) -> "TopActivations":
        """Before any image."""
        return cls(np.full((units, count), _NONE))

    @property
    def is_real_UN(self) -> NDArray[np.bool_]:
        return self.best_UN["value"] > 0

    def update(self, peaks_BU: NDArray[np.void]) -> "TopActivations":
        """With a batch's peaks (dtype PEAK) of images that are not in here yet."""
        peaks_UB = np.where(peaks_BU["value"] > 0, peaks_BU, _NONE).T
        return self.merge(TopActivations(peaks_UB))

    def merge(self, other: "TopActivations") -> "TopActivations":
        """The best of both, which hold different images; as many places as this one has."""
        both = np.concatenate([self.best_UN, other.best_UN], axis=1)
        order = np.lexsort((both["number"], -both["mean"], -both["value"]), axis=-1)
        return TopActivations(np.take_along_axis(both, order[:, : self.best_UN.shape[1]], axis=1))


@dataclass(frozen=True, slots=True, eq=False)
class Excited:
    """What a pass over some images gives. images: count by status; seen_K: top-1 classes, counted."""

    excitations: TopActivations
    images: Counter[str]
    seen_K: NDArray[np.int64]

    def merge(self, other: "Excited") -> "Excited":
        """Both passes as one."""
        return Excited(
            self.excitations.merge(other.excitations), self.images + other.images, self.seen_K + other.seen_K
        )


def patch_boxes(
    peaks_UN: NDArray[np.void], map_size: tuple[int, int], side: int, input_size: int, resize: Resize
) -> NDArray[np.float32]:
    """The patch around each peak, in pixels of its original image: half-open boxes, float32 [U, N, 4].

    A square of side pixels of the network's input around the centre of the peak's cell, shifted to lie
    inside the input, then mapped to the original. map_size: (rows, columns) of the feature map. Zeros
    for empty places.
    """
    rows, columns = map_size
    x = (peaks_UN["x"] + 0.5) * input_size / columns - side / 2
    y = (peaks_UN["y"] + 0.5) * input_size / rows - side / 2
    left, top = (np.clip(edge, 0, input_size - side) for edge in (x, y))
    squares_UN4 = np.stack([left, top, left + side, top + side], axis=-1)
    boxes_UN4 = np.zeros(squares_UN4.shape, np.float32)
    for place in np.argwhere(peaks_UN["value"] > 0):
        peak = peaks_UN[tuple(place)]
        frame = Frame(int(peak["width"]), int(peak["height"]), input_size, resize)
        boxes_UN4[tuple(place)] = frame.to_original(squares_UN4[tuple(place)])[0]
    return boxes_UN4
