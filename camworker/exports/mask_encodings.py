"""Masks as run lengths (COCO's RLE) and as polygons."""

from dataclasses import dataclass
from functools import reduce
from typing import Final, Self

import cv2
import numpy as np
from numpy.typing import NDArray

_TOLERANCE: Final = 1.0  # pixels by which a polygon may leave the edge of its mask
_AREA_TOLERANCE: Final = 0.02  # a polygon whose area would change by more keeps every corner


@dataclass(frozen=True, slots=True)
class RunLengths:
    """A mask as COCO's run lengths: how many pixels are off, on, off..., column after column.

    Attributes:
        height: Height of the mask in pixels.
        width: Width of the mask in pixels.
        runs: Lengths of the runs, int64 [R]; the first run is off and may be empty.
    """

    height: int
    width: int
    runs: NDArray[np.int64]

    @classmethod
    def of(cls, mask_HW: NDArray[np.bool_]) -> Self:
        """Encode a mask [H, W]."""
        # NumPy's transpose takes six times as long as OpenCV's.
        columns = cv2.transpose(mask_HW.view(np.uint8)).reshape(-1)
        changes = np.flatnonzero(columns[1:] != columns[:-1]) + 1
        starts_on = np.zeros(int(columns[0]), np.int64)  # after an empty run that is off
        ends = np.concatenate([starts_on, changes, [columns.size]])
        height, width = mask_HW.shape
        return cls(height, width, np.diff(ends, prepend=0))

    def pixels(self) -> NDArray[np.bool_]:
        """Decode the mask, [H, W]."""
        columns_WH = np.zeros((self.width, self.height), np.uint8)
        columns, ends = columns_WH.reshape(-1), np.cumsum(self.runs)
        for start, end in zip(ends[:-1:2].tolist(), ends[1::2].tolist(), strict=True):
            columns[start:end] = 1
        pixels_HW: NDArray[np.uint8] = cv2.transpose(columns_WH)
        return pixels_HW.view(np.bool_)

    @property
    def area(self) -> int:
        """Number of pixels that are on."""
        return int(self.runs[1::2].sum())

    @property
    def box(self) -> list[float]:
        """The box around the pixels that are on, at least one: xmin, ymin, xmax, ymax, half-open."""
        ends = np.cumsum(self.runs)
        first, last = ends[:-1:2], ends[1::2] - 1  # pixel by pixel down the columns
        columns = first // self.height, last // self.height
        crosses = bool((columns[0] != columns[1]).any())  # a run goes on in the next column
        ymin = 0 if crosses else int((first % self.height).min())
        ymax = self.height if crosses else int((last % self.height).max()) + 1
        return [float(columns[0].min()), float(ymin), float(columns[1].max()) + 1, float(ymax)]

    def coco(self) -> dict[str, object]:
        """Return what COCO calls a compressed RLE: size and counts.

        Each run length, from the fourth on its difference from the last but one, is written in groups of five
        bits, the lowest first. A character is 48 plus the group, plus 32 unless it is the last; bit 16 of the
        last group is the sign (cocoapi, common/maskApi.c, rleToString).
        """
        values = self.runs.copy()
        values[3:] -= self.runs[1:-2]
        digits: list[NDArray[np.int64]] = []
        more: list[NDArray[np.bool_]] = []
        while not more or more[-1].any():
            group = values & 31
            values = values >> 5
            digits.append(group)
            more.append(np.where(group & 16, values != -1, values != 0))
        begun = np.logical_and.accumulate([np.ones(len(values), np.bool_), *more[:-1]])
        characters = np.array(digits) + 48 + 32 * np.array(more)
        counts = characters.T[begun.T].astype(np.uint8).tobytes().decode("ascii")
        return {"size": [self.height, self.width], "counts": counts}


def polygons(mask_HW: NDArray[np.bool_], tolerance: float = _TOLERANCE) -> list[NDArray[np.int32]]:
    """Return a polygon for each component (8-connected) of a mask, the largest first.

    Corners lie on the edges of pixels: the polygon of a single pixel at 0, 0 has the corners 0, 0 to 1, 1. A
    hole is reached through a bridge without width, see `joined`; so a polygon has the area of its component.

    Args:
        mask_HW: The mask [H, W].
        tolerance: How far, in pixels, a polygon may leave the edge of the mask to have fewer corners.

    Returns:
        int32 [N, 2] each, N >= 4 corners x, y, without the first one again at the end.
    """
    left, top, width, height = cv2.boundingRect(mask_HW.view(np.uint8))
    part_HW = mask_HW[top : top + height, left : left + width].view(np.uint8)
    # In a mask of twice the size a contour passes through one of the two pixels next to each edge.
    double = (
        cv2.resize(part_HW, (2 * width, 2 * height), interpolation=cv2.INTER_NEAREST) if width else part_HW
    )
    contours, hierarchy = cv2.findContours(double, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    if not contours:
        return []
    rings: dict[int, list[NDArray[np.int32]]] = {}
    for number, (contour, parent) in enumerate(zip(contours, hierarchy[0, :, 3].tolist(), strict=True)):
        ring = _simplified(_corners(contour), tolerance) + np.array([left, top], np.int32)
        if parent < 0:
            rings.setdefault(number, []).insert(0, ring)
        else:
            rings.setdefault(parent, []).append(ring)
    found = [joined(component) for component in rings.values()]
    return sorted(found, key=cv2.contourArea, reverse=True)


def joined(rings: list[NDArray[np.int32]]) -> NDArray[np.int32]:
    """Join polygons, one after another, by bridges without width between their nearest corners.

    A bridge is passed twice, in both directions, so that the area within the even-odd rule is the same.
    """
    return reduce(_join, rings)


def _join(a_N2: NDArray[np.int32], b_M2: NDArray[np.int32]) -> NDArray[np.int32]:
    distances_NM = ((a_N2[:, None].astype(np.float32) - b_M2) ** 2).sum(axis=2)
    i, j = np.unravel_index(distances_NM.argmin(), distances_NM.shape)
    return np.concatenate([a_N2[: i + 1], b_M2[j:], b_M2[: j + 1], a_N2[i:]])


def _corners(contour: NDArray[np.int32]) -> NDArray[np.int32]:
    """Return the corners [N, 2] of the edges along a contour of the doubled mask."""
    edges_N2 = (contour[:, 0] + 1) // 2
    following_N2, before_N2 = np.roll(edges_N2, -1, axis=0), np.roll(edges_N2, 1, axis=0)
    turns = ((edges_N2 != following_N2).any(1)) & ((following_N2 - edges_N2) != (edges_N2 - before_N2)).any(1)
    corners_N2: NDArray[np.int32] = edges_N2[turns]
    return corners_N2


def _simplified(ring_N2: NDArray[np.int32], tolerance: float) -> NDArray[np.int32]:
    if not tolerance:
        return ring_N2
    simple_N2: NDArray[np.int32] = cv2.approxPolyDP(ring_N2, tolerance, closed=True)[:, 0]
    area = cv2.contourArea(ring_N2)
    changed = abs(cv2.contourArea(simple_N2) - area) > _AREA_TOLERANCE * area
    return ring_N2 if changed or len(simple_N2) < 4 else simple_N2
