"""Ground truth from a metadata folder of Choe et al. (CVPR 2020): image_ids.txt and the files with it."""

import os
from typing import Any, Final, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from camworker.errors import UsageError
from camworker.metrics.ground_truth.annotations import (
    Annotations,
    Corners,
    corner_columns,
    half_open,
    is_pixel,
    nonzero_notes,
    require_area,
    string_column,
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
    """Read labels with boxes or masks of one split.

    This is the format in which "Evaluating Weakly Supervised Object Localization Methods Right" (CVPR 2020)
    distributes them. Labels are class indices. The lines are: in image_ids.txt image_id; in class_labels.txt
    image_id,label; in localization.txt either image_id,x0,y0,x1,y1 or image_id,mask_path,ignore_path
    (ignore_path may be empty), several lines per image. Without localization.txt, as in training splits, the
    ground truth is labels only. image_sizes.txt is not read, because predictions hold the sizes of their
    images. Notes: images_without_boxes or images_without_masks.

    Args:
        path: The folder.
        corners: Whether x1 and y1 name the end or the last pixel of a box.
        masks: The folder that mask paths are relative to.

    Raises:
        UsageError: A line does not have these fields, an image has no label or two, a label or a box is of an
            image that image_ids.txt does not list, or a mask does not exist or is outside the folder of
            masks.
    """
    image_ids = _image_ids(os.path.join(path, IMAGE_IDS))
    index = {image_id: n for n, image_id in enumerate(image_ids)}
    labels = _labels(os.path.join(path, _CLASS_LABELS), image_ids, index)
    file = os.path.join(path, _LOCALIZATION)
    lines = _fields(file, _LOCALIZATION) if os.path.exists(file) else []
    masked = bool(lines) and len(lines[0][1]) == 3
    if masked and masks is None:
        raise UsageError(f"{file} names mask files: give the folder that they are in", parameter="masks")
    if masks is not None and not masked:
        raise UsageError(f"{file} names no mask files: do not give a folder of masks", parameter="masks")
    of_line = _image_indices(file, lines, index)
    without = np.setdiff1d(np.arange(len(image_ids)), of_line)
    # All lines, then the images without one; sorted by image, so that its lines keep their order.
    rows = np.concatenate([of_line, without])
    order = np.argsort(rows, kind="stable")
    has_no_line = order >= len(lines)
    columns: dict[str, pa.Array[Any]] = {
        "image_id": string_column(image_ids, path).take(rows[order]),
        "label": pa.array(labels[rows[order]]),
    }
    if masked:
        for name, column in _mask_columns(file, lines, str(masks)).items():
            columns[name] = column.take(cast("pa.Int64Array", pa.array(order, mask=has_no_line)))
        return Annotations(pa.table(columns), nonzero_notes(images_without_masks=len(without)))
    if lines:
        corners_N4 = _corners(file, lines, corners)
        padded_N4 = np.concatenate([corners_N4, np.zeros((len(without), 4), np.float32)])
        columns |= corner_columns(padded_N4[order], has_no_line)
        return Annotations(
            pa.table(columns),
            nonzero_notes(images_without_boxes=len(without)),
            inclusive=corners == "inclusive",
        )
    return Annotations(pa.table(columns))


def _lines(file: str) -> list[tuple[int, str]]:
    """Return the number, from 1, and the text of each line that is not empty."""
    try:
        with open(file, encoding="utf-8-sig") as opened:
            return [(n, line.rstrip("\n")) for n, line in enumerate(opened, start=1) if line.rstrip("\n")]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file} cannot be read: {error}") from error


def _image_ids(file: str) -> list[str]:
    seen: dict[str, int] = {}
    for n, image_id in _lines(file):
        if "," in image_id:
            raise UsageError(f"{file}, line {n}: an image_id cannot contain a comma")
        if image_id in seen:
            raise UsageError(f"{file}, line {n}: {image_id!r} is already in line {seen[image_id]}")
        seen[image_id] = n
    return list(seen)


