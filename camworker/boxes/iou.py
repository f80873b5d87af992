"""Intersection over union (IoU) of boxes."""

import numpy as np
from numpy.typing import NDArray


def iou(
    a_N4: NDArray[np.number], b_M4: NDArray[np.number], *, inclusive: bool = False
) -> NDArray[np.float64]:
    """Return the IoU of each box of one set with each box of another.

    Args:
        a_N4: Boxes as xmin, ymin, xmax, ymax, [N, 4].
        b_M4: Boxes as xmin, ymin, xmax, ymax, [M, 4].
        inclusive: Whether xmax and ymax name the last pixel of a box, so that 1 is added to widths and
            heights, as in the ILSVRC development kit and in the code of Choe et al. (CVPR 2020). By default
            boxes are half-open.

    Returns:
        IoU in 0..1, float64 [N, M]. Two empty boxes have IoU 0.
    """
    a, b = (np.asarray(boxes).reshape(-1, 4) for boxes in (a_N4, b_M4))
    return paired_iou(a[:, None], b[None, :], inclusive=inclusive)


def paired_iou(
    a: NDArray[np.number], b: NDArray[np.number], *, inclusive: bool = False
) -> NDArray[np.float64]:
    """Return the IoU of each box with its partner, see `iou`.

    Args:
        a: Boxes as xmin, ymin, xmax, ymax, [..., 4].
        b: Boxes as xmin, ymin, xmax, ymax, [..., 4]; `a` and `b` are broadcast against each other.
        inclusive: Whether xmax and ymax name the last pixel of a box.

    Returns:
        IoU in 0..1, float64 [...].
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    overlap = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]) + inclusive
    intersection = np.prod(np.clip(overlap, 0, None), axis=-1)
    areas_a, areas_b = (
        np.prod(np.clip(x[..., 2:] - x[..., :2] + inclusive, 0, None), axis=-1) for x in (a, b)
    )
    union = areas_a + areas_b - intersection
    ratios: NDArray[np.float64] = np.divide(intersection, union, out=np.zeros_like(union), where=union > 0)
    return ratios
