"""Scores of class activation maps: threshold sweeps, the pointing game, pixels for PxAP; two baselines."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, cast, get_args

import cv2
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from camworker.boxes.iou import paired_iou
from camworker.boxes.maxboxacc import SIDE, largest_contour_box, scaled_truth, score_map
from camworker.frame import Frame
from camworker.metrics.criteria import Criteria
from camworker.metrics.ground_truth.masks import object_pixels, read_mask
from camworker.metrics.ground_truth.truth import Truth
from camworker.metrics.matching import Matches, Targets
from camworker.metrics.threshold_sweep import THRESHOLDS, Sweep
from camworker.storage.parquet import combine_chunks

SweepRule = Literal["maxboxacc", "cam"]
SWEEP_RULES: Final[tuple[SweepRule, ...]] = get_args(SweepRule)

_TOLERANCE: Final = 15.0  # original pixels (Zhang et al., IJCV 2018)
_SIGMA: Final = 56.0  # pixels of the 224x224 square
_LAST_PIXEL: Final = np.array([0, 0, 1, 1], np.float32)  # from half-open corners to inclusive ones


@dataclass(frozen=True)
class MapScores:
    """Scores of the own maps of U instances, and of two baselines.

    What does not exist for an instance is False, 0 or NaN.

    Attributes:
        sweep: IoU at each threshold of the largest box and the best IoU of all boxes, [U, T, 2]; None without
            a sweep.
        gaussian: IoU at each threshold of the box of a centred Gaussian, [U, T]; NaN if the image's size is
            unknown.
        whole_image: IoU of the box over the whole image, [U]; NaN if the image's size is unknown.
        pointing_hit: Whether the map's maximum hits the object, [U].
        has_pointing_target: Whether the instance has a box or a mask that can be hit, [U].
        pixels: Number of pixels of background and object by the highest threshold that their score reaches,
            [U, 2, T]; None if the ground truth has no masks.
    """

    sweep: NDArray[np.float32] | None
    gaussian: NDArray[np.float64]
    whole_image: NDArray[np.float64]
    pointing_hit: NDArray[np.bool_]
    has_pointing_target: NDArray[np.bool_]
    pixels: NDArray[np.int64] | None


def score_maps(
    table: pa.Table,
    matches: Matches,
    targets: Targets,
    truth: Truth,
    criteria: Criteria,
    rule: SweepRule | None,
) -> MapScores:
    """Score the own maps of instances.

    Args:
        table: Rows of predictions, with the columns that `match_predictions` needs.
        matches: The instances of the table.
        targets: The maps of known labels of the table.
        truth: The ground truth.
        criteria: How boxes are compared.
        rule: Whose boxes the sweep over thresholds evaluates: "maxboxacc" for those of Choe et al., "cam" for
            those of the box rule cam:T, None for no sweep.
    """
    count = len(matches.rows)
    width, height = (table[name].to_numpy() for name in ("width", "height"))
    firsts = np.searchsorted(matches.box_instances, np.arange(count + 1))
    masks = _masks_of_instances(table, matches, truth)
    sweeper = Sweep()
    sweep = None if rule is None else np.zeros((count, len(THRESHOLDS), 2), np.float32)
    pixels = None if truth.masks is None else np.zeros((count, 2, len(THRESHOLDS)), np.int64)
    pointing_hit, has_pointing_target = np.zeros((2, count), bool)
    maps_Nhw = targets.maps(criteria.maps)
    boxes_N4 = criteria.comparable_corners(matches.boxes, truth)
    scaled = _scaled_boxes(matches, truth, width, height)
    for instance in range(count):
        corners = boxes_N4[firsts[instance] : firsts[instance + 1]]
        files = masks.get(instance)
        has_pointing_target[instance] = len(corners) > 0 or files is not None
        if pixels is not None and files is not None:
            mask = read_mask(*files, SIDE)
        if matches.target[instance] < 0:
            if pixels is not None and files is not None:  # a failed row counts as a map of zeros
                pixels[instance] = pixel_histogram(np.zeros((SIDE, SIDE), np.float32), mask)
            continue
        row = matches.rows[instance]
        cam_hw = maps_Nhw[matches.target[instance]]
        frame = criteria.frame(width[row], height[row])
        if sweep is not None and len(corners):
            if rule == "maxboxacc":
                sweep[instance] = sweeper.maxboxacc(cam_hw, scaled[firsts[instance] : firsts[instance + 1]])
            else:
                sweep[instance] = sweeper.cam(cam_hw, frame, corners, inclusive=criteria.inclusive)
        if has_pointing_target[instance]:
            pointing_hit[instance] = points_at(cam_hw, frame, corners, files[0] if files else ())
        if pixels is not None and files is not None:
            pixels[instance] = pixel_histogram(score_map(cam_hw), mask)
    whole_image, gaussian = _baselines(matches, boxes_N4, scaled, width, height, criteria, rule)
    return MapScores(sweep, gaussian, whole_image, pointing_hit, has_pointing_target, pixels)


def points_at(
    cam_hw: NDArray[np.floating], frame: Frame, corners_N4: NDArray[np.floating], masks: Sequence[str] = ()
) -> bool:
    """Return whether a map hits an object in the pointing game (Zhang et al., IJCV 2018).

    A hit is a maximum of the map, upsampled to the network's input, within 15 pixels of the original image
    from a box or from a pixel of a mask (Euclidean distance). The first of several maxima in row order
    counts.

    Args:
        cam_hw: Class activation map [h, w].
        frame: The frame of the map's image.
        corners_N4: True boxes in pixels of the original image, [N, 4]; not used if there are masks.
        masks: Paths of the object's masks.
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
    """Count the pixels of background and object by the highest threshold that their score reaches.

    Args:
        score_HW: Scores in 0..1, [H, W].
        mask_HW: 0 for background, 1 for the object, 255 for pixels that are left out, [H, W].

    Returns:
        int64 [2, T].
    """
    reached = np.searchsorted(THRESHOLDS, np.asarray(score_HW, np.float64), side="right") - 1
    counts = [np.bincount(reached[mask_HW == kind], minlength=len(THRESHOLDS)) for kind in (0, 1)]
    return np.stack(counts).astype(np.int64)


