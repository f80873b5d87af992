"""Predictions of a batch as an Arrow table: the rows of a part."""

import math
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from camworker.inference.predictions import ClassMaps, Predictions
from camworker.schemas import CamShape, predictions_schema

_SCHEMA: Final = predictions_schema(CamShape(1, 1, 1))
_BOX: Final[pa.StructType] = _SCHEMA.field("boxes").type.value_type
_TARGET: Final[pa.StructType] = _SCHEMA.field("targets").type.value_type
_TARGET_BOX: Final[pa.StructType] = _TARGET.field("boxes").type.value_type


def predictions_table(
    items: pa.Table, generation: int, predictions: Predictions, shape: CamShape
) -> pa.Table:
    """Rows of a part: items (PLAN or ITEMS) beside their predictions, in the same order.

    The identity of a removed image is empty.
    """
    if len(predictions) != items.num_rows:
        raise ValueError(f"{len(predictions)} predictions for {items.num_rows} items")
    schema = predictions_schema(shape)
    failures, best, known = predictions.failures, predictions.best, predictions.known
    ok_B = np.array([failure is None for failure in failures], np.bool_)
    classes_B = ok_B * shape.k
    columns = {name: items[name].combine_chunks() for name in ("image_id", "uri", "source_row")}
    columns["identity"] = pc.fill_null(items["identity"].combine_chunks(), "")
    columns["generation"] = pa.array(np.full(len(ok_B), generation, np.int32))
    columns["status"] = pa.array(predictions.statuses, pa.string())
    columns["error"] = pa.array([failure and failure.reason for failure in failures], pa.string())
    for column, name in enumerate(("width", "height")):
        columns[name] = pa.array(_spread(predictions.sizes_G2[:, column], ok_B), mask=~ok_B)
    names = pa.array(predictions.class_names, pa.string()).take(pa.array(best.labels_M))
    columns["labels"] = _lists(classes_B, pa.array(best.labels_M))
    columns["names"] = _lists(classes_B, names)
    columns["scores"] = _lists(classes_B, pa.array(best.scores_M))
    boxes_G = best.counts_M.reshape(-1, shape.k).sum(1)
    columns["boxes"] = _lists(_spread(boxes_G, ok_B), _boxes(best.boxes_L, _BOX))
    columns["cams"] = _tensors(best.cams_Mhw, ok_B, schema.field("cams").type)
    columns["targets"] = _lists(_spread(predictions.known_G, ok_B), _targets(known, shape))
    return pa.table([columns[name] for name in schema.names], schema=schema)


def _spread(values_G: NDArray[Any], ok_B: NDArray[np.bool_]) -> NDArray[Any]:
    """Values of the images that are ok at their places among all, zeros at the others."""
    values_B = np.zeros((len(ok_B), *values_G.shape[1:]), values_G.dtype)
    values_B[ok_B] = values_G
    return values_B


def _lists(lengths: NDArray[np.integer], values: pa.Array) -> pa.ListArray:
    """Values cut into lists of these lengths."""
    offsets = np.zeros(len(lengths) + 1, np.int32)
    np.cumsum(lengths, out=offsets[1:])
    return pa.ListArray.from_arrays(pa.array(offsets), values)


def _boxes(boxes_L: np.ndarray, kind: pa.StructType) -> pa.StructArray:
    fields = [pa.array(np.ascontiguousarray(boxes_L[field.name]), field.type) for field in kind]
    return pa.StructArray.from_arrays(fields, fields=list(kind))


def _targets(known: ClassMaps, shape: CamShape) -> pa.StructArray:
    cells = np.full(len(known.labels_M), shape.h * shape.w)
    arrays = [
        pa.array(known.labels_M),
        pa.array(known.scores_M),
        _lists(cells, pa.array(known.cams_Mhw.ravel())),
        _lists(known.counts_M, _boxes(known.boxes_L, _TARGET_BOX)),
    ]
    return pa.StructArray.from_arrays(arrays, fields=list(_TARGET))


def _tensors(
    cams_Mhw: NDArray[np.float16], ok_B: NDArray[np.bool_], kind: pa.FixedShapeTensorType
) -> pa.Array:
    size = math.prod(kind.shape)
    cams_BF = _spread(cams_Mhw.reshape(-1, size), ok_B)
    storage = pa.FixedSizeListArray.from_arrays(pa.array(cams_BF.ravel()), size, mask=pa.array(~ok_B))
    return pa.ExtensionArray.from_storage(kind, storage)
