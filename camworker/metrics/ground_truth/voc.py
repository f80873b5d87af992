"""Ground truth from a folder of Pascal VOC XML, one file per image."""

import os
from pathlib import PurePosixPath
from typing import TYPE_CHECKING
from xml.etree.ElementTree import ParseError

import numpy as np
import pyarrow as pa
from defusedxml.common import DTDForbidden
from defusedxml.ElementTree import fromstring

from camworker.errors import UsageError
from camworker.frame import CORNERS
from camworker.images.formats import IMAGE_EXTENSIONS
from camworker.metrics.ground_truth.annotations import (
    Annotations,
    By,
    convert_labels,
    corner_columns,
    is_pixel,
    nonzero_notes,
    require_area,
    string_column,
)

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element


def read_voc(path: str, keys: list[str], by: By) -> Annotations:
    """Read the boxes of Pascal VOC XML files.

    The image id is <filename>, or the name of the XML file with .jpg if that is missing. If no <filename> has
    the extension of an image, as in ILSVRC, image ids are stems. Corners are 1-based and inclusive (VOC2012
    development kit), so half-open ones are the minima less 1 and the maxima unchanged. Parts of objects are
    not read. Notes: difficult (objects marked so, kept), below_one (boxes with a corner that a 1-based file
    cannot have, kept: their author counted from 0), images_without_boxes.

    Args:
        path: The folder.
        keys: Paths of its files, relative to it.
        by: What identifies a class.

    Raises:
        UsageError: A file is not an annotation or declares a document type, two files are of one image, or a
            box is malformed.
    """
    files: dict[str, str] = {}
    image_ids: list[str] = []
    names: list[str] = []
    locations: list[str] = []
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
            location = f"{file}, object {n}"
            image_ids.append(image_id)
            names.append(_name(element, location))
            boxes.append(_box(element, location))
            locations.append(location)
            difficult += (element.findtext("difficult") or "").strip() not in ("", "0")
    one_based_N4 = np.array(boxes, np.float64).reshape(-1, 4)
    corners_N4 = (one_based_N4 - [1, 1, 0, 0]).astype(np.float32)
    require_area(corners_N4, path, locations.__getitem__)
    table = pa.table(
        {
            "image_id": string_column(image_ids, path),
            "label": convert_labels(string_column(names, path), by, f"{path}, <name>"),
            **corner_columns(corners_N4),
        }
    )
    notes = nonzero_notes(
        difficult=difficult,
        below_one=int((one_based_N4 < 1).any(1).sum()),
        images_without_boxes=len(files) - len(set(image_ids)),
    )
    stems = not any(image_id.lower().endswith(IMAGE_EXTENSIONS) for image_id in files)
    return Annotations(table, notes, stems, inclusive=True)


def _parse(file: str) -> "Element":
    try:
        with open(file, "rb") as opened:
            root: Element = fromstring(opened.read(), forbid_dtd=True)
    except DTDForbidden as error:
        raise UsageError(
            f"{file} declares a document type (<!DOCTYPE), which could make it expand without end: remove it"
        ) from error
    except (OSError, ParseError, ValueError, LookupError) as error:
        raise UsageError(f"{file} cannot be read as XML: {error}") from error
    if root.tag != "annotation":
        raise UsageError(f"{file} is not a Pascal VOC file: it starts with <{root.tag}>, not <annotation>")
    return root


def _name(element: "Element", location: str) -> str:
    name = (element.findtext("name") or "").strip()
    if not name:
        raise UsageError(f"{location} has no <name>: the name of its class is needed")
    return name


def _box(element: "Element", location: str) -> list[float]:
    """Return the corners of an object as in its file."""
    box = element.find("bndbox")
    if box is None:
        raise UsageError(f"{location} has no <bndbox>: only boxes can be read")
    return [_corner(box.findtext(name), f"{location}, <{name}>") for name in CORNERS]


def _corner(text: str | None, location: str) -> float:
    try:
        value = float(text or "")
    except ValueError:
        value = float("nan")
    if not is_pixel(value):
        raise UsageError(f"{location} is {text!r}: a number of pixels is needed")
    return value
