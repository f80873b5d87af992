"""The IoU of a map's boxes with the true boxes at every threshold, computed at once.

The results equal those of the plain implementations of the rules in boxes/maxboxacc.py and boxes/rules.py.
The kernels are compiled (Numba), because `summarize` spends most of its time on sweeps.
"""

from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from camworker.boxes.connected_components import PARENT, PIXELS, XMIN
from camworker.boxes.iou import iou
from camworker.boxes.maxboxacc import SIDE
from camworker.boxes.multi_threshold import AREA, HOLE, NODE_COLUMNS, label_all_thresholds
from camworker.boxes.numba_jit import jit
from camworker.frame import Frame

THRESHOLDS: Final = np.arange(100) / 100
_START_CAPACITY: Final = 320  # nodes per threshold; grows when a map has more


@jit
def _best_iou(box: Any, truth_M4: Any, one: float) -> float:
    """Return the best IoU of a box with any of the true boxes.

    one is 1 if corners name the last pixel (see `iou`), else 0.
    """
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
def _match_boxes(
    nodes: Any,
    counts: Any,
    by: int,
    clip: Any,
    scale: Any,
    offset: Any,
    truth_M4: Any,
    one: float,
    iou_T2: Any,
) -> None:
    """Write the IoU at each threshold into iou_T2: of the largest component's box, and the best of all boxes.

    by is the column, PIXELS or AREA, that decides which component is the largest. With AREA, the edges of
    holes have boxes too, and the last of several largest components wins, as in OpenCV's list of contours;
    with PIXELS the first one wins. A corner in map pixels becomes (corner + offset) * scale, clipped to
    0..clip, in float32.
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
        iou_T2[t] = 0
        if largest < 0:
            box[:] = 0
            iou_T2[t] = _best_iou(box, truth_M4, one)
        for node in range(1, counts[t]):
            if nodes[node, t, PARENT] != node or (nodes[node, t, HOLE] and by == PIXELS):
                continue
            # The contour of a hole runs through the pixels around the hole.
            margin = nodes[node, t, HOLE]
            for c in range(4):
                corner = nodes[node, t, XMIN + c] + (margin if c >= 2 else -margin)
                box[c] = np.float32(min(max((corner + offset[c]) * scale[c], 0.0), clip[c]))
            overlap = _best_iou(box, truth_M4, one)
            iou_T2[t, 1] = max(iou_T2[t, 1], overlap)
            if node == largest:
                iou_T2[t, 0] = overlap


@jit
def _levels_of_score(map_HW: Any, level_of_grey: Any, levels_HW: Any) -> None:
    """Write the number of thresholds below floor(255 m) of each pixel m of the min-max normalised map.

    The arithmetic is that of maxboxacc.score_map.
    """
    low: Any = map_HW[0, 0]
    high: Any = map_HW[0, 0]
    for y in range(map_HW.shape[0]):
        for x in range(map_HW.shape[1]):
            low, high = min(low, map_HW[y, x]), max(high, map_HW[y, x])
    span = np.float32(high - low)
    if not np.isfinite(span):
        return  # the range overflows float32: no contours, as for any map that is not finite
    for y in range(map_HW.shape[0]):
        for x in range(map_HW.shape[1]):
            score = np.float32(np.float32(map_HW[y, x] - low) / span)
            levels_HW[y, x] = level_of_grey[np.int64(np.float32(score * np.float32(255)))]


@jit
def _levels_of_bounds(map_HW: Any, bounds: Any, levels_HW: Any) -> None:
    """Write how many of the ascending bounds lie below each value of the map."""
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
    """Evaluates maps at every threshold.

    An instance owns the buffers that it works in, so each thread needs one of its own.

    Attributes:
        thresholds: Ascending shares of a map's maximum in [0, 1), float64 [T].
    """

    def __init__(self, thresholds: NDArray[np.float64] = THRESHOLDS) -> None:
        self.thresholds = thresholds
        self._allocate(_START_CAPACITY, SIDE)
        self._grey = np.searchsorted(_grey_thresholds(thresholds, 255), np.arange(256)).astype(np.uint8)

    def maxboxacc(self, cam_hw: NDArray[np.floating], corners_N4: NDArray[np.integer]) -> NDArray[np.float64]:
        """Return the IoU at each threshold as Choe et al. (CVPR 2020) compute it.

        Args:
            cam_hw: Class activation map [h, w].
            corners_N4: True boxes in the 224x224 square as from `maxboxacc.scaled_truth`, [N, 4].

        Returns:
            float64 [T, 2]: IoU of MaxBoxAcc's box (V1), and the best of all boxes (V2). A map without
            contours has the box 0, 0, 0, 0.
        """
        cam_hw = np.asarray(cam_hw, np.float32)
        levels = np.zeros((SIDE, SIDE), np.uint8)
        if cam_hw.min() < cam_hw.max() and np.isfinite(cam_hw).all():
            map_HW = cv2.resize(cam_hw, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
            _levels_of_score(map_HW, self._grey, levels)
        clip, no_offset = np.full(4, SIDE - 1.0), np.zeros(4)
        return self._run(levels, AREA, clip, np.ones(4), no_offset, corners_N4, 1.0)

    def cam(
        self, cam_hw: NDArray[np.floating], frame: Frame, corners_N4: NDArray[np.floating], *, inclusive: bool
    ) -> NDArray[np.float64]:
        """Return the IoU at each threshold of the box rule cam:T.

        Args:
            cam_hw: Class activation map [h, w].
            frame: The frame of the map's image.
            corners_N4: True boxes in pixels of the original image, [N, 4].
            inclusive: Whether 1 is added to widths and heights, see `iou`.

        Returns:
            float64 [T, 2]: IoU of the box of cam:T, and the best IoU of any component's box.
        """
        size = (frame.input_size, frame.input_size)
        map_HW = cv2.resize(np.asarray(cam_hw, np.float32), size, interpolation=cv2.INTER_LINEAR)
        peak = map_HW.max()
        if not peak > 0:
            whole_image_iou = iou(frame.whole_image(), corners_N4, inclusive=inclusive).max()
            return np.full((len(self.thresholds), 2), whole_image_iou)
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
            self._allocate(self._nodes.shape[0], levels_HW.shape[1])
        while not label_all_thresholds(levels_HW, count, self._nodes, self._counts, self._runs):
            self._allocate(4 * self._nodes.shape[0], levels_HW.shape[1])
        iou_T2 = np.empty((count, 2))
        truth_M4 = np.ascontiguousarray(corners_N4, np.float64)
        _match_boxes(self._nodes, self._counts, by, clip, scale, offset, truth_M4, one, iou_T2)
        return iou_T2

    def _allocate(self, capacity: int, width: int) -> None:
        count = len(self.thresholds)
        self._nodes = np.empty((capacity, count, NODE_COLUMNS), np.int32)
        self._counts = np.empty(count, np.int32)
        self._runs = np.empty((2, width // 2 + 2, count, 4), np.int32)


def _grey_thresholds(thresholds: NDArray[np.float64], highest: int) -> NDArray[np.int64]:
    """Return floor(tau * maximum) of each threshold, as the code of Choe et al. does."""
    return (thresholds * highest).astype(np.int64)
