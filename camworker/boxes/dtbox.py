"""dtbox: a map's loose and tight box by distance transforms, as the code released with the paper makes them.

Zhou et al. (CVPR 2016) published `bboxgenerator` with their ILSVRC figures; it differs from the paper's
text, which is cam20. It works on a map of the original image's size.
"""

from math import sqrt
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from camworker.frame import Frame

_LEVELS: Final = (20, 100, 110)  # of grey, 0..255
_MARGIN: Final = 5  # pixels at the right and the bottom that no box covers


def on_original(cam_hw: NDArray[np.floating], frame: Frame) -> NDArray[np.float32]:
    """The map at the size of the original image: float32 [height, width], bilinear, half-pixel centres.

    Under "crop" the map covers the centre square, to the nearest pixel, and is zero elsewhere.
    """
    side = frame.input_size
    square = np.rint(frame.to_original(np.array([[0, 0, side, side]])))[0].astype(int)
    left, top, right, bottom = square.tolist()
    # Of an image one pixel wide or high, the square can begin and end between the same two pixels' centres.
    size = (max(1, right - left), max(1, bottom - top))
    resized = cv2.resize(np.asarray(cam_hw, np.float32), size, interpolation=cv2.INTER_LINEAR)
    if size == (frame.width, frame.height):
        return resized
    map_HW = np.zeros((frame.height, frame.width), np.float32)
    map_HW[top : top + size[1], left : left + size[0]] = resized
    return map_HW


def dt_boxes(map_HW: NDArray[np.floating]) -> NDArray[np.float32]:
    """The loose and the tight box of a map: float32 [2, 4], half-open, whole pixels of the map given.

    g = round(255 M / max M), negative values as zero. For t in 20, 100, 110: of the mask g > t the core
    (see core), and the bounding boxes of its outlines and of its holes' outlines; then loose_and_tight.
    Each t gives one box or more. Where the map has no positive value, or a side of at most 5 pixels (as
    released no box has an area there), both are the box over the whole map.

    About 0.4 s for 12 megapixels, 5 ms for 500x375, one core; the distance transforms are most of it.
    """
    map_HW = np.asarray(map_HW, np.float32)
    height, width = map_HW.shape
    peak = float(map_HW.max())
    if not peak > 0 or min(height, width) <= _MARGIN:
        return np.array([[0, 0, width, height]] * 2, np.float32)
    found = [box for level in _LEVELS for box in _outlines(_above(map_HW, level, peak))]
    xy_N2, wh_N2 = np.hsplit(np.array(found), 2)
    # As released: the room is counted from the corner before it is clipped, and can be negative.
    room_N2 = np.array([width, height]) - _MARGIN - xy_N2
    boxes_N4 = np.hstack([xy_N2 + np.minimum(room_N2, 0), np.minimum(wh_N2, room_N2)])
    xy_22, wh_22 = np.hsplit(loose_and_tight(boxes_N4), 2)
    corners = np.sort(np.stack([xy_22, xy_22 + wh_22]), axis=0)  # the release's reader orders them too
    return np.hstack(list(np.clip(corners, 0, None))).astype(np.float32)


def core(mask_HW: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The pixels of a mask (0 and 1) that are deep in it: uint8 0 and 1, [H, W].

    q = floor(255 d / max d + .5) of the exact Euclidean distance d to the nearest zero pixel; q > 10 is
    kept. The border is not background. A mask of a single value stays as it is.
    """
    if mask_HW.min() == mask_HW.max():
        return mask_HW
    d_HW = cv2.distanceTransform(mask_HW, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    # q > 10 says d / max d >= 10.5 / 255 = 7 / 170. Squared distances are whole numbers: halfway between
    # two of them the rounding of float32 decides nothing.
    least = -(-49 * round(float(d_HW.max()) ** 2) // 28900)
    return (d_HW > sqrt(least - 0.5)).view(np.uint8)


def loose_and_tight(boxes_N4: NDArray[np.integer]) -> NDArray[np.integer]:
    """The two boxes that the release ends with, of N >= 1 rows of x, y, width, height: [2, 4].

    By area, descending, equal ones in the order given: the first is loose. The second is dropped if its
    overlap with the first exceeds floor(half the larger's area); as released, the third then takes its
    place without being compared. The one after the first is tight; where there is none, the loose one is.
    """
    areas_N = boxes_N4[:, 2] * boxes_N4[:, 3]
    ranked_N4 = boxes_N4[np.argsort(-areas_N, kind="stable")]
    if len(ranked_N4) > 1 and _overlap_much(*ranked_N4[:2].tolist()):
        ranked_N4 = np.delete(ranked_N4, 1, axis=0)
    return ranked_N4[[0, min(1, len(ranked_N4) - 1)]]


def _above(map_HW: NDArray[np.float32], level: int, peak: float) -> NDArray[np.uint8]:
    """The mask g > level (0 and 1)."""
    # The least float32 that rounds to a grey above level: rounding the bound down would let others in.
    bound = (level + 0.5) * peak / 255
    least = np.float32(bound)
    if float(least) < bound:
        least = np.nextafter(least, np.float32(np.inf))
    return (map_HW >= least).view(np.uint8)


def _outlines(mask_HW: NDArray[np.uint8]) -> list[tuple[int, int, int, int]]:
    """x, y, width, height around each contour of the mask's core."""
    x, y, width, height = cv2.boundingRect(mask_HW)
    # The nearest zero pixel is never farther out than one row or column around the mask.
    left, top = max(0, x - 1), max(0, y - 1)
    part_HW = mask_HW[top : y + height + 1, left : x + width + 1]
    contours, _ = cv2.findContours(core(part_HW), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE, offset=(left, top))
    return [cv2.boundingRect(contour) for contour in contours]


def _overlap_much(a: list[int], b: list[int]) -> bool:
    shared = [max(0, min(a[i] + a[i + 2], b[i] + b[i + 2]) - max(a[i], b[i])) for i in (0, 1)]
    return shared[0] * shared[1] > int(max(a[2] * a[3], b[2] * b[3]) / 2)
