"""Metrics of one map: threshold sweeps, the pointing game, pixels for PxAP; and the centred Gaussian."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, get_args

import cv2
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from camworker.boxes.iou import paired_iou
from camworker.boxes.maxboxacc import SIDE, largest_contour_box, scaled_truth, score_map
from camworker.frame import Frame
from camworker.metrics.ground_truth.masks import object_pixels, read_mask
from camworker.metrics.ground_truth.truth import Truth
from camworker.metrics.matching import Criteria, Matches, Targets
from camworker.metrics.threshold_sweep import THRESHOLDS, Sweep

SweepRule = Literal["maxboxacc", "cam"]
SWEEP_RULES: Final[tuple[SweepRule, ...]] = get_args(SweepRule)

_TOLERANCE: Final = 15.0  # original pixels, of the pointing game (Zhang et al., IJCV 2018)
_SIGMA: Final = 56.0  # pixels of the square of 224
_LAST: Final = np.array([0, 0, 1, 1], np.float32)  # from a half-open corner to the last pixel


@dataclass(frozen=True)
class MapScores:
    """Of units [U], by their label's own map; what a unit lacks is False, 0 or NaN.

    sweep: IoU float [U, T, 2] at each threshold, of the largest box and the best of all. gaussian: the same
    [U, T] for the box of a centred Gaussian, NaN where the image's size is unknown. whole: IoU of a box over
    the whole image, NaN likewise. pointed: the map's maximum hits. pointable: it has something to hit.
    pixels: [U, 2, T], pixels of background and object whose score lies from a threshold to the next.
    """

    sweep: NDArray[np.float32] | None
    gaussian: NDArray[np.float64]
    whole: NDArray[np.float64]
    pointed: NDArray[np.bool_]
    pointable: NDArray[np.bool_]
    pixels: NDArray[np.int64] | None


def judge_maps(
    table: pa.Table,
    judged: Matches,
    targets: Targets,
    truth: Truth,
    criteria: Criteria,
    rule: SweepRule | None,
) -> MapScores:
    """Judge the maps of units. rule: whose sweep, that of Choe et al. or that of the box rules cam:T."""
    count = len(judged.rows)
    width, height = (table[name].to_numpy() for name in ("width", "height"))
    firsts = np.searchsorted(judged.box_units, np.arange(count + 1))
    masks = _masks_of_units(table, judged, truth)
    sweeper = Sweep()
    sweep = None if rule is None else np.zeros((count, len(THRESHOLDS), 2), np.float32)
    pixels = None if truth.masks is None else np.zeros((count, 2, len(THRESHOLDS)), np.int64)
    pointed, pointable = np.zeros((2, count), bool)
    boxes_N4 = criteria.as_judged(judged.boxes, truth)
    scaled = _scaled(judged, truth, width, height)
    for unit in range(count):
        corners = boxes_N4[firsts[unit] : firsts[unit + 1]]
        files = masks.get(unit)
        pointable[unit] = len(corners) > 0 or files is not None
        if pixels is not None and files is not None:
            mask = read_mask(*files, SIDE)
        if judged.target[unit] < 0:
            if pixels is not None and files is not None:  # a failed row: a map of zeros
                pixels[unit] = pixel_histogram(np.zeros((SIDE, SIDE), np.float32), mask)
            continue
        row = judged.rows[unit]
        cam_hw = targets.cams_Nhw[judged.target[unit]]
        frame = criteria.frame(width[row], height[row])
        if sweep is not None and len(corners):
            if rule == "maxboxacc":
                sweep[unit] = sweeper.maxboxacc(cam_hw, scaled[firsts[unit] : firsts[unit + 1]])
            else:
                sweep[unit] = sweeper.cam(cam_hw, frame, corners, inclusive=criteria.inclusive)
        if pointable[unit]:
            pointed[unit] = points_at(cam_hw, frame, corners, files[0] if files else ())
        if pixels is not None and files is not None:
            pixels[unit] = pixel_histogram(score_map(cam_hw), mask)
    whole, gaussian = _baselines(judged, boxes_N4, scaled, width, height, criteria, rule)
    return MapScores(sweep, gaussian, whole, pointed, pointable, pixels)


def points_at(
    cam_hw: NDArray[np.floating], frame: Frame, corners_N4: NDArray[np.floating], masks: Sequence[str] = ()
) -> bool:
    """Whether the map's maximum lies within 15 original pixels of a box, or of a pixel of a mask.

    The maximum of the map upsampled to the frame; of equals the first in row order.
    """
    size = (frame.input_size, frame.input_size)
    map_HW = cv2.resize(np.asarray(cam_hw, np.float32), size, interpolation=cv2.INTER_LINEAR)
    y, x = divmod(int(map_HW.argmax()), frame.input_size)
    px, py = frame.to_original(np.array([[x + 0.5, y + 0.5] * 2]))[0, :2].astype(np.float64)
    corners = np.asarray(corners_N4, np.float64).reshape(-1, 4)
    if masks:
        object_HW = object_pixels(masks)
        rows, columns = np.nonzero(object_HW)
        scale = np.array([frame.width / object_HW.shape[1], frame.height / object_HW.shape[0]] * 2)
        corners = np.stack([columns, rows, columns + 1, rows + 1], axis=1) * scale
    dx = np.maximum(np.maximum(corners[:, 0] - px, px - corners[:, 2]), 0)
    dy = np.maximum(np.maximum(corners[:, 1] - py, py - corners[:, 3]), 0)
    return bool((np.hypot(dx, dy) <= _TOLERANCE).any())


def pixel_histogram(score_HW: NDArray[np.floating], mask_HW: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Pixels of background and object [2, T] by the highest threshold that their score reaches.

    mask: 0 background, 1 object, 255 left out.
    """
    reached = np.searchsorted(THRESHOLDS, np.asarray(score_HW, np.float64), side="right") - 1
    counts = [np.bincount(reached[mask_HW == kind], minlength=len(THRESHOLDS)) for kind in (0, 1)]
    return np.stack(counts).astype(np.int64)


