"""Every threshold of a map judged at once: how well the boxes of its components meet the truth.

What the rules are is written down in maxboxacc.py and boxes.py, plainly; this is tested to give the same. It
is compiled (Numba), because sweeps are what a summary spends its time on.
"""

from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from camworker.boxes.maxboxacc import SIDE
from camworker.boxes.multi_threshold import AREA, FIELDS, HOLE, PARENT, PIXELS, XMIN, label_all_thresholds
from camworker.boxes.numba_jit import jit
from camworker.boxes.rules import iou
from camworker.frame import Frame

THRESHOLDS: Final = np.arange(100) / 100
_START_CAPACITY: Final = 320  # components of a threshold; grows when a map has more


@jit
def _overlap(box: Any, truth_M4: Any, one: float) -> float:
    """The best IoU of a box with any of the true ones; one: 1 where corners name the last pixel, else 0."""
    best = 0.0
    area = (box[2] - box[0] + one) * (box[3] - box[1] + one)
    for m in range(len(truth_M4)):
        true = truth_M4[m]
        width = min(box[2], true[2]) - max(box[0], true[0]) + one
        height = min(box[3], true[3]) - max(box[1], true[1]) + one
        if width > 0 and height > 0:
            inside = width * height
            union = area + (true[2] - true[0] + one) * (true[3] - true[1] + one) - inside
            if union > 0:
                best = max(best, inside / union)
    return best


@jit
def _judge(
    nodes: Any,
    counts: Any,
    by: int,
    clip: Any,
    scale: Any,
    offset: Any,
    truth_M4: Any,
    one: float,
    found_T2: Any,
) -> None:
    """found_T2: at each threshold the IoU of the largest component's box, and the best of any box.

    by: PIXELS or AREA, what largest means. Where it is area, edges of holes have boxes too, and of equals
    the last met wins (as OpenCV lists contours); else the first. A corner becomes (corner + offset) * scale,
    cut to clip, in float32.
    """
    box = np.zeros(4, np.float64)
    for t in range(len(counts)):
        largest = -1
        for node in range(1, counts[t]):
            if nodes[node, t, PARENT] == node and not nodes[node, t, HOLE]:
                size = nodes[node, t, by]
                if (
                    largest < 0
                    or size > nodes[largest, t, by]
                    or (size == nodes[largest, t, by] and by == AREA)
                ):
                    largest = node
        found_T2[t] = 0
        if largest < 0:
            box[:] = 0
            found_T2[t] = _overlap(box, truth_M4, one)
        for node in range(1, counts[t]):
            if nodes[node, t, PARENT] != node or (nodes[node, t, HOLE] and by == PIXELS):
                continue
            # The contour of a hole runs through the pixels around it.
            margin = nodes[node, t, HOLE]
            for c in range(4):
                corner = nodes[node, t, XMIN + c] + (margin if c >= 2 else -margin)
                box[c] = np.float32(min(max((corner + offset[c]) * scale[c], 0.0), clip[c]))
            overlap = _overlap(box, truth_M4, one)
            found_T2[t, 1] = max(found_T2[t, 1], overlap)
            if node == largest:
                found_T2[t, 0] = overlap


@jit
def _levels_of_score(map_HW: Any, level_of_grey: Any, levels_HW: Any) -> None:
    """How many thresholds lie below floor(255 m), m the min-max normalised map; see maxboxacc.score_map."""
    low: Any = map_HW[0, 0]
    high: Any = map_HW[0, 0]
    for y in range(map_HW.shape[0]):
        for x in range(map_HW.shape[1]):
            low, high = min(low, map_HW[y, x]), max(high, map_HW[y, x])
    span = np.float32(high - low)
    if not np.isfinite(span):
        return  # beyond float32: no contours, as of any map that is not finite
    for y in range(map_HW.shape[0]):
        for x in range(map_HW.shape[1]):
            score = np.float32(np.float32(map_HW[y, x] - low) / span)
            levels_HW[y, x] = level_of_grey[np.int64(np.float32(score * np.float32(255)))]


