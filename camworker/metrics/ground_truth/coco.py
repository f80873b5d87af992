"""Ground truth from COCO JSON, the dataset form: images, annotations, categories."""

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
    counted,
    half_open,
    has_area,
    is_pixel,
    strings,
)
from camworker.storage.uris import open_uri

Id = int | str


def read_coco(path: str, by: By) -> Annotations:
    """Boxes of a COCO file: image_id is images[].file_name, the label the category's name or its id.

    bbox is x, y, width, height. Notes: iscrowd (annotations of crowds, left out: their box is of no
    single object), no_area (boxes without width or height, left out), images_without_boxes.
    Raises UsageError for what is not this form, an id or file_name twice, an annotation of an unknown
    image or category, a bbox that is none.
    """
    images, categories, annotations = _parts(path)
    image_places, category_places = _places(path, "images", images), _places(path, "categories", categories)
    file_names = _texts(path, "images", images, "file_name")
    labels = _labels(path, categories, by)
    of_image = _referred(path, annotations, "image_id", image_places, "images")
    of_category = _referred(path, annotations, "category_id", category_places, "categories")
    corners_N4 = half_open(_corners(path, annotations), "half-open")
    crowd = np.fromiter((bool(entry.get("iscrowd")) for entry in annotations), np.bool_, len(annotations))
    flat = ~crowd & ~has_area(corners_N4)
    kept = np.flatnonzero(~crowd & ~flat)
    table = pa.table(
        {
            "image_id": strings(file_names, path).take(pa.array(of_image[kept])),
            "label": labels.take(pa.array(of_category[kept])),
            **corner_columns(corners_N4[kept]),
        }
    )
    without = len(images) - len(np.unique(of_image[kept]))
    notes = counted(iscrowd=int(crowd.sum()), no_area=int(flat.sum()), images_without_boxes=without)
    return Annotations(table, notes)


def _parts(path: str) -> tuple[list[Any], list[Any], list[Any]]:
    """The lists images, categories and annotations."""
    try:
        with open_uri(path) as file:
            # As text: the parser would keep bytes beside their decoded copy until it ends.
            text = io.TextIOWrapper(file, encoding="utf-8-sig")
            document = json.load(text, object_hook=_without_outline)
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path} cannot be read as JSON: {error}") from error
    if isinstance(document, list):
        raise UsageError(
            f"{path} is COCO's results form, which holds predictions: "
            "truth is the dataset form, an object of images, annotations and categories"
        )
    for part in ("images", "categories", "annotations"):
        if not isinstance(document, dict) or not isinstance(document.get(part), list):
            raise UsageError(f"{path} has no list {part!r}: COCO's dataset form needs it")
    return document["images"], document["categories"], document["annotations"]


def _without_outline(entry: dict[str, Any]) -> dict[str, Any]:
    # Polygons are most of a large file. Dropped as they are parsed, they never lie in memory together.
    entry.pop("segmentation", None)
    return entry


def _values(path: str, part: str, entries: list[Any], key: str) -> list[Any]:
    """entries[].key. Raises UsageError for an entry without it."""
    for place, entry in enumerate(entries):
        if not isinstance(entry, dict) or key not in entry:
            raise UsageError(f"{path}: {part}[{place}] has no {key!r}")
    return [entry[key] for entry in entries]


def _places(path: str, part: str, entries: list[Any]) -> dict[Id, int]:
    """The place of each id in a part. Raises UsageError for an id twice, or one that is no id."""
    places: dict[Id, int] = {}
    for place, value in enumerate(_values(path, part, entries, "id")):
        if type(value) not in (int, str):
            raise UsageError(f"{path}: {part}[{place}] has the id {reprlib.repr(value)}: ids are integers")
        if value in places:
            raise UsageError(f"{path}: {part}[{places[value]}] and {part}[{place}] share the id {value!r}")
        places[value] = place
    return places


def _texts(path: str, part: str, entries: list[Any], key: str) -> list[str]:
    """entries[].key, text that differs from entry to entry. Raises UsageError otherwise."""
    places: dict[str, int] = {}
    for place, value in enumerate(_values(path, part, entries, key)):
        if not isinstance(value, str) or not value:
            raise UsageError(
                f"{path}: {part}[{place}] has the {key} {reprlib.repr(value)}: it has to be text"
            )
        if value in places:
            raise UsageError(
                f"{path}: {part}[{places[value]}] and {part}[{place}] share the {key} {value!r}: "
                + ("match categories by index" if part == "categories" else "an image is listed once")
            )
        places[value] = place
    return list(places)


def _labels(path: str, categories: list[Any], by: By) -> pa.Array:
    """The label of each category: its name, or its id as int64."""
    if by == "name":
        return strings(_texts(path, "categories", categories, "name"), path)
    try:
        return pa.array([entry["id"] for entry in categories], pa.int64())
    except (TypeError, ValueError, OverflowError) as error:
        raise UsageError(f"{path}: category ids are no class indices, match them by name: {error}") from error


def _referred(
    path: str, annotations: list[Any], key: str, places: dict[Id, int], part: str
) -> NDArray[np.int64]:
    """Where in part each annotation's key leads to."""
    found = np.empty(len(annotations), np.int64)
    for n, value in enumerate(_values(path, "annotations", annotations, key)):
        place = places.get(value) if type(value) in (int, str) else None
        if place is None:
            raise UsageError(
                f"{path}: annotations[{n}] has the {key} {reprlib.repr(value)}, an id that {part} lacks"
            )
        found[n] = place
    return found


def _corners(path: str, annotations: list[Any]) -> NDArray[np.float64]:
    """xmin, ymin, xmax, ymax of every annotation's bbox, [N, 4]."""
    boxes = _values(path, "annotations", annotations, "bbox")
    for n, box in enumerate(boxes):
        if not isinstance(box, list) or len(box) != 4 or not all(map(is_pixel, box)) or min(box[2:]) < 0:
            raise UsageError(
                f"{path}: annotations[{n}] has the bbox {reprlib.repr(box)}: "
                "it has to be x, y, width, height in pixels"
            )
    boxes_N4 = np.array(boxes, np.float64).reshape(-1, 4)
    boxes_N4[:, 2:] += boxes_N4[:, :2]
    return boxes_N4