def gaussian_map() -> NDArray[np.float32]:
    """A Gaussian of sigma 56 pixels in the centre of the square of 224: float32 [224, 224]."""
    line = np.exp(-((np.arange(SIDE) - (SIDE - 1) / 2) ** 2) / (2 * _SIGMA**2))
    return np.outer(line, line).astype(np.float32)


def gaussian_boxes(thresholds: NDArray[np.float64] = THRESHOLDS) -> NDArray[np.int32]:
    """The box of the centred Gaussian at each threshold, as MaxBoxAcc makes it: int32 [T, 4]."""
    score_HW = score_map(gaussian_map())
    return np.stack([largest_contour_box(score_HW, float(tau)) for tau in thresholds])


def _scaled(
    judged: Matches, truth: Truth, width: NDArray[np.floating], height: NDArray[np.floating]
) -> NDArray[np.int32]:
    """True boxes in the square of 224, from corners as their file has them; anything for unsized images."""
    rows = judged.rows[judged.box_units]
    sides = (np.nan_to_num(side[rows].astype(float), nan=1.0) for side in (width, height))
    return scaled_truth(judged.boxes - _LAST * truth.inclusive, *sides)


def _baselines(
    judged: Matches,
    boxes_N4: NDArray[np.floating],
    scaled: NDArray[np.int32],
    width: NDArray[np.floating],
    height: NDArray[np.floating],
    criteria: Criteria,
    rule: SweepRule | None,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(whole [U], gaussian [U, T]): the best IoU of these boxes with a unit's true ones."""
    count = len(judged.rows)
    whole, gaussian = np.full(count, np.nan), np.full((count, len(THRESHOLDS)), np.nan)
    rows = judged.rows[judged.box_units]
    sized = np.isfinite(width[rows].astype(float))
    units, rows = judged.box_units[sized], rows[sized]
    sides = np.stack([width[rows], height[rows]], axis=1).astype(float)
    images = np.concatenate([np.zeros_like(sides), sides - criteria.inclusive], axis=1)
    np.fmax.at(whole, units, paired_iou(images, boxes_N4[sized], inclusive=criteria.inclusive))
    boxes = gaussian_boxes()
    if rule == "cam":
        stretched = boxes[None] * (np.tile(sides, 2) / SIDE)[:, None]
        overlaps = paired_iou(stretched, boxes_N4[sized][:, None], inclusive=criteria.inclusive)
    else:
        overlaps = paired_iou(boxes[None], scaled[sized][:, None], inclusive=True)
    np.fmax.at(gaussian, units, overlaps)
    return whole, gaussian


def _masks_of_units(table: pa.Table, judged: Matches, truth: Truth) -> dict[int, tuple[list[str], list[str]]]:
    """Units that have masks -> paths of these, and of what is to be ignored."""
    if truth.masks is None:
        return {}
    found: dict[int, tuple[list[str], list[str]]] = {}
    units = {pair: unit for unit, pair in enumerate(zip(judged.rows, judged.labels, strict=True))}
    rows, in_truth = truth.of(table["image_id"].combine_chunks())
    masks = truth.masks.take(pa.array(in_truth)).to_pylist()
    ignores = truth.ignores.take(pa.array(in_truth)).to_pylist() if truth.ignores is not None else []
    for place, (row, label) in enumerate(zip(rows, truth.labels[in_truth], strict=True)):
        if masks[place]:
            paths = found.setdefault(units[row, label], ([], []))
            paths[0].append(masks[place])
            if ignores and ignores[place]:
                paths[1].append(ignores[place])
    return found
