"""The box rule dtbox: a loose and a tight box of a map, made with distance transforms.

This is what `bboxgenerator` does, the code that Zhou et al. (CVPR 2016) released for their ILSVRC results. It
differs from the rule in the paper's text, which is cam20. It works on a map of the size of the original
image.
"""

from math import sqrt
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from camworker.frame import Frame

_LEVELS: Final = (20, 100, 110)  # grey levels in 0..255
_MARGIN: Final = 5  # no box covers the last 5 columns and rows


def on_original(cam_hw: NDArray[np.floating], frame: Frame) -> NDArray[np.float32]:
    """Resize a map to the original image (bilinear, half-pixel centres).

    With "crop" the map covers the centre square of the image, to the nearest pixel, and is zero elsewhere.

    Args:
        cam_hw: Class activation map [h, w].
        frame: The frame of the map's image.

    Returns:
        float32 [height, width] of the original image.
    """
    side = frame.input_size
    square = np.rint(frame.to_original(np.array([[0, 0, side, side]])))[0].astype(int)
    left, top, right, bottom = square.tolist()
    # In an image one pixel wide or high, the square can begin and end between the same two pixel centres.
    size = (max(1, right - left), max(1, bottom - top))
    resized: NDArray[np.float32] = cv2.resize(
        np.asarray(cam_hw, np.float32), size, interpolation=cv2.INTER_LINEAR
    )
    if size == (frame.width, frame.height):
        return resized
    map_HW = np.zeros((frame.height, frame.width), np.float32)
    map_HW[top : top + size[1], left : left + size[0]] = resized
    return map_HW


def dt_boxes(map_HW: NDArray[np.floating]) -> NDArray[np.float32]:
    """Return the loose and the tight box of a map.

    With g = round(255 M / max M), negative values counted as zero, and for t in 20, 100, 110: take the `core`
    of the mask g > t and the bounding boxes of its outer contours and of its holes' contours. Each t gives at
    least one box; `loose_and_tight` chooses two of all. If the map has no positive value, or a side of at
    most 5 pixels (for which the released code gives boxes without an area), both are the box over the whole
    map.

    This takes about 0.4 s for 12 megapixels and 5 ms for 500x375 on one core, most of it in the distance
    transforms.

    Args:
        map_HW: Map of the size of the original image, [H, W].

    Returns:
        float32 [2, 4], half-open, in whole pixels of the map.
    """
    map_HW = np.asarray(map_HW, np.float32)
    height, width = map_HW.shape
    peak = float(map_HW.max())
    if not peak > 0 or min(height, width) <= _MARGIN:
        return np.array([[0, 0, width, height]] * 2, np.float32)
    rectangles = [
        rectangle for level in _LEVELS for rectangle in _contour_rectangles(_above(map_HW, level, peak))
    ]
    xy_N2, wh_N2 = np.hsplit(np.array(rectangles), 2)
    # As in the released code, the room is counted from the corner before clipping and can be negative.
    room_N2 = np.array([width, height]) - _MARGIN - xy_N2
    boxes_N4 = np.hstack([xy_N2 + np.minimum(room_N2, 0), np.minimum(wh_N2, room_N2)])
    xy_22, wh_22 = np.hsplit(loose_and_tight(boxes_N4), 2)
    # The code that reads the released boxes orders their corners too.
    corners = np.sort(np.stack([xy_22, xy_22 + wh_22]), axis=0)
    return np.hstack(list(np.clip(corners, 0, None))).astype(np.float32)


def core(mask_HW: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the pixels of a mask that lie deep inside it.

    With d the exact Euclidean distance to the nearest zero pixel and q = floor(255 d / max d + .5), pixels
    with q > 10 are kept. The border of the map is not background. A mask of a single value is returned
    unchanged.

    Args:
        mask_HW: Zeros and ones, uint8 [H, W].

    Returns:
        Zeros and ones, uint8 [H, W].
    """
    if mask_HW.min() == mask_HW.max():
        return mask_HW
    d_HW: NDArray[np.float32] = cv2.distanceTransform(mask_HW, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    # q > 10 means d / max d >= 10.5 / 255 = 7 / 170. Squared distances are whole numbers, so a bound halfway
    # between two of them is safe from the rounding of float32.
    least = -(-49 * round(float(d_HW.max()) ** 2) // 28900)
    return (d_HW > sqrt(least - 0.5)).view(np.uint8)


def loose_and_tight(boxes_N4: NDArray[np.integer]) -> NDArray[np.integer]:
    """Choose the loose and the tight box as the released code does.

    The boxes are sorted by area, descending and stable. The first is the loose box. The second is dropped if
    its overlap with the first exceeds floor(half the area of the larger); as in the released code, the third
    then takes its place without being compared. The second remaining box is the tight box; if there is none,
    the loose box is.

    Args:
        boxes_N4: Boxes as x, y, width, height, [N, 4], N >= 1.

    Returns:
        The loose and the tight box as x, y, width, height, [2, 4].
    """
    areas_N = boxes_N4[:, 2] * boxes_N4[:, 3]
    ranked_N4 = boxes_N4[np.argsort(-areas_N, kind="stable")]
    if len(ranked_N4) > 1 and _overlap_much(*ranked_N4[:2].tolist()):
        ranked_N4 = np.delete(ranked_N4, 1, axis=0)
    return ranked_N4[[0, min(1, len(ranked_N4) - 1)]]


def _above(map_HW: NDArray[np.float32], level: int, peak: float) -> NDArray[np.uint8]:
    """Return the mask g > level as zeros and ones."""
    # The bound is the least float32 that rounds to a grey above level: rounded down, it would let others in.
    bound = (level + 0.5) * peak / 255
    least = np.float32(bound)
    if float(least) < bound:
        least = np.nextafter(least, np.float32(np.inf))
    return (map_HW >= least).view(np.uint8)


def _contour_rectangles(mask_HW: NDArray[np.uint8]) -> list[tuple[int, int, int, int]]:
    """Return x, y, width and height of each contour of the mask's core."""
    x, y, width, height = cv2.boundingRect(mask_HW)
    # The nearest zero pixel is never farther out than the row or column next to the mask.
    left, top = max(0, x - 1), max(0, y - 1)
    part_HW = mask_HW[top : y + height + 1, left : x + width + 1]
    contours, _ = cv2.findContours(core(part_HW), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE, offset=(left, top))
    return [cv2.boundingRect(contour) for contour in contours]


def _overlap_much(a: list[int], b: list[int]) -> bool:
    shared = [max(0, min(a[i] + a[i + 2], b[i] + b[i + 2]) - max(a[i], b[i])) for i in (0, 1)]
    return shared[0] * shared[1] > int(max(a[2] * a[3], b[2] * b[3]) / 2)
