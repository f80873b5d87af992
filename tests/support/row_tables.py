"""Tables built row by row: the reference for the columns of a batch, and a way to construct rows in tests."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from camworker.errors import Failure
from camworker.frame import CORNERS
from camworker.inference.predictions import (
    BOX_DTYPE,
    TARGET_BOX_DTYPE,
    AnyPrediction,
    ClassMaps,
    Prediction,
    Predictions,
    Target,
)
from camworker.schemas import BOX, PREDICTIONS, SCHEMA_VERSION, TARGET, TARGET_BOX, CamShape


def make_boxes(label: int, score: float, corners_N4: NDArray[np.float32], rank: int) -> np.ndarray:
    """Return boxes of one class as `BOX_DTYPE`, in the given order."""
    boxes = np.empty(len(corners_N4), BOX_DTYPE)
    boxes["rank"], boxes["label"], boxes["score"], boxes["fallback"] = rank, label, score, False
    for column, corner in enumerate(("xmin", "ymin", "xmax", "ymax")):
        boxes[corner] = corners_N4[:, column]
    return boxes


def corners(boxes: np.ndarray) -> NDArray[np.float32]:
    """Return the corners of structured boxes, float32 [N, 4]."""
    return np.stack([boxes[corner] for corner in CORNERS], axis=-1)


def columns_of(predictions: Sequence[AnyPrediction], shape: CamShape) -> Predictions:
    """Return rows as the columns that a Localizer returns."""
    good = [row for row in predictions if isinstance(row, Prediction)]
    refined = [map_hw for row in good if row.refined is not None for map_hw in row.refined]
    names = {int(label): name for row in good for label, name in zip(row.labels, row.names, strict=True)}
    best = [
        Target(int(label), float(score), cam_hw, row.boxes[row.boxes["rank"] == rank])
        for row in good
        for rank, (label, score, cam_hw) in enumerate(zip(row.labels, row.scores, row.cams, strict=True), 1)
    ]
    return Predictions(
        [None if isinstance(row, Prediction) else Failure(row.status, row.error) for row in predictions],
        [names.get(label, f"class {label}") for label in range(1 + max(names, default=0))],
        np.array([(row.width, row.height) for row in good], np.int32).reshape(-1, 2),
        replace(_class_maps(best, shape), refined_Mhw=np.array(refined) if refined else None),
        _class_maps([target for row in good for target in row.targets], shape),
        np.array([len(row.targets) for row in good], np.int64),
    )


def _class_maps(classes: Sequence[Target], shape: CamShape) -> ClassMaps:
    cams = [one.cam for one in classes]
    refined = [one.refined for one in classes if one.refined is not None]
    return ClassMaps(
        np.array([one.label for one in classes], np.int32),
        np.array([one.score for one in classes], np.float32),
        np.array(cams, np.float16).reshape(-1, shape.h, shape.w),
        np.concatenate([np.empty((0, 4), np.float32), *(corners(one.boxes) for one in classes)]),
        np.array([len(one.boxes) for one in classes], np.int64),
        np.concatenate([np.empty(0, bool), *(one.boxes["fallback"] for one in classes)]),
        np.array(refined) if refined else None,
    )


def predictions_table(items: pa.Table, generation: int, predictions: Sequence[AnyPrediction]) -> pa.Table:
    """Return the rows of a part: items (schema PLAN or ITEMS) with their predictions in the same order."""
    if len(predictions) != items.num_rows:
        raise ValueError(f"{len(predictions)} predictions for {items.num_rows} items")
    schema = PREDICTIONS
    columns = {name: items[name].combine_chunks() for name in ("image_id", "uri", "source_row", "identity")}
    columns["generation"] = pa.array(np.full(len(predictions), generation, np.int32))
    for name in ("status", "error", "width", "height"):
        columns[name] = pa.array([getattr(p, name) for p in predictions], schema.field(name).type)
    for name in ("labels", "scores"):
        columns[name] = _lists([getattr(p, name) for p in predictions], schema.field(name).type)
    columns["names"] = pa.array([p.names for p in predictions], pa.list_(pa.string()))
    columns["boxes"] = _box_lists([p.boxes for p in predictions], BOX_DTYPE, BOX)
    for name in ("cams", "refined"):
        columns[name] = _bytes([getattr(p, name) for p in predictions])
    columns["targets"] = _target_lists([p.targets for p in predictions])
    return pa.table([columns[name] for name in schema.names], schema=schema)


def _offsets(lengths: Iterable[int]) -> pa.Array:
    return pa.array(np.cumsum([0, *lengths]), pa.int32())


def _lists(values: Sequence[Sequence[float] | np.ndarray], kind: pa.ListType) -> pa.Array:
    flat = np.concatenate([np.asarray(v, kind.value_type.to_pandas_dtype()).ravel() for v in values])
    return pa.ListArray.from_arrays(_offsets(map(len, values)), pa.array(flat, kind.value_type))


def _box_lists(values: Sequence[np.ndarray | tuple[()]], dtype: np.dtype, kind: pa.StructType) -> pa.Array:
    flat = np.concatenate([np.empty(0, dtype), *(v for v in values if len(v))])
    fields = [pa.array(np.ascontiguousarray(flat[f.name]), f.type) for f in kind]
    return pa.ListArray.from_arrays(
        _offsets(map(len, values)), pa.StructArray.from_arrays(fields, fields=list(kind))
    )


def _target_lists(values: Sequence[tuple[Target, ...]]) -> pa.Array:
    flat = [target for targets in values for target in targets]
    arrays = [
        pa.array([t.label for t in flat], pa.int32()),
        pa.array([t.score for t in flat], pa.float32()),
        _bytes([t.cam for t in flat]),
        _bytes([t.refined for t in flat]),
        _box_lists([t.boxes for t in flat], TARGET_BOX_DTYPE, TARGET_BOX),
    ]
    return pa.ListArray.from_arrays(
        _offsets(map(len, values)), pa.StructArray.from_arrays(arrays, fields=list(TARGET))
    )


def _bytes(values: Sequence[np.ndarray | None]) -> pa.Array:
    return pa.array([None if value is None else value.tobytes() for value in values], pa.binary())


def with_shapes(
    table: pa.Table, cams: CamShape, refined: CamShape | None = None, **metadata: str
) -> pa.Table:
    """Return a table with the file metadata that readers of a part need, and any others."""
    shapes = {
        "schema_version": str(SCHEMA_VERSION),
        "cam_shape": cams.to_json(),
        "refined_shape": "null" if refined is None else refined.to_json(),
    }
    return table.replace_schema_metadata(shapes | metadata)
