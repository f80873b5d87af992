"""Predictions of a batch as an Arrow table: the rows of a part."""

from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from camworker.frame import CORNERS
from camworker.inference.predictions import ClassMaps, Predictions
from camworker.schemas import BOX, PREDICTIONS, TARGET, TARGET_BOX


def predictions_table(items: pa.Table, generation: int, predictions: Predictions) -> pa.Table:
    """Return the rows of a part for a batch, one for each item, in order.

    Args:
        items: The items of the batch (schema `PLAN` or `ITEMS`). One without an identity is to be removed;
            its row has an empty identity.
        generation: Number of the generation.
        predictions: The predictions for the items.

    Returns:
        A table with the schema `PREDICTIONS`.

    Raises:
        ValueError: There are more or fewer predictions than items.
    """
    if len(predictions) != items.num_rows:
        raise ValueError(f"{len(predictions)} predictions for {items.num_rows} items")
    failures, best = predictions.failures, predictions.best
    ok_B = np.array([failure is None for failure in failures], np.bool_)
    images = len(predictions.sizes_G2)
    k = len(best.labels_M) // max(1, images)
    classes_B = ok_B * k
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
    boxes_G = best.counts_M.reshape(images, k).sum(1)
    ranks_M = np.tile(np.arange(1, k + 1, dtype=np.int8), images)
    columns["boxes"] = _lists(_spread(boxes_G, ok_B), _boxes(best, BOX, ranks_M))
    columns["cams"] = _maps(best.cams_Mhw, ok_B)
    columns["refined"] = _maps(best.refined_Mhw, ok_B)
    targets_B = _spread(predictions.target_counts_G, ok_B)
    columns["targets"] = _lists(targets_B, _targets(predictions.targets))
    return pa.table([columns[name] for name in PREDICTIONS.names], schema=PREDICTIONS)


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
    columns_L: dict[str, NDArray[Any]] = {
        name: np.repeat(values, classes.counts_M) for name, values in values_M.items() if values is not None
    }
    columns_L |= zip(CORNERS, np.ascontiguousarray(classes.corners_L4.T), strict=True)
    columns_L["fallback"] = classes.fallback_L
    fields = [_array(columns_L[field.name]) for field in kind]
    return pa.StructArray.from_arrays(fields, fields=list(kind))


def _targets(targets: ClassMaps) -> pa.StructArray:
    all_M = np.ones(len(targets.labels_M), np.bool_)
    arrays = [
        _array(targets.labels_M),
        _array(targets.scores_M),
        _maps(targets.cams_Mhw, all_M),
        _maps(targets.refined_Mhw, all_M),
        _lists(targets.counts_M, _boxes(targets, TARGET_BOX)),
    ]
    return pa.StructArray.from_arrays(arrays, fields=list(TARGET))


def _maps(
    maps_Mhw: NDArray[np.float16] | NDArray[np.uint8] | None, ok_B: NDArray[np.bool_]
) -> "pa.Array[Any]":
    """Return the maps of each row that is ok as one binary string, null for the other rows.

    Args:
        maps_Mhw: The same number of maps for each row that is ok, row after row; None: all are null.
        ok_B: Whether each row is ok.
    """
    if maps_Mhw is None:
        return pa.nulls(len(ok_B), pa.binary())
    data = np.ascontiguousarray(maps_Mhw, maps_Mhw.dtype.newbyteorder("<"))
    offsets = np.zeros(len(ok_B) + 1, np.int32)
    np.cumsum(ok_B * (data.nbytes // max(1, ok_B.sum())), out=offsets[1:])
    # The stubs do not know that Arrow reads NumPy's arrays.
    buffers = [_array(ok_B).buffers()[1], *(pa.py_buffer(cast(Any, array)) for array in (offsets, data))]
    return pa.Array.from_buffers(pa.binary(), len(ok_B), buffers)