def gaussian_map() -> NDArray[np.float32]:
    """Return a Gaussian with sigma 56 pixels in the centre of the 224x224 square, float32 [224, 224]."""
    line = np.exp(-((np.arange(SIDE) - (SIDE - 1) / 2) ** 2) / (2 * _SIGMA**2))
    return np.outer(line, line).astype(np.float32)


def gaussian_boxes(thresholds: NDArray[np.float64] = THRESHOLDS) -> NDArray[np.int32]:
    """Return MaxBoxAcc's box of the centred Gaussian at each threshold, int32 [T, 4]."""
    score_HW = score_map(gaussian_map())
    return np.stack([largest_contour_box(score_HW, float(tau)) for tau in thresholds])


def _scaled_boxes(
    matches: Matches, truth: Truth, width: NDArray[np.floating], height: NDArray[np.floating]
) -> NDArray[np.int32]:
    """Return the true boxes in the 224x224 square, from the corners in their file.

    The boxes of images of unknown size are meaningless.
    """
    rows = matches.rows[matches.box_instances]
    widths, heights = (np.nan_to_num(side[rows].astype(float), nan=1.0) for side in (width, height))
    return scaled_truth(matches.boxes - _LAST_PIXEL * truth.inclusive, widths, heights)


def _baselines(
    matches: Matches,
    boxes_N4: NDArray[np.floating],
    scaled: NDArray[np.int32],
    width: NDArray[np.floating],
    height: NDArray[np.floating],
    criteria: Criteria,
    rule: SweepRule | None,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return each instance's best IoU with the box over the image, [U], and with the Gaussian's, [U, T]."""
    count = len(matches.rows)
    whole_image, gaussian = np.full(count, np.nan), np.full((count, len(THRESHOLDS)), np.nan)
    rows = matches.rows[matches.box_instances]
    has_size = np.isfinite(width[rows].astype(float))
    instances, rows = matches.box_instances[has_size], rows[has_size]
    sides = np.stack([width[rows], height[rows]], axis=1).astype(float)
    images = np.concatenate([np.zeros_like(sides), sides - criteria.inclusive], axis=1)
    whole_overlaps = paired_iou(images, boxes_N4[has_size], inclusive=criteria.inclusive)
    np.fmax.at(whole_image, instances, whole_overlaps)
    boxes = gaussian_boxes()
    if rule == "cam":
        stretched = boxes[None] * (np.tile(sides, 2) / SIDE)[:, None]
        overlaps = paired_iou(stretched, boxes_N4[has_size][:, None], inclusive=criteria.inclusive)
    else:
        overlaps = paired_iou(boxes[None], scaled[has_size][:, None], inclusive=True)
    np.fmax.at(gaussian, instances, overlaps)
    return whole_image, gaussian


def _masks_of_instances(
    table: pa.Table, matches: Matches, truth: Truth
) -> dict[int, tuple[list[str], list[str]]]:
    """Return the paths of masks and of ignore regions of each instance that has masks."""
    if truth.masks is None:
        return {}
    files: dict[int, tuple[list[str], list[str]]] = {}
    instances = {pair: n for n, pair in enumerate(zip(matches.rows, matches.labels, strict=True))}
    rows, in_truth = truth.rows_of(combine_chunks(table["image_id"]))
    masks = cast(list[str | None], truth.masks.take(in_truth).to_pylist())
    ignores: list[str | None] = [None] * len(masks)
    if truth.ignores is not None:
        ignores = cast(list[str | None], truth.ignores.take(in_truth).to_pylist())
    for row, label, mask, ignore in zip(rows, truth.labels[in_truth], masks, ignores, strict=True):
        if mask:
            mask_paths, ignore_paths = files.setdefault(instances[row, label], ([], []))
            mask_paths.append(mask)
            if ignore:
                ignore_paths.append(ignore)
    return files
