"""Ground truth from a metadata folder of Choe et al. 2020: image_ids.txt and its sister files."""

import os
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from camworker.errors import UsageError
from camworker.metrics.ground_truth.annotations import (
    Annotations,
    Corners,
    corner_columns,
    counted,
    half_open,
    is_pixel,
    refuse_without_area,
    strings,
)

IMAGE_IDS: Final = "image_ids.txt"
_CLASS_LABELS: Final = "class_labels.txt"
_LOCALIZATION: Final = "localization.txt"
_LINES: Final = {
    _CLASS_LABELS: {2: "image_id,label"},
    _LOCALIZATION: {5: "image_id,x0,y0,x1,y1", 3: "image_id,mask_path,ignore_path"},
}

Line = tuple[int, list[str]]


def read_wsol(path: str, corners: Corners, masks: str | None) -> Annotations:
    """Labels with boxes or masks of one split, as "Evaluating Weakly Supervised Object Localization
    Methods Right" (CVPR 2020) distributes them. Labels are class indices, int64.

    A line each: image_ids.txt image_id; class_labels.txt image_id,label; localization.txt either
    image_id,x0,y0,x1,y1 or image_id,mask_path,ignore_path (ignore_path may be empty), several lines an
    image. masks: the folder that mask paths start from. Without localization.txt, as for training
    splits, the truth is labels. image_sizes.txt is not needed: predictions know their images' sizes.
    Notes: images_without_boxes or images_without_masks (rows with nulls).
    Raises UsageError for a line that does not have these fields, an image without a label or with two,
    a label or box of an image that image_ids.txt lacks, a mask that is not there or lies outside masks.
    """
    image_ids = _image_ids(os.path.join(path, IMAGE_IDS))
    places = {image_id: place for place, image_id in enumerate(image_ids)}
    labels = _labels(os.path.join(path, _CLASS_LABELS), image_ids, places)
    file = os.path.join(path, _LOCALIZATION)
    lines = _fields(file, _LOCALIZATION) if os.path.exists(file) else []
    masked = bool(lines) and len(lines[0][1]) == 3
    if masked and masks is None:
        raise UsageError(f"{file} names mask files: say in which folder they lie")
    if masks is not None and not masked:
        raise UsageError(f"{file} names no mask files: leave the folder of masks out")
    of_line = _of_images(file, lines, places)
    without = np.setdiff1d(np.arange(len(image_ids)), of_line)
    # Lines first, then images without one; sorted by image, whose lines keep their order.
    rows = np.concatenate([of_line, without])
    order = np.argsort(rows, kind="stable")
    lacking = order >= len(lines)
    columns = {
        "image_id": strings(image_ids, path).take(pa.array(rows[order])),
        "label": pa.array(labels[rows[order]]),
    }
    if masked:
        for name, column in _mask_columns(file, lines, str(masks)).items():
            columns[name] = column.take(pa.array(order, mask=lacking))
        return Annotations(pa.table(columns), counted(images_without_masks=len(without)))
    if lines:
        corners_N4 = _corners(file, lines, corners)
        padded_N4 = np.concatenate([corners_N4, np.zeros((len(without), 4), np.float32)])
        columns |= corner_columns(padded_N4[order], lacking)
        return Annotations(
            pa.table(columns), counted(images_without_boxes=len(without)), inclusive=corners == "inclusive"
        )
    return Annotations(pa.table(columns))


def _lines(file: str) -> list[tuple[int, str]]:
    """Line numbers from 1 and text; empty lines are none. Raises UsageError."""
    try:
        with open(file, encoding="utf-8-sig") as opened:
            return [(n, line.rstrip("\n")) for n, line in enumerate(opened, start=1) if line.rstrip("\n")]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file} cannot be read: {error}") from error


def _image_ids(file: str) -> list[str]:
    seen: dict[str, int] = {}
    for n, image_id in _lines(file):
        if "," in image_id:
            raise UsageError(f"{file}, line {n}: an image_id cannot have a comma, which ends it elsewhere")
        if image_id in seen:
            raise UsageError(f"{file}, line {n}: {image_id!r} is in line {seen[image_id]} already")
        seen[image_id] = n
    return list(seen)


