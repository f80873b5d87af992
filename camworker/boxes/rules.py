"""Boxes from maps by named box rules.

Boxes are float32 rows of xmin, ymin, xmax, ymax, half-open: the box over a whole map is 0, 0, W, H.
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from camworker.boxes.dtbox import dt_boxes, on_original
from camworker.boxes.maxboxacc import SIDE, largest_contour_box, score_map
from camworker.errors import UsageError
from camworker.frame import Frame, to_original

# Rules as users write them. T and TAU are plain decimal numbers, at least 0 and below 1.
RULES: Final = ("cam20", "cam:T", "cam20-multi", "dtbox")
_FIXED: Final = {"cam20": ("cam", 0.20), "cam20-multi": ("multi", 0.20), "dtbox": ("dtbox", 0.0)}
_WITH_THRESHOLD: Final = re.compile(r"(cam|maxboxacc):([0-9]*\.?[0-9]+)")

Boxes = NDArray[np.float32]
_NO_BOX: Final = np.zeros((1, 4), np.int64)  # differs from every box of a component: these have an area


def check_rule(rule: str, *, maxboxacc: bool = False) -> str:
    """Return a box rule in its canonical spelling: "cam:.30" becomes "cam:0.3".

    Args:
        rule: A rule of `boxes_from_map`.
        maxboxacc: Whether maxboxacc:TAU is allowed; only exports and metrics allow it.

    Raises:
        UsageError: The rule does not exist or is not allowed; the message lists those that are.
    """
    name, threshold = _parse(rule)
    if name == "maxboxacc" and not maxboxacc:
        raise UsageError(f"box rule {rule!r} is for export and summarize: choose from {', '.join(RULES)}")
    if rule in _FIXED:
        return rule
    return f"{name}:{np.format_float_positional(threshold, trim='-')}"


def boxes_from_map(map_HW: NDArray[np.floating], rule: str = "cam20") -> Boxes:
    """Return the boxes of a map of any size, in pixels of that map.

    The rules, M being the map:

    - cam20 (Zhou et al., CVPR 2016, section 3.2): the mask is M > 0.20 * max(M). The box is the bounding box
    of
      the 8-connected component with the most pixels; of several, the one that row order meets first.
    - cam:T: the same with the threshold T, as in cam:0.3.
    - cam20-multi: the mask of cam20 and a box around each component that has at least a tenth of the largest
      component's pixels, ordered by the number of pixels, ties in row order.
    - dtbox: the loose and the tight box, see `dtbox.dt_boxes`.
    - maxboxacc:TAU (Choe et al., CVPR 2020): the largest contour of the score map, see
      `maxboxacc.largest_contour_box`, scaled to the map. This box can be empty.

    Except for maxboxacc:TAU, a map without a positive value gives the box over the whole map.

    Args:
        map_HW: The map [H, W].
        rule: Name of the box rule.

    Returns:
        float32 [N, 4], N >= 1, the best box first.

    Raises:
        UsageError: The rule does not exist.
    """
    name, threshold = _parse(rule)
    map_HW = np.asarray(map_HW, np.float32)
    height, width = map_HW.shape
    if name == "dtbox":
        return dt_boxes(map_HW)
    if name == "maxboxacc":
        return _largest_contour(map_HW, threshold, (width, height))
    boxes_N4 = _boxes_above(np.ascontiguousarray(map_HW), name, threshold)
    return np.array([[0, 0, width, height]] if boxes_N4 is _NO_BOX else boxes_N4, np.float32)


def boxes_from_cam(cam_hw: NDArray[np.floating], frame: Frame, rule: str = "cam20") -> Boxes:
    """Return the boxes of a class activation map in pixels of the original image.

    The map is upsampled from the feature grid to the network's input (bilinear, half-pixel centres), and the
    boxes that the rule finds there are mapped through the frame. A map without a positive value gives the box
    over the whole original image. dtbox upsamples to the original image instead, see `dtbox.on_original`;
    maxboxacc upsamples to its own 224x224 square, whose boxes are scaled to the network's input.

    Args:
        cam_hw: Class activation map on the feature grid, [h, w].
        frame: The frame of the map's image.
        rule: Name of the box rule, see `boxes_from_map`.

    Returns:
        float32 [N, 4], N >= 1, the best box first.

    Raises:
        UsageError: The rule does not exist.
    """
    boxes_N4, _ = boxes_from_cams(np.asarray(cam_hw)[None], [frame], np.zeros(1, np.int64), rule)
    return boxes_N4


def boxes_from_cams(
    cams_Mhw: NDArray[np.floating], frames: Sequence[Frame], image_M: NDArray[np.int64], rule: str = "cam20"
) -> tuple[Boxes, NDArray[np.int64]]:
    """Return the boxes of many class activation maps, as `boxes_from_cam` does for one.

    Args:
        cams_Mhw: Class activation maps of M labels, [M, h, w].
        frames: Frames of the images, which may differ only in the size of the original image.
        image_M: The index into frames of each map's image, [M].
        rule: Name of the box rule, see `boxes_from_map`.

    Returns:
        The boxes, map after map, float32 [L, 4], and the number of boxes of each map, int64 [M].

    Raises:
        UsageError: The rule does not exist.
    """
    name, threshold = _parse(rule)
    if not len(image_M):
        return np.empty((0, 4), np.float32), np.zeros(0, np.int64)
    cams_Mhw = np.ascontiguousarray(cams_Mhw, np.float32)
    size = (frames[0].input_size, frames[0].input_size)
    boxes: list[NDArray[np.number]]
    if name == "dtbox":
        pairs = zip(cams_Mhw, image_M, strict=True)
        boxes = [dt_boxes(on_original(cam_hw, frames[image])) for cam_hw, image in pairs]
    elif name == "maxboxacc":
        boxes = [_largest_contour(cam_hw, threshold, size) for cam_hw in cams_Mhw]
    else:
        buffer_HW = np.empty(size, np.float32)  # shared by all maps, so that it stays in the CPU cache
        maps = (cv2.resize(cam_hw, size, buffer_HW, interpolation=cv2.INTER_LINEAR) for cam_hw in cams_Mhw)
        boxes = [_boxes_above(map_HW, name, threshold) for map_HW in maps]
    counts_M = np.array([len(map_boxes) for map_boxes in boxes])
    boxes_L4 = np.concatenate(boxes)
    if name == "dtbox":
        return boxes_L4, counts_M
    sizes_B2 = np.array([(frame.width, frame.height) for frame in frames])
    sizes_L2 = sizes_B2[np.repeat(image_M, counts_M)]
    originals_L4 = to_original(boxes_L4, sizes_L2, frames[0].input_size, frames[0].resize)
    if name in ("cam", "multi"):
        no_box_L = boxes_L4[:, 2] == 0
        originals_L4[no_box_L, :2], originals_L4[no_box_L, 2:] = 0, sizes_L2[no_box_L]
    return originals_L4, counts_M


@lru_cache  # called for every map
def _parse(rule: str) -> tuple[str, float]:
    """Return the kind of a rule (cam, multi, dtbox, maxboxacc) and its threshold.

    Raises:
        UsageError: The rule does not exist.
    """
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
    """Return the boxes of cam:T or cam20-multi in map pixels, or _NO_BOX without a positive value."""
    # Importing Numba takes a third of a second, which checking a rule does not need.
    from camworker.boxes.connected_components import PIXELS, components_above

    peak = map_HW.max()
    if not peak > 0:
        return _NO_BOX
    level = np.float32(threshold) * peak
    if not level < peak:  # a threshold next to 1 can round to 1; the peak itself stays in the mask
        level = np.nextafter(peak, np.float32(0))
    components_N5: NDArray[np.int64] = components_above(map_HW, level)
    pixels_N = components_N5[:, PIXELS]
    if name == "cam":
        chosen = [pixels_N.argmax()]  # the first of several largest components
    else:
        order = np.argsort(-pixels_N, kind="stable")
        chosen = order[pixels_N[order] * 10 >= pixels_N.max()]
    return components_N5[chosen, :4]


def _largest_contour(cam_hw: NDArray[np.floating], tau: float, size: tuple[int, int]) -> Boxes:
    """Return the box of maxboxacc:TAU, scaled to a map of size (width, height)."""
    box_4 = largest_contour_box(score_map(cam_hw), tau)
    scaled: Boxes = (box_4 * np.array([size * 2]) / SIDE).astype(np.float32)
    return scaled
