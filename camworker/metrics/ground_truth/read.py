"""Ground truth in the formats that people have it in: told apart here, each read into long form."""

import os

import numpy as np
import pyarrow as pa

from camworker.errors import UsageError, first_line
from camworker.frame import CORNERS
from camworker.inputs.tabular import column_types, read_columns
from camworker.metrics.ground_truth.annotations import (
    Annotations,
    By,
    Corners,
    corner_columns,
    half_open,
    labels_by,
    refuse_without_area,
)
from camworker.metrics.ground_truth.coco import read_coco
from camworker.metrics.ground_truth.mask_folder import read_mask_folder
from camworker.metrics.ground_truth.voc import read_voc
from camworker.metrics.ground_truth.wsol import IMAGE_IDS, read_wsol
from camworker.storage.local import LocalStore
from camworker.storage.uris import local_path


def read_annotations(
    path: str, *, corners: Corners = "half-open", by: By = "name", masks: str | None = None
) -> Annotations:
    """Read ground truth; what lies at path decides how.

    - a folder with image_ids.txt: the metadata of Choe et al.; masks: the folder of its mask files
    - a folder with .xml files, wherever below it: Pascal VOC
    - a folder with .png files in it: masks, MASKS/CLASS/NAME.png
    - a file that ends in .json: COCO, the dataset form
    - any other file: Parquet or CSV in long form (image_id, label, and corners where there are boxes)

    corners: how long form and metadata folders name them; "inclusive" becomes half-open by +1 on the
    maxima. The other formats say themselves. by: "name" takes labels as the file has them; "index" wants
    class indices: COCO's category_id, elsewhere labels that are whole numbers.
    Raises UsageError for what is malformed, with the file and the place in it. What cannot be used and
    is no mistake is left out and counted in notes.
    """
    folder = os.path.isdir(path)
    wsol = folder and os.path.isfile(os.path.join(path, IMAGE_IDS))
    if masks is not None and not wsol:
        raise UsageError(f"{path} names no mask files: a folder of masks goes with {IMAGE_IDS} and the like")
    if wsol:
        return read_wsol(local_path(path), corners, masks)
    if folder:
        return _read_folder(local_path(path), by)
    if path.lower().endswith(".json"):
        return read_coco(path, by)
    if path.lower().endswith((".xml", ".png", ".txt")):
        raise UsageError(f"{path} is one file of many: name the folder that holds them")
    return _read_long_form(path, corners, by)


def _read_folder(path: str, by: By) -> Annotations:
    keys = [entry.key for entry in LocalStore(path).list()]
    for suffix, read in ((".xml", read_voc), (".png", read_mask_folder)):
        if any(key.lower().endswith(suffix) for key in keys):
            return read(path, keys, by)
    raise UsageError(
        f"{path} holds no truth: a folder has Pascal VOC (.xml), masks (CLASS/NAME.png) or {IMAGE_IDS}; "
        "for Parquet, CSV or COCO name the file"
    )


def _read_long_form(path: str, corners: Corners, by: By) -> Annotations:
    """Parquet or CSV: image_id, label and, a box a row, the four corners."""
    have = column_types(path)
    boxed = any(name in have for name in CORNERS)
    table = read_columns(path, ["image_id", "label", *(CORNERS if boxed else ())], text=["image_id"])
    if table["image_id"].null_count or table["label"].null_count:
        raise UsageError(f"{path} has rows without image_id or label")
    columns = {
        "image_id": table["image_id"],
        "label": labels_by(table["label"], by, f"{path}, column 'label'"),
    }
    if boxed:
        try:
            values = [table[name].cast(pa.float64()).to_numpy() for name in CORNERS]
        except pa.ArrowException as error:
            raise UsageError(f"{path}: corners have to be numbers: {first_line(error)}") from error
        corners_N4 = half_open(np.stack(values, axis=1), corners)
        image_ids = table["image_id"]
        refuse_without_area(corners_N4, path, lambda row: f"row {row + 1}, {image_ids[row]}")
        columns |= corner_columns(corners_N4)
    return Annotations(pa.table(columns), inclusive=corners == "inclusive")
