"""Maps -> boxes by named rule, and IoU. OpenCV and NumPy only: metrics run where no network does.

Boxes are float32 rows of xmin, ymin, xmax, ymax, half-open: the box over a whole map is 0, 0, W, H.
"""

import re
from functools import lru_cache
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from camworker.dtbox import dt_boxes, on_original
from camworker.errors import UsageError
from camworker.frame import Frame
from camworker.maxboxacc import SIDE, largest, score_map

# As people write them; T and TAU are plain decimal numbers, at least 0 and below 1.
RULES: Final = ("cam20", "cam:T", "cam20-multi", "dtbox")
_FIXED: Final = {"cam20": ("cam", 0.20), "cam20-multi": ("multi", 0.20), "dtbox": ("dtbox", 0.0)}
_WITH_THRESHOLD: Final = re.compile(r"(cam|maxboxacc):([0-9]*\.?[0-9]+)")

Boxes = NDArray[np.float32]


def check_rule(rule: str, *, maxboxacc: bool = False) -> str:
    """Return rule in its one spelling ("cam:.30" is "cam:0.3") if boxes_from_map knows it.

    maxboxacc: whether maxboxacc:TAU will do, which export and summarize know.
    Raises UsageError otherwise, with the rules that will do.
    """
    name, threshold = _parse(rule)
    if name == "maxboxacc" and not maxboxacc:
        raise UsageError(f"box rule {rule!r} is for export and summarize: choose from {', '.join(RULES)}")
    if rule in _FIXED:
        return rule
    return f"{name}:{np.format_float_positional(threshold, trim='-')}"


def boxes_from_map(map_HW: NDArray[np.floating], rule: str = "cam20") -> Boxes:
    """Boxes of one map, in pixels of the map given, best first (float32, N x 4, N >= 1).

    cam20 (the text of Zhou et al. 2016, section 3.2): mask = M > 0.20 * max(M); 8-connected
    components; the box around the one with most pixels, of equals the one met first in row order.
    cam:T: the same with the threshold T.
    cam20-multi: the mask of cam20; a box around each component of at least a tenth of the largest one's
    pixels, by number of pixels, equal ones in row order.
    dtbox: the loose and the tight box of dtbox.dt_boxes.
    maxboxacc:TAU: maxboxacc.largest of the map's score map, scaled back; it can be empty.
    But for that last rule, a map without a positive value gives the box over the whole map.
    Raises UsageError for an unknown rule.
    """
    name, threshold = _parse(rule)
    map_HW = np.asarray(map_HW, np.float32)
    height, width = map_HW.shape
    if name == "dtbox":
        return dt_boxes(map_HW)
    if name == "maxboxacc":
        return _largest_contour(map_HW, threshold, (width, height))
    peak = map_HW.max()
    if not peak > 0:
        return np.array([[0, 0, width, height]], np.float32)
    return _boxes_above(map_HW, peak, name, threshold)


def boxes_from_cam(cam_hw: NDArray[np.floating], frame: Frame, rule: str = "cam20") -> Boxes:
    """Boxes of one class activation map on the feature grid, in pixels of the original image.

    The map goes to the pixels of the network's input (bilinear, half-pixel centres), the boxes from
    there through frame. A map that has no positive value there gives the box over the whole original image.
    dtbox takes the map to the pixels of the original instead (dtbox.on_original), maxboxacc to its own
    square, whose boxes are scaled to the network's input.
    """
    name, threshold = _parse(rule)
    size = (frame.input_size, frame.input_size)
    if name == "dtbox":
        return dt_boxes(on_original(cam_hw, frame))
    if name == "maxboxacc":
        return frame.to_original(_largest_contour(cam_hw, threshold, size))
    map_HW = cv2.resize(np.asarray(cam_hw, np.float32), size, interpolation=cv2.INTER_LINEAR)
    peak = map_HW.max()
    if not peak > 0:
        return frame.whole_image()
    return frame.to_original(_boxes_above(map_HW, peak, name, threshold))


def iou(
    a_N4: NDArray[np.number], b_M4: NDArray[np.number], *, inclusive: bool = False
) -> NDArray[np.float64]:
    """Intersection over union of half-open boxes: N x M, in 0..1. Two empty boxes have IoU 0.

    inclusive: corners name the last pixel, so that 1 is added to widths and heights (ILSVRC's kit).
    """
    a, b = (np.asarray(boxes).reshape(-1, 4) for boxes in (a_N4, b_M4))
    return paired_iou(a[:, None], b[None, :], inclusive=inclusive)


def paired_iou(
    a: NDArray[np.number], b: NDArray[np.number], *, inclusive: bool = False
) -> NDArray[np.float64]:
    """IoU of each box of a with its partner in b: [..., 4] and [..., 4], broadcast, to [...]."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    overlap = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]) + inclusive
    intersection = np.prod(np.clip(overlap, 0, None), axis=-1)
    areas_a, areas_b = (
        np.prod(np.clip(x[..., 2:] - x[..., :2] + inclusive, 0, None), axis=-1) for x in (a, b)
    )
    union = areas_a + areas_b - intersection
    return np.divide(intersection, union, out=np.zeros_like(union), where=union > 0)


@lru_cache  # asked for every map
def _parse(rule: str) -> tuple[str, float]:
    """The kind of a rule (cam, multi, dtbox, maxboxacc) and its threshold. Raises UsageError."""
    if rule in _FIXED:
        return _FIXED[rule]
    match = _WITH_THRESHOLD.fullmatch(rule)
    if match and float(match[2]) < 1:
        return match[1], float(match[2])
    raise UsageError(
        f"unknown box rule {rule!r}: choose from {', '.join(RULES)} (0 <= T < 1, as in cam:0.3), "
        "in export and summarize also maxboxacc:TAU"
    )


def _boxes_above(map_HW: NDArray[np.float32], peak: np.float32, name: str, threshold: float) -> Boxes:
    level = np.float32(threshold) * peak
    if not level < peak:  # a threshold next to 1 can round to it; the peak itself stays
        level = np.nextafter(peak, np.float32(0))
    mask = (map_HW > level).astype(np.uint8)
    return _boxes_of_components(mask) if name == "multi" else _box_of_largest_component(mask)


def _largest_contour(cam_hw: NDArray[np.floating], tau: float, size: tuple[int, int]) -> Boxes:
    """V1's box of maxboxacc, in pixels of something of size (width, height)."""
    return (largest(score_map(cam_hw), tau) * np.array([size * 2]) / SIDE).astype(np.float32)


def _boxes_of_components(mask_HW: NDArray[np.uint8]) -> Boxes:
    """Boxes of the components of at least a tenth of the largest one's pixels, by cam20-multi's order."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask_HW, connectivity=8)
    areas = stats[:, cv2.CC_STAT_AREA]
    areas[0] = 0  # the background
    large = np.flatnonzero(areas * 10 >= areas.max())
    # OpenCV's labels are not in row order: a component's first pixel is the first of its top row.
    tops = stats[large, cv2.CC_STAT_TOP]
    firsts = (labels[tops] == large[:, None]).argmax(axis=1)
    x, y, width, height = stats[large[np.lexsort((firsts, tops, -areas[large]))], :4].T
    return np.stack([x, y, x + width, y + height], axis=1).astype(np.float32)


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