@jit
def _levels_of_bounds(map_HW: Any, bounds: Any, levels_HW: Any) -> None:
    """How many of the ascending bounds lie below each value."""
    count = len(bounds)
    per_value = (count - 1) / bounds[-1] if bounds[-1] > 0 else 0.0
    for y in range(map_HW.shape[0]):
        for x in range(map_HW.shape[1]):
            value = map_HW[y, x]
            level = min(max(int(value * per_value), 0), count)
            while level < count and bounds[level] < value:
                level += 1
            while level > 0 and not bounds[level - 1] < value:
                level -= 1
            levels_HW[y, x] = level


class Sweep:
    """Maps judged at every threshold. Holds room to work in: use one a thread.

    thresholds: ascending shares of a map's maximum, in [0, 1).
    """

    def __init__(self, thresholds: NDArray[np.float64] = THRESHOLDS) -> None:
        self.thresholds = thresholds
        self._make_room(_START_CAPACITY, SIDE)
        self._grey = np.searchsorted(_grey_thresholds(thresholds, 255), np.arange(256)).astype(np.uint8)

    def maxboxacc(self, cam_hw: NDArray[np.floating], corners_N4: NDArray[np.integer]) -> NDArray[np.float64]:
        """IoU at each threshold by Choe et al. (CVPR 2020): [T, 2], V1's box and the best of V2's.

        corners_N4: true boxes as maxboxacc.scaled_truth gives them. A map without contours has the box
        0, 0, 0, 0.
        """
        cam_hw = np.asarray(cam_hw, np.float32)
        levels = np.zeros((SIDE, SIDE), np.uint8)
        if cam_hw.min() < cam_hw.max() and np.isfinite(cam_hw).all():
            map_HW = cv2.resize(cam_hw, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
            _levels_of_score(map_HW, self._grey, levels)
        clip, nothing = np.full(4, SIDE - 1.0), np.zeros(4)
        return self._run(levels, AREA, clip, np.ones(4), nothing, corners_N4, 1.0)

    def cam(
        self, cam_hw: NDArray[np.floating], frame: Frame, corners_N4: NDArray[np.floating], *, inclusive: bool
    ) -> NDArray[np.float64]:
        """IoU at each threshold T of the box rule cam:T, and the best of any component's box: [T, 2].

        corners_N4: true boxes in original pixels; inclusive adds 1 to all widths and heights.
        """
        size = (frame.input_size, frame.input_size)
        map_HW = cv2.resize(np.asarray(cam_hw, np.float32), size, interpolation=cv2.INTER_LINEAR)
        peak = map_HW.max()
        if not peak > 0:
            whole = iou(frame.whole_image(), corners_N4, inclusive=inclusive).max()
            return np.full((len(self.thresholds), 2), whole)
        levels = np.empty(map_HW.shape, np.uint8)
        _levels_of_bounds(map_HW, self.thresholds.astype(np.float32) * peak, levels)
        scale, offset = frame.affine
        clip = np.array([frame.width, frame.height] * 2, np.float64)
        return self._run(levels, PIXELS, clip, scale, offset, corners_N4, float(inclusive))

    def _run(
        self,
        levels_HW: NDArray[np.uint8],
        by: int,
        clip: NDArray[np.float64],
        scale: NDArray[np.float64],
        offset: NDArray[np.float64],
        corners_N4: NDArray[np.number],
        one: float,
    ) -> NDArray[np.float64]:
        count = len(self.thresholds)
        if self._runs.shape[1] < levels_HW.shape[1] // 2 + 2:
            self._make_room(self._nodes.shape[0], levels_HW.shape[1])
        while not label_all_thresholds(levels_HW, count, self._nodes, self._counts, self._runs):
            self._make_room(4 * self._nodes.shape[0], levels_HW.shape[1])
        found_T2 = np.empty((count, 2))
        truth_M4 = np.ascontiguousarray(corners_N4, np.float64)
        _judge(self._nodes, self._counts, by, clip, scale, offset, truth_M4, one, found_T2)
        return found_T2

    def _make_room(self, capacity: int, width: int) -> None:
        count = len(self.thresholds)
        self._nodes = np.empty((capacity, count, FIELDS), np.int32)
        self._counts = np.empty(count, np.int32)
        self._runs = np.empty((2, width // 2 + 2, count, 4), np.int32)


def _grey_thresholds(thresholds: NDArray[np.float64], highest: int) -> NDArray[np.int64]:
    """floor(tau * maximum), as the released code does it."""
    return (thresholds * highest).astype(np.int64)
