"""Ground truth from a folder of Pascal VOC XML, a file an image."""

import os
import re
from pathlib import PurePosixPath
from typing import Final
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa

from camworker.errors import UsageError
from camworker.frame import CORNERS
from camworker.images.formats import IMAGE_EXTENSIONS
from camworker.metrics.ground_truth.annotations import (
    Annotations,
    By,
    corner_columns,
    counted,
    is_pixel,
    labels_by,
    refuse_without_area,
    strings,
)

# In UTF-16 a zero byte follows or precedes each letter.
_DOCTYPE: Final = re.compile(rb"\0?".join(re.escape(b"<!DOCTYPE"[n : n + 1]) for n in range(9)))


def read_voc(path: str, keys: list[str], by: By) -> Annotations:
    """Boxes of the XML files among keys, which are relative to the folder path.

    image_id is <filename>, or the file's own name with .jpg where that is missing; where no <filename>
    has an image's extension (ILSVRC's do not), they are stems. Corners are 1-based and inclusive (VOC2012
    development kit): half-open is -1 on the minima and the maxima as they are. Parts of objects are not
    read. Notes: difficult (objects marked so, kept), below_one (boxes with a corner that no 1-based file
    can have, kept: whoever wrote them counted from 0), images_without_boxes.
    Raises UsageError for what is not an annotation, a document type, an image twice, a box that is none.
    """
    files: dict[str, str] = {}
    image_ids, names, places = [], [], []
    boxes: list[list[float]] = []
    difficult = 0
    for key in sorted(key for key in keys if key.lower().endswith(".xml")):
        file = os.path.join(path, key)
        root = _parse(file)
        image_id = (root.findtext("filename") or "").strip() or f"{PurePosixPath(key).stem}.jpg"
        if image_id in files:
            raise UsageError(f"{files[image_id]} and {file} are both of the image {image_id!r}: keep one")
        files[image_id] = file
        for n, element in enumerate(root.findall("object"), start=1):
            place = f"{file}, object {n}"
            image_ids.append(image_id)
            names.append(_name(element, place))
            boxes.append(_box(element, place))
            places.append(place)
            difficult += (element.findtext("difficult") or "").strip() not in ("", "0")
    one_based_N4 = np.array(boxes, np.float64).reshape(-1, 4)
    corners_N4 = (one_based_N4 - [1, 1, 0, 0]).astype(np.float32)
    refuse_without_area(corners_N4, path, places.__getitem__)
    table = pa.table(
        {
            "image_id": strings(image_ids, path),
            "label": labels_by(strings(names, path), by, f"{path}, <name>"),
            **corner_columns(corners_N4),
        }
    )
    notes = counted(
        difficult=difficult,
        below_one=int((one_based_N4 < 1).any(1).sum()),
        images_without_boxes=len(files) - len(set(image_ids)),
    )
    stems = not any(image_id.lower().endswith(IMAGE_EXTENSIONS) for image_id in files)
    return Annotations(table, notes, stems, inclusive=True)


def _parse(file: str) -> ElementTree.Element:
    try:
        with open(file, "rb") as opened:
            data = opened.read()
        # Entities are declared in a document type, and only there: without one nothing can be expanded
        # or fetched. Looked for before anything is parsed.
        if _DOCTYPE.search(data):
            raise UsageError(
                f"{file} declares a document type (<!DOCTYPE), which could hold a bomb: remove it"
            )
        root = ElementTree.fromstring(data)
    except (OSError, ElementTree.ParseError, ValueError, LookupError) as error:
        raise UsageError(f"{file} cannot be read as XML: {error}") from error
    if root.tag != "annotation":
        raise UsageError(f"{file} is no Pascal VOC file: it starts with <{root.tag}>, not <annotation>")
    return root


def _name(element: ElementTree.Element, place: str) -> str:
    name = (element.findtext("name") or "").strip()
    if not name:
        raise UsageError(f"{place} has no <name>: it has to name its class")
    return name


def _box(element: ElementTree.Element, place: str) -> list[float]:
    """The corners of an object as its file has them."""
    box = element.find("bndbox")
    if box is None:
        raise UsageError(f"{place} has no <bndbox>: only boxes can be read")
    return [_corner(box.findtext(name), f"{place}, <{name}>") for name in CORNERS]


def _corner(text: str | None, place: str) -> float:
    try:
        value = float(text or "")
    except ValueError:
        value = float("nan")
    if not is_pixel(value):
        raise UsageError(f"{place} is {text!r}: it has to be a number of pixels")
    return value
