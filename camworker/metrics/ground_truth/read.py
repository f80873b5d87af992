"""Ground truth in any supported format."""

import os
from typing import Any

import numpy as np
import pyarrow as pa

from camworker.errors import UsageError, first_line
from camworker.frame import CORNERS
from camworker.inputs.tabular import column_types, read_columns
from camworker.metrics.ground_truth.annotations import (
    Annotations,
    By,
    Corners,
    convert_labels,
    corner_columns,
    half_open,
    require_area,
)
from camworker.metrics.ground_truth.coco import read_coco
from camworker.metrics.ground_truth.mask_folder import read_mask_folder
from camworker.metrics.ground_truth.voc import read_voc
from camworker.metrics.ground_truth.wsol import IMAGE_IDS, read_wsol
from camworker.storage.local import LocalStore
from camworker.storage.parquet import combine_chunks
from camworker.storage.uris import local_path


def read_annotations(
    path: str, *, corners: Corners = "half-open", by: By = "name", masks: str | None = None
) -> Annotations:
    """Read ground truth in the format that the path has.

    The formats are:

    - a folder with image_ids.txt: the metadata of Choe et al. (CVPR 2020)
    - a folder with .xml files at any depth: Pascal VOC
    - a folder with .png files at any depth: masks, CLASS/NAME.png
    - a file whose name ends in .json: COCO in the dataset format
    - any other file: Parquet or CSV in long form (image_id, label, and corners if there are boxes)

    What cannot be used but is not a mistake is left out and counted in the notes.

    Args:
        path: The file or folder.
        corners: Whether xmax and ymax of long form and metadata folders name the end of a box or its last
            pixel. The other formats define it.
        by: "name" to take labels as they are in the file; "index" to take them as class indices (category_id
            in COCO, elsewhere labels that are whole numbers).
        masks: The folder that the mask paths of a metadata folder are relative to.

    Raises:
        UsageError: Something is malformed; the message names the file and the place in it.
    """
    folder = os.path.isdir(path)
    wsol = folder and os.path.isfile(os.path.join(path, IMAGE_IDS))
    if masks is not None and not wsol:
        raise UsageError(
            f"{path} names no mask files: a folder of masks is only used with a folder of {IMAGE_IDS}"
        )
    if wsol:
        return read_wsol(local_path(path), corners, masks)
    if folder:
        return _read_folder(local_path(path), by)
    if path.lower().endswith(".json"):
        return read_coco(path, by)
    if path.lower().endswith((".xml", ".png", ".txt")):
        raise UsageError(f"{path} is one of several files: name their folder")
    return _read_long_form(path, corners, by)


def _read_folder(path: str, by: By) -> Annotations:
    keys = [entry.key for entry in LocalStore(path).list()]
    for suffix, read in ((".xml", read_voc), (".png", read_mask_folder)):
        if any(key.lower().endswith(suffix) for key in keys):
            return read(path, keys, by)
    raise UsageError(
        f"{path} holds no ground truth: a folder has Pascal VOC (.xml), masks (CLASS/NAME.png) or "
        f"{IMAGE_IDS}; for Parquet, CSV or COCO name the file"
    )


def _read_long_form(path: str, corners: Corners, by: By) -> Annotations:
    """Read Parquet or CSV with one row per box: image_id, label and, if there are boxes, the four corners."""
    columns_in_file = column_types(path)
    has_boxes = any(name in columns_in_file for name in CORNERS)
    table = read_columns(path, ["image_id", "label", *(CORNERS if has_boxes else ())], text=["image_id"])
    if table["image_id"].null_count or table["label"].null_count:
        raise UsageError(f"{path} has rows without image_id or label")
    columns: dict[str, pa.Array[Any]] = {
        "image_id": combine_chunks(table["image_id"]),
        "label": convert_labels(combine_chunks(table["label"]), by, f"{path}, column 'label'"),
    }
    if has_boxes:
        try:
            values = [table[name].cast(pa.float64()).to_numpy() for name in CORNERS]
        except pa.ArrowException as error:
            raise UsageError(f"{path}: corners have to be numbers: {first_line(error)}") from error
        corners_N4 = half_open(np.stack(values, axis=1), corners)
        image_ids = table["image_id"]
        require_area(corners_N4, path, lambda row: f"row {row + 1}, {image_ids[row]}")
        columns |= corner_columns(corners_N4)
    return Annotations(pa.table(columns), inclusive=corners == "inclusive")
