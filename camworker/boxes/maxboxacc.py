"""Boxes and IoU as Choe et al. make them for MaxBoxAcc (V1) and MaxBoxAccV2: the plain, exact reference.

"Evaluating Weakly Supervised Object Localization Methods Right", CVPR 2020. Everything lies in a square of
224 pixels. Boxes are xmin, ymin, xmax, ymax; their IoU is inclusive, as in that paper's code.
"""

from collections.abc import Sequence
from typing import Final

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

SIDE: Final = 224  # pixels


def score_map(cam_hw: NDArray[np.floating]) -> NDArray[np.float32]:
    """The map upsampled (bicubic, a = -0.75) and min-max normalised: float32 [224, 224] in 0..1.

    A map that is constant or not finite gives zeros.
    """
    cam_hw = np.asarray(cam_hw, np.float32)
    zeros = np.zeros((SIDE, SIDE), np.float32)
    # Asked before upsampling, whose rounding makes a constant uneven.
    if not cam_hw.min() < cam_hw.max() or not np.isfinite(cam_hw).all():
        return zeros
    map_HW = cv2.resize(cam_hw, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
    map_HW -= map_HW.min()
    highest = map_HW.max()
    return map_HW / highest if 0 < highest < np.inf else zeros


def contour_boxes(score_HW: NDArray[np.floating], tau: float) -> NDArray[np.int32]:
    """V2: the box of every contour at threshold tau, in OpenCV's order: int32 [N, 4], N >= 1.

    score_HW in 0..1. Mask floor(255 s) > floor(tau max floor(255 s)); contours of holes count. A box is
    x, y, x + w, y + h with its maxima cut to the last column and row. No contour: the box 0, 0, 0, 0.
    """
    return _boxes(_contours(score_HW, tau), score_HW.shape)


def largest_contour_box(score_HW: NDArray[np.floating], tau: float) -> NDArray[np.int32]:
    """V1: the box of the contour of largest cv2.contourArea, of equals the first: int32 [4].

    Everything else as boxes_at has it.
    """
    contours = _contours(score_HW, tau)
    if contours:
        contours = [max(contours, key=cv2.contourArea)]
    return _boxes(contours, score_HW.shape)[0]


def inclusive_iou(a_N4: NDArray[np.number], b_M4: NDArray[np.number]) -> NDArray[np.float64]:
    """IoU of that paper's code: N x M, widths and heights counted as max - min + 1."""
    a_N14, b_1M4 = (np.asarray(boxes, np.float64).reshape(-1, 4) for boxes in (a_N4, b_M4))
    a_N14, b_1M4 = a_N14[:, None], b_1M4[None]
    overlap = np.minimum(a_N14[..., 2:], b_1M4[..., 2:]) - np.maximum(a_N14[..., :2], b_1M4[..., :2]) + 1
    intersection = np.prod(np.clip(overlap, 0, None), axis=-1)
    area_a, area_b = (np.prod(boxes[..., 2:] - boxes[..., :2] + 1, axis=-1) for boxes in (a_N14, b_1M4))
    union = area_a + area_b - intersection
    return np.divide(intersection, union, out=np.zeros_like(union), where=union > 0)


def scaled_truth(corners_N4: NDArray[np.number], width: ArrayLike, height: ArrayLike) -> NDArray[np.int32]:
    """Corners in pixels of the original -> whole pixels of the square: int32 [N, 4].

    int(x * 224 / width) in float64, towards zero; the maxima stay as they are given. width, height: of
    the original, one for all boxes or one for each.
    """
    corners = np.asarray(corners_N4, np.float64).reshape(-1, 4)
    sides = np.stack([width, height, width, height], axis=-1)
    return (corners * SIDE / sides).astype(np.int32)


def _contours(score_HW: NDArray[np.floating], tau: float) -> Sequence[NDArray[np.int32]]:
    grey_HW = (score_HW * 255).astype(np.uint8)
    mask_HW = (grey_HW > int(tau * int(grey_HW.max()))).view(np.uint8)
    contours, _ = cv2.findContours(mask_HW, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)
    return contours


def _boxes(contours: Sequence[NDArray[np.int32]], shape: tuple[int, ...]) -> NDArray[np.int32]:
    height, width = shape
    rectangles = [cv2.boundingRect(contour) for contour in contours]
    boxes = [[x, y, min(x + w, width - 1), min(y + h, height - 1)] for x, y, w, h in rectangles]
    return np.array(boxes or [[0, 0, 0, 0]], np.int32)
