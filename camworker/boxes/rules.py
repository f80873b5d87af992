"""Maps -> boxes by named rule, and IoU. No torch: metrics run where no network does.

Boxes are float32 rows of xmin, ymin, xmax, ymax, half-open: the box over a whole map is 0, 0, W, H.
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from camworker.boxes.dtbox import dt_boxes, on_original
from camworker.boxes.maxboxacc import SIDE, largest_contour_box, score_map
from camworker.errors import UsageError
from camworker.frame import Frame, to_original

# As people write them; T and TAU are plain decimal numbers, at least 0 and below 1.
RULES: Final = ("cam20", "cam:T", "cam20-multi", "dtbox")
_FIXED: Final = {"cam20": ("cam", 0.20), "cam20-multi": ("multi", 0.20), "dtbox": ("dtbox", 0.0)}
_WITH_THRESHOLD: Final = re.compile(r"(cam|maxboxacc):([0-9]*\.?[0-9]+)")

Boxes = NDArray[np.float32]
_NOTHING: Final = np.zeros((1, 4), np.int64)  # no box that is found is empty


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
    found_N4 = _boxes_above(np.ascontiguousarray(map_HW), name, threshold)
    return np.array([[0, 0, width, height]] if found_N4 is _NOTHING else found_N4, np.float32)


def boxes_from_cam(cam_hw: NDArray[np.floating], frame: Frame, rule: str = "cam20") -> Boxes:
    """Boxes of one class activation map on the feature grid, in pixels of the original image.

    The map goes to the pixels of the network's input (bilinear, half-pixel centres), the boxes from
    there through frame. A map that has no positive value there gives the box over the whole original image.
    dtbox takes the map to the pixels of the original instead (dtbox.on_original), maxboxacc to its own
    square, whose boxes are scaled to the network's input.
    """
    boxes_N4, _ = boxes_from_cams(np.asarray(cam_hw)[None], [frame], np.zeros(1, np.int64), rule)
    return boxes_N4


def boxes_from_cams(
    cams_Mhw: NDArray[np.floating], frames: Sequence[Frame], image_M: NDArray[np.int64], rule: str = "cam20"
) -> tuple[Boxes, NDArray[np.int64]]:
    """Boxes of M maps as boxes_from_cam makes them: float32 [L, 4], map after map, and how many each has.

    image_M: whose map it is, an index into frames, which differ in the original's size alone.
    """
    name, threshold = _parse(rule)
    if not len(image_M):
        return np.empty((0, 4), np.float32), np.zeros(0, np.int64)
    cams_Mhw = np.ascontiguousarray(cams_Mhw, np.float32)
    size = (frames[0].input_size, frames[0].input_size)
    found: list[NDArray[Any]]
    if name == "dtbox":
        pairs = zip(cams_Mhw, image_M, strict=True)
        found = [dt_boxes(on_original(cam_hw, frames[image])) for cam_hw, image in pairs]
    elif name == "maxboxacc":
        found = [_largest_contour(cam_hw, threshold, size) for cam_hw in cams_Mhw]
    else:
        room_HW = np.empty(size, np.float32)  # one for all: it stays in the processor's cache
        maps = (cv2.resize(cam_hw, size, room_HW, interpolation=cv2.INTER_LINEAR) for cam_hw in cams_Mhw)
        found = [_boxes_above(map_HW, name, threshold) for map_HW in maps]
    counts_M = np.array([len(boxes) for boxes in found])
    boxes_L4 = np.concatenate(found)
    if name == "dtbox":
        return boxes_L4, counts_M
    sizes_B2 = np.array([(frame.width, frame.height) for frame in frames])
    sizes_L2 = sizes_B2[np.repeat(image_M, counts_M)]
    originals_L4 = to_original(boxes_L4, sizes_L2, frames[0].input_size, frames[0].resize)
    if name in ("cam", "multi"):
        nothing_L = boxes_L4[:, 2] == 0
        originals_L4[nothing_L, :2], originals_L4[nothing_L, 2:] = 0, sizes_L2[nothing_L]
    return originals_L4, counts_M


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


def _boxes_above(map_HW: NDArray[np.float32], name: str, threshold: float) -> NDArray[np.int64]:
    """Boxes of cam:T or cam20-multi on a map as it is, or _NOTHING where none of its values is positive."""
    # Numba takes a third of a second to import, which those who only check a rule need not wait for.
    from camworker.boxes.connected_components import PIXELS, components_above

    peak = map_HW.max()
    if not peak > 0:
        return _NOTHING
    level = np.float32(threshold) * peak
    if not level < peak:  # a threshold next to 1 can round to it; the peak itself stays
        level = np.nextafter(peak, np.float32(0))
    regions_N5 = components_above(map_HW, level)
    pixels_N = regions_N5[:, PIXELS]
    if name == "cam":
        chosen = [pixels_N.argmax()]  # of equals the first
    else:
        order = np.argsort(-pixels_N, kind="stable")
        chosen = order[pixels_N[order] * 10 >= pixels_N.max()]
    return regions_N5[chosen, :4]


def _largest_contour(cam_hw: NDArray[np.floating], tau: float, size: tuple[int, int]) -> Boxes:
    """V1's box of maxboxacc, in pixels of something of size (width, height)."""
    return (largest_contour_box(score_map(cam_hw), tau) * np.array([size * 2]) / SIDE).astype(np.float32)
