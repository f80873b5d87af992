"""Arrow schemas of items, plans and predictions, and the rows themselves. No files are touched here."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from camworker.errors import Failure, MapOverflowError, Status

SCHEMA_VERSION: Final = 1

# What a source lists; size is in bytes, and only for telling people. identity is null in a plan alone, of
# an image that is to be removed: its row says so, and nothing is read.
ITEMS: Final = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("source_row", pa.int64()),
        pa.field("identity", pa.string()),
        pa.field("labels", pa.list_(pa.int32()), nullable=False),
        pa.field("size", pa.int64()),
    ]
)
# What a plan holds: a row group per shard.
PLAN: Final = ITEMS.remove(ITEMS.get_field_index("size")).append(
    pa.field("shard", pa.int32(), nullable=False)
)

_CORNERS: Final = ("xmin", "ymin", "xmax", "ymax")
BOX_DTYPE: Final = np.dtype(
    [("rank", "i1"), ("label", "<i4"), ("score", "<f4"), *((corner, "<f4") for corner in _CORNERS)]
)
TARGET_BOX_DTYPE: Final = np.dtype([field for field in BOX_DTYPE.descr if field[0] != "rank"])
_BOX: Final = pa.struct(
    [("rank", pa.int8()), ("label", pa.int32()), ("score", pa.float32())]
    + [(corner, pa.float32()) for corner in _CORNERS]
)
_TARGET_BOX: Final = pa.struct([field for field in _BOX if field.name != "rank"])
_TARGET: Final = pa.struct(
    [
        ("label", pa.int32()),
        ("score", pa.float32()),
        ("cam", pa.list_(pa.float16())),
        ("boxes", pa.list_(_TARGET_BOX)),
    ]
)


@dataclass(frozen=True, slots=True)
class CamShape:
    """The shape of a row's CAMs: k classes, h x w cells of the feature grid."""

    k: int
    h: int
    w: int


@dataclass(frozen=True, slots=True)
class Target:
    """What the network says of one class that the image is known to hold.

    cam: float16 [h, w]; boxes: BOX_DTYPE without rank, best first.
    """

    label: int
    score: float
    cam: NDArray[np.float16]
    boxes: np.ndarray


@dataclass(frozen=True, slots=True)
class Prediction:
    """One image's row, but for where the image came from.

    labels, scores: int32 and float32 [K], best first; names: their class names. cams: float16
    [K, h, w], signed and raw. boxes: BOX_DTYPE, half-open, in pixels of the image as displayed;
    rank counts from 1. width, height: of the image as displayed, in pixels.
    """

    width: int
    height: int
    labels: NDArray[np.int32]
    names: tuple[str, ...]
    scores: NDArray[np.float32]
    cams: NDArray[np.float16]
    boxes: np.ndarray
    targets: tuple[Target, ...] = ()
    status: Status = "ok"
    error: None = None


@dataclass(frozen=True, slots=True)
class FailedPrediction:
    """The row of an image that could not be localized: the fields of Prediction, empty."""

    status: Status
    error: str
    width: None = None
    height: None = None
    labels: tuple[()] = ()
    names: tuple[()] = ()
    scores: tuple[()] = ()
    cams: None = None
    boxes: tuple[()] = ()
    targets: tuple[()] = ()

    @classmethod
    def of(cls, failure: Failure) -> "FailedPrediction":
        return cls(failure.status, failure.reason)


AnyPrediction = Prediction | FailedPrediction


def make_boxes(label: int, score: float, corners_N4: NDArray[np.float32], rank: int) -> np.ndarray:
    """Boxes of one class as BOX_DTYPE, in the order given."""
    boxes = np.empty(len(corners_N4), BOX_DTYPE)
    boxes["rank"], boxes["label"], boxes["score"] = rank, label, score
    for column, corner in enumerate(_CORNERS):
        boxes[corner] = corners_N4[:, column]
    return boxes


def corners(boxes: np.ndarray) -> NDArray[np.float32]:
    """The corners of structured boxes: float32 N x 4."""
    return np.stack([boxes[corner] for corner in _CORNERS], axis=-1)


def to_float16(maps: NDArray[np.float32]) -> NDArray[np.float16]:
    """Round maps as they are stored. Raises MapOverflowError instead of writing an infinity."""
    with np.errstate(over="ignore"):
        rounded = maps.astype(np.float16)
    if not np.isfinite(rounded).all():
        raise MapOverflowError("a class activation map has values that float16 cannot hold")
    return rounded


def predictions_schema(shape: CamShape) -> pa.Schema:
    """The schema of a part, without its metadata."""
    text, integer = pa.string(), pa.int32()
    return pa.schema(
        [
            pa.field("image_id", text, nullable=False),
            pa.field("generation", integer, nullable=False),
            pa.field("uri", text, nullable=False),
            pa.field("source_row", pa.int64()),
            pa.field("identity", text, nullable=False),
            pa.field("status", text, nullable=False),
            pa.field("error", text),
            pa.field("width", integer),
            pa.field("height", integer),
            pa.field("labels", pa.list_(integer)),
            pa.field("names", pa.list_(text)),
            pa.field("scores", pa.list_(pa.float32())),
            pa.field("boxes", pa.list_(_BOX)),
            pa.field("cams", pa.fixed_shape_tensor(pa.float16(), (shape.k, shape.h, shape.w))),
            pa.field("targets", pa.list_(_TARGET)),
        ]
    )


def predictions_table(
    items: pa.Table, generation: int, predictions: Sequence[AnyPrediction], shape: CamShape
) -> pa.Table:
    """Rows of a part: items (PLAN or ITEMS) beside their predictions, in the same order.

    The identity of a removed image is empty.
    """
    if len(predictions) != items.num_rows:
        raise ValueError(f"{len(predictions)} predictions for {items.num_rows} items")
    schema = predictions_schema(shape)
    columns = {name: items[name].combine_chunks() for name in ("image_id", "uri", "source_row")}
    columns["identity"] = pc.fill_null(items["identity"].combine_chunks(), "")
    columns["generation"] = pa.array(np.full(len(predictions), generation, np.int32))
    for name in ("status", "error", "width", "height"):
        columns[name] = pa.array([getattr(p, name) for p in predictions], schema.field(name).type)
    for name in ("labels", "scores"):
        columns[name] = _lists([getattr(p, name) for p in predictions], schema.field(name).type)
    columns["names"] = pa.array([p.names for p in predictions], pa.list_(pa.string()))
    columns["boxes"] = _box_lists([p.boxes for p in predictions], BOX_DTYPE, _BOX)
    columns["cams"] = _tensors([p.cams for p in predictions], schema.field("cams").type)
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
        _lists([t.cam.ravel() for t in flat], pa.list_(pa.float16()))
        if flat
        else pa.array([], pa.list_(pa.float16())),
        _box_lists([t.boxes for t in flat], TARGET_BOX_DTYPE, _TARGET_BOX),
    ]
    return pa.ListArray.from_arrays(
        _offsets(map(len, values)), pa.StructArray.from_arrays(arrays, fields=list(_TARGET))
    )


def _tensors(values: Sequence[np.ndarray | None], kind: pa.FixedShapeTensorType) -> pa.Array:
    size = int(np.prod(kind.shape))
    flat = np.zeros((len(values), size), np.float16)
    for row, value in enumerate(values):
        if value is not None:
            flat[row] = value.reshape(size)
    missing = pa.array([value is None for value in values], pa.bool_())
    storage = pa.FixedSizeListArray.from_arrays(pa.array(flat.ravel()), size, mask=missing)
    return pa.ExtensionArray.from_storage(kind, storage)
