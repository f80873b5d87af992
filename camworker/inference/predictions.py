"""What a network says of images: of a batch as columns, which become a table, and of one image as a row."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from camworker.errors import Failure, MapOverflowError, Status
from camworker.frame import CORNERS

BOX_DTYPE: Final = np.dtype(
    [("rank", "i1"), ("label", "<i4"), ("score", "<f4"), *((corner, "<f4") for corner in CORNERS)]
)
TARGET_BOX_DTYPE: Final = np.dtype([field for field in BOX_DTYPE.descr if field[0] != "rank"])


@dataclass(frozen=True, slots=True)
class Target:
    """What the network says of one class that the image is known to hold.

    cam: float16 [h, w]; boxes: BOX_DTYPE without rank, best first.
    """

    label: int
    score: float
    cam: NDArray[np.float16]
    boxes: np.ndarray


@dataclass(frozen=True, slots=True)
class Prediction:
    """One image's row, but for where the image came from.

    labels, scores: int32 and float32 [K], best first; names: their class names. cams: float16
    [K, h, w], signed and raw. boxes: BOX_DTYPE, half-open, in pixels of the image as displayed;
    rank counts from 1. width, height: of the image as displayed, in pixels.
    """

    width: int
    height: int
    labels: NDArray[np.int32]
    names: tuple[str, ...]
    scores: NDArray[np.float32]
    cams: NDArray[np.float16]
    boxes: np.ndarray
    targets: tuple[Target, ...] = ()
    status: Status = "ok"
    error: None = None


@dataclass(frozen=True, slots=True)
class FailedPrediction:
    """The row of an image that could not be localized: the fields of Prediction, empty."""

    status: Status
    error: str
    width: None = None
    height: None = None
    labels: tuple[()] = ()
    names: tuple[()] = ()
    scores: tuple[()] = ()
    cams: None = None
    boxes: tuple[()] = ()
    targets: tuple[()] = ()

    @classmethod
    def of(cls, failure: Failure) -> "FailedPrediction":
        return cls(failure.status, failure.reason)


AnyPrediction = Prediction | FailedPrediction


@dataclass(frozen=True, slots=True)
class ClassMaps:
    """Maps and boxes of M pairs of an image and a class, image after image.

    labels_M, scores_M: int32 and float32. cams_Mhw: float16, signed and raw. boxes_L: BOX_DTYPE, in the
    order of the pairs; counts_M: how many of them each pair has.
    """

    labels_M: NDArray[np.int32]
    scores_M: NDArray[np.float32]
    cams_Mhw: NDArray[np.float16]
    boxes_L: np.ndarray
    counts_M: NDArray[np.int64]

    def where(self, chosen_M: NDArray[np.bool_]) -> "ClassMaps":
        """Those pairs alone."""
        return ClassMaps(
            self.labels_M[chosen_M],
            self.scores_M[chosen_M],
            self.cams_Mhw[chosen_M],
            self.boxes_L[np.repeat(chosen_M, self.counts_M)],
            self.counts_M[chosen_M],
        )


@dataclass(frozen=True, slots=True)
class Predictions:
    """What a network says of a batch, as columns: of B images, G of which could be localized.

    failures: at their places in the batch, None at those of the G. class_names: of all the network's
    classes. sizes_G2: width and height of the images as displayed, int32. best: the K best classes of each of
    the G, best first. known: the classes that they are known to hold, known_G of them each.
    """

    failures: Sequence[Failure | None]
    class_names: Sequence[str]
    sizes_G2: NDArray[np.int32]
    best: ClassMaps
    known: ClassMaps
    known_G: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.failures)

    @property
    def statuses(self) -> list[Status]:
        """One an image."""
        return ["ok" if failure is None else failure.status for failure in self.failures]

    def rows(self) -> list[AnyPrediction]:
        """One an image, whose arrays are views of the columns."""
        localized = iter(self._localized())
        return [next(localized) if f is None else FailedPrediction.of(f) for f in self.failures]

    def _localized(self) -> list[Prediction]:
        images = len(self.sizes_G2)
        if not images:
            return []
        best, known = self.best, self.known
        k = len(best.labels_M) // images
        boxes = _pieces(best.boxes_L, best.counts_M.reshape(images, k).sum(1))
        target_boxes = _pieces(known.boxes_L[list(TARGET_BOX_DTYPE.names or ())], known.counts_M)
        targets = [
            Target(int(label), float(score), cam_hw, found.astype(TARGET_BOX_DTYPE))
            for label, score, cam_hw, found in zip(
                known.labels_M, known.scores_M, known.cams_Mhw, target_boxes, strict=True
            )
        ]
        ends = np.cumsum(self.known_G)
        return [
            Prediction(
                int(self.sizes_G2[g, 0]),
                int(self.sizes_G2[g, 1]),
                best.labels_M[g * k : g * k + k],
                tuple(self.class_names[label] for label in best.labels_M[g * k : g * k + k]),
                best.scores_M[g * k : g * k + k],
                best.cams_Mhw[g * k : g * k + k],
                boxes[g],
                tuple(targets[ends[g] - self.known_G[g] : ends[g]]),
            )
            for g in range(images)
        ]


def make_boxes(
    labels_M: NDArray[np.int32],
    scores_M: NDArray[np.float32],
    ranks_M: NDArray[np.int64],
    corners_L4: NDArray[np.float32],
    counts_M: NDArray[np.int64],
) -> np.ndarray:
    """Boxes of M classes as BOX_DTYPE [L], in the order given; counts_M: how many each class has."""
    boxes_L = np.empty(len(corners_L4), BOX_DTYPE)
    for name, values_M in (("rank", ranks_M), ("label", labels_M), ("score", scores_M)):
        boxes_L[name] = np.repeat(values_M, counts_M)
    for column, corner in enumerate(CORNERS):
        boxes_L[corner] = corners_L4[:, column]
    return boxes_L


def corners(boxes: np.ndarray) -> NDArray[np.float32]:
    """The corners of structured boxes: float32 N x 4."""
    return np.stack([boxes[corner] for corner in CORNERS], axis=-1)


def to_float16(maps: NDArray[np.float32]) -> NDArray[np.float16]:
    """Round maps as they are stored. Raises MapOverflowError instead of writing an infinity."""
    with np.errstate(over="ignore"):
        rounded = maps.astype(np.float16)
    if not np.isfinite(rounded).all():
        raise MapOverflowError("a class activation map has values that float16 cannot hold")
    return rounded


def _pieces(values_L: np.ndarray, counts_M: NDArray[np.int64]) -> list[np.ndarray]:
    """values_L cut into pieces of these lengths."""
    ends = np.cumsum(counts_M)
    return [values_L[end - count : end] for end, count in zip(ends, counts_M, strict=True)]