def _fields(file: str, name: str) -> list[Line]:
    """The lines of a file, split. All have as many fields as the first. Raises UsageError."""
    lines = [(n, line.split(",")) for n, line in _lines(file)]
    forms = _LINES[name]
    if lines and len(lines[0][1]) in forms:
        forms = {len(lines[0][1]): forms[len(lines[0][1])]}
    for n, fields in lines:
        if len(fields) not in forms:
            expected = " or ".join(forms.values())
            raise UsageError(f"{file}, line {n}: {len(fields)} fields, where {expected} should stand")
    return lines


def _of_images(file: str, lines: list[Line], places: dict[str, int]) -> NDArray[np.int64]:
    """The place in image_ids.txt of each line's image."""
    for n, (image_id, *_) in lines:
        if image_id not in places:
            raise UsageError(f"{file}, line {n}: {IMAGE_IDS} has no {image_id!r}: both list the same images")
    return np.fromiter((places[fields[0]] for _, fields in lines), np.int64, len(lines))


def _labels(file: str, image_ids: list[str], places: dict[str, int]) -> NDArray[np.int64]:
    """The class index of each image, [N]."""
    lines = _fields(file, _CLASS_LABELS)
    of_line = _of_images(file, lines, places)
    labels = np.full(len(image_ids), -1, np.int64)
    for (n, (image_id, label)), place in zip(lines, of_line, strict=True):
        if not label.strip().isascii() or not label.strip().isdigit() or len(label) > 9:
            raise UsageError(f"{file}, line {n}: the label is {label!r}: it has to be a class index from 0")
        if labels[place] >= 0:
            raise UsageError(f"{file}, line {n}: {image_id!r} has a label already: an image has one")
        labels[place] = int(label)
    if (labels < 0).any():
        missing = np.flatnonzero(labels < 0)
        example = image_ids[missing[0]]
        raise UsageError(f"{file}: {len(missing)} images of {IMAGE_IDS} have no label ({example!r} for one)")
    return labels


def _corners(file: str, lines: list[Line], corners: Corners) -> NDArray[np.float32]:
    """Half-open corners of each line's box, [N, 4]."""
    boxes = []
    for n, (_, *texts) in lines:
        try:
            box = [float(text) for text in texts]
        except ValueError:
            box = [float("nan")]
        if not all(map(is_pixel, box)):
            raise UsageError(f"{file}, line {n}: {','.join(texts)} has to be four numbers of pixels")
        boxes.append(box)
    corners_N4 = half_open(np.array(boxes, np.float64), corners)
    refuse_without_area(corners_N4, file, lambda row: f"line {lines[row][0]}")
    return corners_N4


def _mask_columns(file: str, lines: list[Line], masks: str) -> dict[str, pa.Array]:
    """Absolute paths of each line's mask and of its ignore region, null where there is none."""
    root = os.path.abspath(masks)
    paths = [
        [_mask_path(file, n, root, name) if name else None for name in names] for n, (_, *names) in lines
    ]
    for (n, _), (mask, _) in zip(lines, paths, strict=True):
        if mask is None:
            raise UsageError(f"{file}, line {n}: names no mask")
    return {
        "mask": strings([mask for mask, _ in paths], masks),
        "ignore": strings([ignore for _, ignore in paths], masks),
    }


def _mask_path(file: str, n: int, root: str, name: str) -> str:
    relative = os.path.normpath(name)
    if os.path.isabs(relative) or relative.split(os.sep)[0] == os.pardir:
        raise UsageError(
            f"{file}, line {n}: {name!r} leads out of the folder of masks: it has to lie below it"
        )
    path = os.path.join(root, relative)
    if not os.path.isfile(path):
        raise UsageError(
            f"{file}, line {n}: the mask {path} does not exist: name the folder it is relative to"
        )
    return path
