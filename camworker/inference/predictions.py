"""Predictions: those of a batch as columns, which become a table, and those of one image as an object."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

from camworker.errors import Failure, Status
from camworker.frame import CORNERS

BOX_DTYPE: Final = np.dtype(
    [
        *(("rank", "i1"), ("label", "<i4"), ("score", "<f4")),
        *((corner, "<f4") for corner in CORNERS),
        ("fallback", "?"),
    ]
)
TARGET_BOX_DTYPE: Final = np.dtype([field for field in BOX_DTYPE.descr if field[0] != "rank"])


@dataclass(frozen=True, slots=True)
class Target:
    """The prediction for one of an image's target classes: those that it is known to hold.

    Attributes:
        label: Index of the class.
        score: Its score, in 0..1.
        cam: Its class activation map, signed and not normalized, float16 [h, w].
        boxes: Its boxes, best first; `BOX_DTYPE` without the rank.
        refined: Its refined map, uint8 [H8, W8], see `Prediction`; None without refinement.
    """

    label: int
    score: float
    cam: NDArray[np.float16]
    boxes: NDArray[np.void]
    refined: NDArray[np.uint8] | None = None


@dataclass(frozen=True, slots=True)
class Prediction:
    """The prediction for one image, with the fields of its row.

    Attributes:
        width: Width of the image as displayed, in pixels.
        height: Height of the image as displayed, in pixels.
        labels: Indices of the K best classes, best first, int32 [K].
        names: Names of these classes.
        scores: Scores of these classes, in 0..1, float32 [K].
        cams: Class activation maps of these classes, signed and not normalized, float16 [K, h, w].
        boxes: Boxes of these classes, `BOX_DTYPE`: half-open, in pixels of the image as displayed; the rank
            counts from 1; fallback marks the box over the whole image, of a map without a positive value.
        targets: The predictions for the target classes, by class index.
        refined: Refined maps, round(255 sqrt(M / max M)), of the best class, uint8 [1, H8, W8], or of all,
            [K, H8, W8]; None without refinement.
        status: Always "ok".
        error: Always None.
    """

    width: int
    height: int
    labels: NDArray[np.int32]
    names: tuple[str, ...]
    scores: NDArray[np.float32]
    cams: NDArray[np.float16]
    boxes: NDArray[np.void]
    targets: tuple[Target, ...] = ()
    refined: NDArray[np.uint8] | None = None
    status: Status = "ok"
    error: None = None


@dataclass(frozen=True, slots=True)
class FailedPrediction:
    """The result for an image that could not be localized: the fields of `Prediction`, without values.

    Attributes:
        status: Why there is no prediction; never "ok".
        error: An explanation for people, one line.
        width: Always None.
        height: Always None.
        labels: Always empty.
        names: Always empty.
        scores: Always empty.
        cams: Always None.
        boxes: Always empty.
        targets: Always empty.
        refined: Always None.
    """

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
    refined: None = None

    @classmethod
    def from_failure(cls, failure: Failure) -> Self:
        """Return the prediction for an image that failed."""
        return cls(failure.status, failure.reason)


AnyPrediction = Prediction | FailedPrediction


@dataclass(frozen=True, slots=True)
class ClassMaps:
    """Maps and boxes of M pairs of an image and a class, image after image.

    Attributes:
        labels_M: Index of each pair's class, int32.
        scores_M: Score of each pair, in 0..1, float32.
        cams_Mhw: Class activation map of each pair, signed and not normalized, float16.
        corners_L4: The boxes, pair after pair: xmin, ymin, xmax, ymax in pixels of the image as displayed,
            float32.
        counts_M: Number of boxes of each pair, int64.
        fallback_L: Whether each box is the one over the whole image, because the map has no positive value.
        refined_Mhw: Refined map of each pair, uint8; of an image's best classes the first class only, unless
            those of all are to be stored. None without refinement.
    """

    labels_M: NDArray[np.int32]
    scores_M: NDArray[np.float32]
    cams_Mhw: NDArray[np.float16]
    corners_L4: NDArray[np.float32]
    counts_M: NDArray[np.int64]
    fallback_L: NDArray[np.bool_]
    refined_Mhw: NDArray[np.uint8] | None


@dataclass(frozen=True, slots=True)
class Predictions:
    """The predictions for a batch of B images as columns; G of the images were localized.

    Attributes:
        failures: For each of the B images why it has no prediction; None if it has one.
        class_names: Names of all classes of the network.
        sizes_G2: Width and height of the images as displayed, in pixels, int32.
        best: The K best classes of each of the G images, best first.
        targets: The target classes of each of the G images, by class index.
        target_counts_G: Number of target classes of each image, int64.
    """

    failures: Sequence[Failure | None]
    class_names: Sequence[str]
    sizes_G2: NDArray[np.int32]
    best: ClassMaps
    targets: ClassMaps
    target_counts_G: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.failures)

    @property
    def statuses(self) -> list[Status]:
        """The status of each of the B images."""
        return ["ok" if failure is None else failure.status for failure in self.failures]

    def rows(self) -> list[AnyPrediction]:
        """Return a prediction for each of the B images; its arrays, not its boxes, are views of columns."""
        localized = iter(self._localized())
        return [next(localized) if f is None else FailedPrediction.from_failure(f) for f in self.failures]

    def _localized(self) -> list[Prediction]:
        images = len(self.sizes_G2)
        if not images:
            return []
        best, targets = self.best, self.targets
        k = len(best.labels_M) // images
        ranks_M = np.tile(np.arange(1, k + 1), images)
        boxes = _split(_structured(best, BOX_DTYPE, ranks_M), best.counts_M.reshape(images, k).sum(1))
        target_boxes = _split(_structured(targets, TARGET_BOX_DTYPE), targets.counts_M)
        target_columns = (targets.labels_M, targets.scores_M, targets.cams_Mhw, target_boxes)
        target_refined = _refined(targets.refined_Mhw, [1] * len(targets.labels_M))
        target_rows = [
            Target(int(label), float(score), cam_hw, boxes_N, None if refined is None else refined[0])
            for label, score, cam_hw, boxes_N, refined in zip(*target_columns, target_refined, strict=True)
        ]
        each = 0 if best.refined_Mhw is None else len(best.refined_Mhw) // images
        refined_G = _refined(best.refined_Mhw, [each] * images)
        ends = np.cumsum(self.target_counts_G)
        return [
            Prediction(
                int(self.sizes_G2[g, 0]),
                int(self.sizes_G2[g, 1]),
                best.labels_M[g * k : g * k + k],
                tuple(self.class_names[label] for label in best.labels_M[g * k : g * k + k]),
                best.scores_M[g * k : g * k + k],
                best.cams_Mhw[g * k : g * k + k],
                boxes[g],
                tuple(target_rows[ends[g] - self.target_counts_G[g] : ends[g]]),
                refined_G[g],
            )
            for g in range(images)
        ]


def _structured(
    classes: ClassMaps, dtype: DTypeLike, ranks_M: NDArray[np.int64] | None = None
) -> NDArray[np.void]:
    """Return the boxes as a structured array, [L]."""
    boxes_L = np.empty(len(classes.corners_L4), dtype)
    columns_M: dict[str, NDArray[Any]] = {"label": classes.labels_M, "score": classes.scores_M}
    if ranks_M is not None:
        columns_M["rank"] = ranks_M
    for name, values_M in columns_M.items():
        boxes_L[name] = np.repeat(values_M, classes.counts_M)
    for column, corner in enumerate(CORNERS):
        boxes_L[corner] = classes.corners_L4[:, column]
    boxes_L["fallback"] = classes.fallback_L
    return boxes_L


def _split(values_L: NDArray[Any], counts_M: NDArray[np.int64]) -> list[NDArray[Any]]:
    """Split an array into consecutive pieces of these lengths."""
    ends = np.cumsum(counts_M)
    return [values_L[end - count : end] for end, count in zip(ends, counts_M, strict=True)]


def _refined(maps: NDArray[np.uint8] | None, counts: Sequence[int]) -> Sequence[NDArray[np.uint8] | None]:
    """Split refined maps into consecutive pieces of these lengths; None for each without refinement."""
    return [None] * len(counts) if maps is None else _split(maps, np.array(counts, np.int64))
