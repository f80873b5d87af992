"""Predictions of a batch as an Arrow table: the rows of a part."""

import math
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from camworker.frame import CORNERS
from camworker.inference.predictions import ClassMaps, Predictions
from camworker.schemas import BOX, TARGET, TARGET_BOX, CamShape, predictions_schema


def predictions_table(
    items: pa.Table, generation: int, predictions: Predictions, shape: CamShape
) -> pa.Table:
    """Return the rows of a part for a batch, one for each item, in order.

    Args:
        items: The items of the batch (schema `PLAN` or `ITEMS`). One without an identity is to be removed;
            its row has an empty identity.
        generation: Number of the generation.
        predictions: The predictions for the items.
        shape: Shape of the class activation maps of a row.

    Returns:
        A table with `predictions_schema(shape)`.

    Raises:
        ValueError: There are more or fewer predictions than items.
    """
    if len(predictions) != items.num_rows:
        raise ValueError(f"{len(predictions)} predictions for {items.num_rows} items")
    schema = predictions_schema(shape)
    failures, best = predictions.failures, predictions.best
    ok_B = np.array([failure is None for failure in failures], np.bool_)
    classes_B = ok_B * shape.k
    images = len(predictions.sizes_G2)
    columns: dict[str, pa.Array[Any]] = {
        name: items[name].combine_chunks() for name in ("image_id", "uri", "source_row")
    }
    # The stub of fill_null knows no scalar.
    columns["identity"] = pc.fill_null(items["identity"].combine_chunks(), "")  # type: ignore[arg-type]
    columns["generation"] = _array(np.full(len(ok_B), generation, np.int32))
    columns["status"] = pa.array(predictions.statuses, pa.string())
    columns["error"] = pa.array([failure and failure.reason for failure in failures], pa.string())
    for column, name in enumerate(("width", "height")):
        columns[name] = _array(_spread(predictions.sizes_G2[:, column], ok_B), mask=~ok_B)
    names = pa.array(predictions.class_names, pa.string()).take(best.labels_M)
    columns["labels"] = _lists(classes_B, _array(best.labels_M))
    columns["names"] = _lists(classes_B, names)
    columns["scores"] = _lists(classes_B, _array(best.scores_M))
    boxes_G = best.counts_M.reshape(images, shape.k).sum(1)
    ranks_M = np.tile(np.arange(1, shape.k + 1, dtype=np.int8), images)
    columns["boxes"] = _lists(_spread(boxes_G, ok_B), _boxes(best, BOX, ranks_M))
    columns["cams"] = _tensors(best.cams_Mhw, ok_B, schema.field("cams").type)
    targets_B = _spread(predictions.target_counts_G, ok_B)
    columns["targets"] = _lists(targets_B, _targets(predictions.targets, shape))
    return pa.table([columns[name] for name in schema.names], schema=schema)


def _spread(values_G: NDArray[Any], ok_B: NDArray[np.bool_]) -> NDArray[Any]:
    """Return an array of B rows: the given rows where `ok_B` is true, and zeros elsewhere."""
    values_B = np.zeros((len(ok_B), *values_G.shape[1:]), values_G.dtype)
    values_B[ok_B] = values_G
    return values_B


def _array(values: NDArray[Any], mask: NDArray[np.bool_] | None = None) -> "pa.Array[Any]":
    # The stubs take every NumPy array for one of booleans.
    return cast("pa.Array[Any]", pa.array(values, mask=mask))


def _lists(lengths: NDArray[np.integer], values: "pa.Array[Any]") -> "pa.Array[Any]":
    """Return consecutive values as lists of these lengths."""
    offsets = np.zeros(len(lengths) + 1, np.int32)
    np.cumsum(lengths, out=offsets[1:])
    return pa.ListArray.from_arrays(cast("pa.Int32Array", _array(offsets)), values)


def _boxes(
    classes: ClassMaps, kind: pa.StructType, ranks_M: NDArray[np.int8] | None = None
) -> pa.StructArray:
    """Return the boxes of classes as structs of this type, whose rank needs `ranks_M`."""
    values_M = {"rank": ranks_M, "label": classes.labels_M, "score": classes.scores_M}
    columns_L = dict(zip(CORNERS, np.ascontiguousarray(classes.corners_L4.T), strict=True)) | {
        name: np.repeat(values, classes.counts_M) for name, values in values_M.items() if values is not None
    }
    fields = [_array(columns_L[field.name]) for field in kind]
    return pa.StructArray.from_arrays(fields, fields=list(kind))


def _targets(targets: ClassMaps, shape: CamShape) -> pa.StructArray:
    cells = np.full(len(targets.labels_M), shape.h * shape.w)
    arrays = [
        _array(targets.labels_M),
        _array(targets.scores_M),
        _lists(cells, _array(targets.cams_Mhw.ravel())),
        _lists(targets.counts_M, _boxes(targets, TARGET_BOX)),
    ]
    return pa.StructArray.from_arrays(arrays, fields=list(TARGET))


def _tensors(
    cams_Mhw: NDArray[np.float16],
    ok_B: NDArray[np.bool_],
    kind: "pa.FixedShapeTensorType[Any]",
) -> "pa.Array[Any]":
    """Return the maps of each image as one tensor, null for images that are not ok."""
    size = math.prod(kind.shape)
    cams_BF = _spread(cams_Mhw.reshape(-1, size), ok_B)
    storage = pa.FixedSizeListArray.from_arrays(_array(cams_BF.ravel()), size, mask=_array(~ok_B))
    return pa.ExtensionArray.from_storage(kind, storage)
