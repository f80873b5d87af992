"""The box rule fine-multi:T: a box for each of several parts of a refined map that look alike."""

from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

_STEPS: Final = 20  # levels at which the largest component is tried to be split
_PART_AREA: Final = 0.2  # the least area of a part, of the area of the component that is split
_PART_COSINE: Final = 0.95  # the least cosine between the mean features of two parts
_JOINING_AREA: Final = 0.25  # the least area of another component, of the area of the largest one
_JOINING_PEAK: Final = 0.8  # the least peak of another component, of the peak of the largest one


@dataclass(frozen=True, slots=True)
class _Component:
    mask_HW: NDArray[np.bool_]
    box: tuple[int, int, int, int]
    pixels: int


def similar_parts(
    map_HW: NDArray[np.float32], level: np.float32, fine_CHW: NDArray[np.float32]
) -> NDArray[np.int64]:
    """Return the boxes of the parts of a map that look alike.

    The largest 8-connected component of map > level is split at the lowest of 20 equally spaced higher levels
    that leaves at least two components of it with at least 0.2 of its area each, if the mean features of
    each of them have a cosine of at least 0.95 with those of the largest. They are the cores of the parts:
    every pixel of the component belongs to the part whose core is nearest. Another component of map > level
    joins with at least 0.25 of the area and 0.8 of the peak of the largest component.

    The cosine and the nearest cores were chosen by measurement (docs: camworker/README.md, "Tried beyond the
    reference method").

    Args:
        map_HW: The map, with a value above level, [H, W].
        level: The threshold.
        fine_CHW: Features of the image on a grid that covers the same area, [C, h, w].

    Returns:
        Half-open boxes in pixels of the map, by the number of pixels, int64 [N, 4], N >= 1.
    """
    components = _components(map_HW > level)
    largest, *others = components
    peak = map_HW[largest.mask_HW].max()
    parts = _split(map_HW, level, peak, largest, fine_CHW) or [largest]
    parts += [
        other
        for other in others
        if other.pixels >= _JOINING_AREA * largest.pixels
        and map_HW[other.mask_HW].max() >= _JOINING_PEAK * peak
    ]
    return np.array([part.box for part in sorted(parts, key=lambda part: -part.pixels)], np.int64)


def _split(
    map_HW: NDArray[np.float32],
    level: np.float32,
    peak: np.float32,
    component: _Component,
    fine_CHW: NDArray[np.float32],
) -> list[_Component]:
    """Return the parts of a component that look alike, or an empty list."""
    for higher in np.linspace(level, peak, _STEPS + 1, endpoint=False)[1:]:
        parts = _components(component.mask_HW & (map_HW > higher))
        parts = [part for part in parts if part.pixels >= _PART_AREA * component.pixels]
        if not parts:
            return []
        if len(parts) > 1:
            means_NC = np.stack([_mean_features(part.mask_HW, fine_CHW) for part in parts])
            means_NC /= np.maximum(np.linalg.norm(means_NC, axis=1, keepdims=True), 1e-12)
            return _grown(component, parts) if (means_NC @ means_NC[0] >= _PART_COSINE).all() else []
    return []


def _grown(component: _Component, cores: list[_Component]) -> list[_Component]:
    """Return a part for each core: the pixels of the component that are nearest to it.

    The cores are smaller than their objects, because they lie above a higher level. At the same distance the
    larger core gets the pixel.
    """
    distances_NHW = [
        cv2.distanceTransform((~core.mask_HW).view(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        for core in cores
    ]
    nearest_HW = np.argmin(distances_NHW, axis=0)
    parts = []
    for index in range(len(cores)):
        mask_HW = component.mask_HW & (nearest_HW == index)
        xs, ys = np.flatnonzero(mask_HW.any(axis=0)), np.flatnonzero(mask_HW.any(axis=1))
        box = (int(xs[0]), int(ys[0]), int(xs[-1]) + 1, int(ys[-1]) + 1)
        parts.append(_Component(mask_HW, box, int(mask_HW.sum())))
    return parts


def _components(mask_HW: NDArray[np.bool_]) -> list[_Component]:
    """Return the 8-connected components, the largest first, and equal ones in row order."""
    # This algorithm numbers components in row order of their first pixels; OpenCV's default does not.
    count, labels_HW, stats, _ = cv2.connectedComponentsWithStatsWithAlgorithm(
        mask_HW.view(np.uint8), 8, cv2.CV_32S, cv2.CCL_WU
    )
    pixels = stats[:, cv2.CC_STAT_AREA]
    found = []
    for label in sorted(range(1, count), key=lambda label: -pixels[label]):
        x, y, width, height = stats[label, :4].tolist()
        found.append(_Component(labels_HW == label, (x, y, x + width, y + height), int(pixels[label])))
    return found


def _mean_features(mask_HW: NDArray[np.bool_], fine_CHW: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the mean features [C] of the cells under a mask, weighted by the area that it covers of each."""
    size = (fine_CHW.shape[2], fine_CHW.shape[1])
    covered_hw: NDArray[np.float32] = cv2.resize(
        mask_HW.astype(np.float32), size, interpolation=cv2.INTER_AREA
    )
    mean_C: NDArray[np.float32] = np.tensordot(fine_CHW, covered_hw, 2) / max(covered_hw.sum(), 1e-12)
    return mean_C
