"""Ground truth from COCO JSON in the dataset format: images, annotations and categories."""

import io
import json
import reprlib
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from camworker.errors import UsageError
from camworker.metrics.ground_truth.annotations import (
    Annotations,
    By,
    corner_columns,
    half_open,
    has_area,
    is_pixel,
    nonzero_notes,
    string_column,
)
from camworker.storage.uris import open_uri

Id = int | str


def read_coco(path: str, by: By) -> Annotations:
    """Read the boxes of a COCO file.

    The image id is the image's file_name. The label is the name of the category, or its id to match classes
    by index. bbox is x, y, width, height. Notes: iscrowd (annotations of crowds, left out, because their box
    is not that of one object), no_area (boxes without width or height, left out), images_without_boxes.

    Args:
        path: The file, a path or a URI.
        by: What identifies a class.

    Raises:
        UsageError: The file is not in this format, an id or a file_name occurs twice, an annotation is of an
            unknown image or category, or a bbox is malformed.
    """
    images, categories, annotations = _parts(path)
    image_index, category_index = _index(path, "images", images), _index(path, "categories", categories)
    file_names = _texts(path, "images", images, "file_name")
    labels = _labels(path, categories, by)
    of_image = _resolve(path, annotations, "image_id", image_index, "images")
    of_category = _resolve(path, annotations, "category_id", category_index, "categories")
    corners_N4 = half_open(_corners(path, annotations), "half-open")
    crowd = np.fromiter((bool(entry.get("iscrowd")) for entry in annotations), np.bool_, len(annotations))
    flat = ~crowd & ~has_area(corners_N4)
    kept = np.flatnonzero(~crowd & ~flat)
    table = pa.table(
        {
            "image_id": string_column(file_names, path).take(of_image[kept]),
            "label": labels.take(of_category[kept]),
            **corner_columns(corners_N4[kept]),
        }
    )
    without = len(images) - len(np.unique(of_image[kept]))
    notes = nonzero_notes(iscrowd=int(crowd.sum()), no_area=int(flat.sum()), images_without_boxes=without)
    return Annotations(table, notes)


def _parts(path: str) -> tuple[list[Any], list[Any], list[Any]]:
    """Return the lists images, categories and annotations."""
    try:
        with open_uri(path) as file:
            # The parser would keep bytes in memory together with their decoded copy, so it gets text.
            text = io.TextIOWrapper(file, encoding="utf-8-sig")
            document = json.load(text, object_hook=_drop_outline)
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path} cannot be read as JSON: {error}") from error
    if isinstance(document, list):
        raise UsageError(
            f"{path} is in COCO's results format, which holds predictions: ground truth is in the dataset "
            "format, an object with images, annotations and categories"
        )
    for part in ("images", "categories", "annotations"):
        if not isinstance(document, dict) or not isinstance(document.get(part), list):
            raise UsageError(f"{path} has no list {part!r}, which COCO's dataset format needs")
    return document["images"], document["categories"], document["annotations"]


def _drop_outline(entry: dict[str, Any]) -> dict[str, Any]:
    # Polygons make up most of a large file. They are dropped while parsing, so they are never all in memory.
    entry.pop("segmentation", None)
    return entry


def _values(path: str, part: str, entries: list[Any], key: str) -> list[Any]:
    """Return the value of a key in every entry, and raise UsageError if an entry has none."""
    for n, entry in enumerate(entries):
        if not isinstance(entry, dict) or key not in entry:
            raise UsageError(f"{path}: {part}[{n}] has no {key!r}")
    return [entry[key] for entry in entries]


def _index(path: str, part: str, entries: list[Any]) -> dict[Id, int]:
    """Return the index of each id in a part, and raise UsageError for an id that is not valid and unique."""
    index: dict[Id, int] = {}
    for n, value in enumerate(_values(path, part, entries, "id")):
        if type(value) not in (int, str):
            raise UsageError(f"{path}: {part}[{n}] has the id {reprlib.repr(value)}: ids are integers")
        if value in index:
            raise UsageError(f"{path}: {part}[{index[value]}] and {part}[{n}] share the id {value!r}")
        index[value] = n
    return index


def _texts(path: str, part: str, entries: list[Any], key: str) -> list[str]:
    """Return the text of a key in every entry, and raise UsageError if one is not text or not unique."""
    index: dict[str, int] = {}
    for n, value in enumerate(_values(path, part, entries, key)):
        if not isinstance(value, str) or not value:
            raise UsageError(f"{path}: {part}[{n}] has the {key} {reprlib.repr(value)}: it has to be text")
        if value in index:
            raise UsageError(
                f"{path}: {part}[{index[value]}] and {part}[{n}] share the {key} {value!r}: "
                + ("match categories by index" if part == "categories" else "an image is listed once")
            )
        index[value] = n
    return list(index)


def _labels(path: str, categories: list[Any], by: By) -> "pa.Array[Any]":
    """Return the label of each category: its name, or its id as int64."""
    if by == "name":
        return string_column(_texts(path, "categories", categories, "name"), path)
    try:
        return pa.array([entry["id"] for entry in categories], pa.int64())
    except (TypeError, ValueError, OverflowError) as error:
        raise UsageError(
            f"{path}: category ids are not class indices, match them by name: {error}"
        ) from error


def _resolve(
    path: str, annotations: list[Any], key: str, index: dict[Id, int], part: str
) -> NDArray[np.int64]:
    """Return the index in a part of the entry that each annotation refers to."""
    indices = np.empty(len(annotations), np.int64)
    for n, value in enumerate(_values(path, "annotations", annotations, key)):
        entry = index.get(value) if type(value) in (int, str) else None
        if entry is None:
            raise UsageError(
                f"{path}: annotations[{n}] has the {key} {reprlib.repr(value)}, which no entry of {part} has"
            )
        indices[n] = entry
    return indices


def _corners(path: str, annotations: list[Any]) -> NDArray[np.float64]:
    """Return the corners of every annotation's bbox, [N, 4]."""
    boxes = _values(path, "annotations", annotations, "bbox")
    for n, box in enumerate(boxes):
        if not isinstance(box, list) or len(box) != 4 or not all(map(is_pixel, box)) or min(box[2:]) < 0:
            raise UsageError(
                f"{path}: annotations[{n}] has the bbox {reprlib.repr(box)}: "
                "x, y, width and height in pixels are needed"
            )
    boxes_N4 = np.array(boxes, np.float64).reshape(-1, 4)
    boxes_N4[:, 2:] += boxes_N4[:, :2]
    return boxes_N4