def _fields(file: str, name: str) -> list[Line]:
    """Return the fields of each line, and raise UsageError if they are not as many as in the first line."""
    lines = [(n, line.split(",")) for n, line in _lines(file)]
    forms = _LINES[name]
    if lines and len(lines[0][1]) in forms:
        forms = {len(lines[0][1]): forms[len(lines[0][1])]}
    for n, fields in lines:
        if len(fields) not in forms:
            expected = " or ".join(forms.values())
            raise UsageError(f"{file}, line {n}: {len(fields)} fields instead of {expected}")
    return lines


def _image_indices(file: str, lines: list[Line], index: dict[str, int]) -> NDArray[np.int64]:
    """Return the index in image_ids.txt of each line's image."""
    for n, (image_id, *_) in lines:
        if image_id not in index:
            raise UsageError(f"{file}, line {n}: {image_id!r} is not in {IMAGE_IDS}")
    return np.fromiter((index[fields[0]] for _, fields in lines), np.int64, len(lines))


def _labels(file: str, image_ids: list[str], index: dict[str, int]) -> NDArray[np.int64]:
    """Return the class index of each image, [N]."""
    lines = _fields(file, _CLASS_LABELS)
    of_line = _image_indices(file, lines, index)
    labels = np.full(len(image_ids), -1, np.int64)
    for (n, (image_id, label)), image in zip(lines, of_line, strict=True):
        if not label.strip().isascii() or not label.strip().isdigit() or len(label) > 9:
            raise UsageError(f"{file}, line {n}: the label is {label!r}: a class index, from 0, is needed")
        if labels[image] >= 0:
            raise UsageError(f"{file}, line {n}: {image_id!r} already has a label")
        labels[image] = int(label)
    if (labels < 0).any():
        missing = np.flatnonzero(labels < 0)
        example = image_ids[missing[0]]
        raise UsageError(
            f"{file}: {len(missing)} images of {IMAGE_IDS} have no label, {example!r} among them"
        )
    return labels


def _corners(file: str, lines: list[Line], corners: Corners) -> NDArray[np.float32]:
    """Return the half-open corners of each line's box, [N, 4]."""
    boxes = []
    for n, (_, *texts) in lines:
        try:
            box = [float(text) for text in texts]
        except ValueError:
            box = [float("nan")]
        if not all(map(is_pixel, box)):
            raise UsageError(f"{file}, line {n}: {','.join(texts)} is not four numbers of pixels")
        boxes.append(box)
    corners_N4 = half_open(np.array(boxes, np.float64), corners)
    require_area(corners_N4, file, lambda row: f"line {lines[row][0]}")
    return corners_N4


def _mask_columns(file: str, lines: list[Line], masks: str) -> "dict[str, pa.Array[Any]]":
    """Return the absolute paths of each line's mask and of its ignored pixels, null if there are none."""
    root = os.path.abspath(masks)
    paths = [
        [_mask_path(file, n, root, name) if name else None for name in names] for n, (_, *names) in lines
    ]
    for (n, _), (mask, _) in zip(lines, paths, strict=True):
        if mask is None:
            raise UsageError(f"{file}, line {n}: there is no mask_path")
    return {
        "mask": string_column([mask for mask, _ in paths], masks),
        "ignore": string_column([ignore for _, ignore in paths], masks),
    }


def _mask_path(file: str, n: int, root: str, name: str) -> str:
    relative = os.path.normpath(name)
    if os.path.isabs(relative) or relative.split(os.sep)[0] == os.pardir:
        raise UsageError(f"{file}, line {n}: {name!r} is outside the folder of masks")
    path = os.path.join(root, relative)
    if not os.path.isfile(path):
        raise UsageError(
            f"{file}, line {n}: the mask {path} does not exist: give the folder that it is relative to"
        )
    return path
