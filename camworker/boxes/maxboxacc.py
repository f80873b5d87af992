"""The boxes of MaxBoxAcc (V1) and MaxBoxAccV2: a plain, exact implementation.

Source: Choe et al., "Evaluating Weakly Supervised Object Localization Methods Right", CVPR 2020, and its
    code. All
boxes lie in a square of 224x224 pixels, and their IoU is `iou(..., inclusive=True)`.
"""

from collections.abc import Sequence
from typing import Final

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

SIDE: Final = 224  # pixels


def score_map(cam_hw: NDArray[np.floating]) -> NDArray[np.float32]:
    """Upsample a map (bicubic, a = -0.75) and normalise it by its minimum and maximum.

    Args:
        cam_hw: Class activation map [h, w].

    Returns:
        Scores in 0..1, float32 [224, 224]; zeros for a map that is constant or not finite.
    """
    cam_hw = np.asarray(cam_hw, np.float32)
    zeros = np.zeros((SIDE, SIDE), np.float32)
    # This is checked before upsampling, whose rounding makes a constant map uneven.
    if not cam_hw.min() < cam_hw.max() or not np.isfinite(cam_hw).all():
        return zeros
    map_HW = cv2.resize(cam_hw, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
    map_HW -= map_HW.min()
    maximum = map_HW.max()
    return map_HW / maximum if 0 < maximum < np.inf else zeros


def contour_boxes(score_HW: NDArray[np.floating], tau: float) -> NDArray[np.int32]:
    """Return the box of every contour at a threshold, as MaxBoxAccV2 uses them.

    The mask is floor(255 s) > floor(tau * max floor(255 s)). Contours of holes count. A box is x, y, x + w, y
    + h with its maxima clipped to the last column and row.

    Args:
        score_HW: Scores s in 0..1, see `score_map`.
        tau: Threshold in [0, 1).

    Returns:
        int32 [N, 4] in OpenCV's order of contours, N >= 1. Without a contour the only box is 0, 0, 0, 0.
    """
    return _boxes(_contours(score_HW, tau), score_HW.shape)


def largest_contour_box(score_HW: NDArray[np.floating], tau: float) -> NDArray[np.int32]:
    """Return the box of the contour with the largest cv2.contourArea, as MaxBoxAcc (V1) uses it.

    The first of several largest contours wins. See `contour_boxes` for the arguments.

    Returns:
        int32 [4].
    """
    contours = _contours(score_HW, tau)
    if contours:
        contours = [max(contours, key=cv2.contourArea)]
    box_4: NDArray[np.int32] = _boxes(contours, score_HW.shape)[0]
    return box_4


def scaled_truth(corners_N4: NDArray[np.number], width: ArrayLike, height: ArrayLike) -> NDArray[np.int32]:
    """Map true boxes from pixels of the original image to whole pixels of the 224x224 square.

    A corner becomes int(x * 224 / width), computed in float64 and rounded towards zero.

    Args:
        corners_N4: Boxes in pixels of the original images, [N, 4].
        width: Width of the original image in pixels, one for all boxes or one for each.
        height: Height of the original image in pixels, one for all boxes or one for each.

    Returns:
        int32 [N, 4].
    """
    corners = np.asarray(corners_N4, np.float64).reshape(-1, 4)
    sides = np.stack([width, height, width, height], axis=-1)
    scaled: NDArray[np.int32] = (corners * SIDE / sides).astype(np.int32)
    return scaled


def _contours(score_HW: NDArray[np.floating], tau: float) -> Sequence[NDArray[np.int32]]:
    grey_HW = (score_HW * 255).astype(np.uint8)
    mask_HW = (grey_HW > int(tau * int(grey_HW.max()))).view(np.uint8)
    contours: Sequence[NDArray[np.int32]]
    contours, _ = cv2.findContours(mask_HW, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)
    return contours


def _boxes(contours: Sequence[NDArray[np.int32]], shape: tuple[int, ...]) -> NDArray[np.int32]:
    height, width = shape
    rectangles = [cv2.boundingRect(contour) for contour in contours]
    boxes = [[x, y, min(x + w, width - 1), min(y + h, height - 1)] for x, y, w, h in rectangles]
    return np.array(boxes or [[0, 0, 0, 0]], np.int32)
