"""Weak masks: the pixels of an image that stand out in a refined map (docs: jobs/README.md, Masks).

A mask says where a network looked, at an eighth of the resolution of its input. Nobody drew it.
"""

from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from camworker.boxes.dtbox import on_original
from camworker.frame import Frame

_SHARE: Final = 10  # components and holes with less than this part of the largest component are noise
_PEAK_SHARE: Final = 0.95  # the level stays below the peak, so that some pixel is above it


def weak_mask(map_hw: NDArray[np.floating], frame: Frame, threshold: float = 1.0) -> NDArray[np.bool_]:
    """Return the mask of a refined map, in pixels of the original image.

    The level is threshold * mean(M), M being the map upsampled to the network's input as for the box rule
    fine:T, but at most 0.95 max(M). The map is upsampled to the original image (bilinear, half-pixel centres)
    and compared with the level; with "crop" there is nothing outside of the centre square. The result is
    cleaned by `without_specks`.

    For an image of 12 megapixels this takes 0.15 s and 5 bytes per pixel besides the mask.

    Args:
        map_hw: Refined map M, not negative, [h, w].
        frame: The frame of the map's image.
        threshold: How far above the mean of the map the mask begins, at least 0.

    Returns:
        bool [height, width] of the original image. Nothing is set if the map has no positive value, or if no
        pixel of an image smaller than the map lies on its peak.
    """
    map_hw = np.asarray(map_hw, np.float32)
    if not map_hw.max() > 0:
        return np.zeros((frame.height, frame.width), np.bool_)
    input_SS = cv2.resize(map_hw, (frame.input_size, frame.input_size), interpolation=cv2.INTER_LINEAR)
    level = np.float32(min(threshold * float(input_SS.mean()), _PEAK_SHARE * float(input_SS.max())))
    return without_specks(on_original(map_hw, frame) > level)


def without_specks(mask_HW: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Remove small components (8-connected) from a mask, and fill small holes (4-connected).

    A component is small if it has less than a tenth of the pixels of the largest component, not counting its
    holes. A hole is small if it has less than that with everything that lies in it.

    Args:
        mask_HW: The mask [H, W].

    Returns:
        A new mask [H, W].
    """
    cleaned_HW = mask_HW.astype(np.uint8)
    contours, hierarchy = cv2.findContours(cleaned_HW, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    if len(contours) > 1:
        component_of = hierarchy[0, :, 3]  # of a hole, the component around it; of a component, -1
        components, holes = np.flatnonzero(component_of < 0), np.flatnonzero(component_of >= 0)
        enclosed = np.zeros(len(contours), np.int64)
        enclosed[components] = [_pixels(contours[number], inside=False) for number in components.tolist()]
        enclosed[holes] = [_pixels(contours[number], inside=True) for number in holes.tolist()]
        pixels = enclosed.copy()
        np.subtract.at(pixels, component_of[holes], enclosed[holes])
        largest = pixels[components].max()
        small = pixels * _SHARE < largest
        for number in components[small[components]]:
            # Its holes are one level below it: without them, because they can hold larger components.
            cv2.drawContours(cleaned_HW, contours, number, 0, cv2.FILLED, hierarchy=hierarchy, maxLevel=1)
        for number in holes[small[holes] & ~small[component_of[holes]]]:
            cv2.drawContours(cleaned_HW, contours, number, 1, cv2.FILLED)
    return cleaned_HW.view(np.bool_)


def _pixels(contour: NDArray[np.int32], *, inside: bool) -> int:
    """Return how many pixels lie within a contour; with `inside` without the pixels that it passes through.

    By Pick's theorem a polygon of area A through L pixels holds A - L / 2 + 1 pixels in its inside and L on
    its edge. This also holds for a contour that returns along lines one pixel wide.
    """
    steps_N2 = np.abs(np.diff(contour[:, 0], axis=0, append=contour[:1, 0]))
    length = int(steps_N2.max(axis=1).sum())
    return (round(2 * cv2.contourArea(contour)) + 2 + (-length if inside else length)) // 2
