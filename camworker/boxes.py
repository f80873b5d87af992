"""Maps -> boxes by named rule, and IoU. OpenCV and NumPy only: metrics run where no network does.

Boxes are float32 rows of xmin, ymin, xmax, ymax, half-open: the box over a whole map is 0, 0, W, H.
"""

from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from camworker.errors import UsageError
from camworker.frame import Frame

RULES: Final = ("cam20",)
_CAM20_THRESHOLD: Final = 0.20

Boxes = NDArray[np.float32]


def check_rule(rule: str) -> str:
    """Return rule if boxes_from_map knows it. Raises UsageError otherwise."""
    if rule not in RULES:
        raise UsageError(f"unknown box rule {rule!r}: choose from {', '.join(RULES)}")
    return rule


def boxes_from_map(map_HW: NDArray[np.floating], rule: str = "cam20") -> Boxes:
    """Boxes of one map, in pixels of the map given, best first (float32, N x 4, N >= 1).

    cam20 (the text of Zhou et al. 2016, section 3.2): mask = M > 0.20 * max(M); 8-connected
    components; the box around the one with most pixels, of equals the one met first in row order.
    A map without a positive value gives the box over the whole map.
    Raises UsageError for an unknown rule.
    """
    check_rule(rule)
    map_HW = np.asarray(map_HW, np.float32)
    peak = map_HW.max()
    if not peak > 0:
        return np.array([[0, 0, map_HW.shape[1], map_HW.shape[0]]], np.float32)
    mask = (map_HW > np.float32(_CAM20_THRESHOLD) * peak).astype(np.uint8)
    return _box_of_largest_component(mask)


def boxes_from_cam(cam_hw: NDArray[np.floating], frame: Frame, rule: str = "cam20") -> Boxes:
    """Boxes of one class activation map on the feature grid, in pixels of the original image.

    The map goes to the pixels of the network's input (bilinear, half-pixel centres), the boxes from
    there through frame. A map that has no positive value there gives the box over the whole original image.
    """
    check_rule(rule)
    size = (frame.input_size, frame.input_size)
    map_HW = cv2.resize(np.asarray(cam_hw, np.float32), size, interpolation=cv2.INTER_LINEAR)
    if not map_HW.max() > 0:
        return frame.whole_image()
    return frame.to_original(boxes_from_map(map_HW, rule))


def iou(a_N4: NDArray[np.floating], b_M4: NDArray[np.floating]) -> NDArray[np.float64]:
    """Intersection over union of half-open boxes: N x M, in 0..1. Two empty boxes have IoU 0."""
    a, b = (np.asarray(boxes).reshape(-1, 4) for boxes in (a_N4, b_M4))
    return paired_iou(a[:, None], b[None, :])


def paired_iou(a: NDArray[np.floating], b: NDArray[np.floating]) -> NDArray[np.float64]:
    """IoU of each box of a with its partner in b: [..., 4] and [..., 4], broadcast, to [...]."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    overlap = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    intersection = np.prod(np.clip(overlap, 0, None), axis=-1)
    areas_a, areas_b = (np.prod(np.clip(x[..., 2:] - x[..., :2], 0, None), axis=-1) for x in (a, b))
    union = areas_a + areas_b - intersection
    return np.divide(intersection, union, out=np.zeros_like(union), where=union > 0)


def _box_of_largest_component(mask_HW: NDArray[np.uint8]) -> Boxes:
    # Most masks are one component, and one contour without a parent says so ten times cheaper than
    # labelling does. Contours cannot rank several: their area is not the pixel count.
    contours, hierarchy = cv2.findContours(mask_HW, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    outer = np.flatnonzero(hierarchy.reshape(-1, 4)[:, 3] < 0)
    if len(outer) == 1:
        x, y, width, height = cv2.boundingRect(contours[outer[0]])
    else:
        _, labels, stats, _ = cv2.connectedComponentsWithStats(mask_HW, connectivity=8)
        areas = stats[:, cv2.CC_STAT_AREA].copy()
        areas[0] = 0  # the background
        largest = np.flatnonzero(areas == areas.max())
        # OpenCV's labels are not in row order; the first pixel of any of the largest decides.
        first = largest[0]
        if len(largest) > 1:
            first = labels.ravel()[np.isin(labels, largest).argmax()]
        x, y, width, height = stats[first, :4]
    return np.array([[x, y, x + width, y + height]], np.float32)
