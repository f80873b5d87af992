"""Arrow schemas of items, plans and predictions."""

import json
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias, cast, get_args

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from camworker.errors import CorruptedError
from camworker.frame import CORNERS

SCHEMA_VERSION: Final = 2

# Settings that a recipe and a network share.
Pooling = Literal["avg", "max"]
POOLINGS: Final[tuple[Pooling, ...]] = get_args(Pooling)
Scoring = Literal["softmax", "sigmoid"]
SCORINGS: Final[tuple[Scoring, ...]] = get_args(Scoring)
Precision = Literal["auto", "float32", "bfloat16", "float16"]
PRECISIONS: Final[tuple[Precision, ...]] = get_args(Precision)
Refined = Literal[
    "best", "all"
]  # whose refined maps a row holds: of the best class, or of all ranked classes
REFINED: Final[tuple[Refined, ...]] = get_args(Refined)

MapColumn: TypeAlias = "pa.Array[Any] | pa.ChunkedArray[Any]"

# The items of a source. The size is in bytes, for display only. The identity is null only in a plan, for an
# image that is to be removed: nothing is read, and the status of its row is "removed".
_ITEM_FIELDS: Final[list["pa.Field[Any]"]] = [
    pa.field("image_id", pa.string(), nullable=False),
    pa.field("uri", pa.string(), nullable=False),
    pa.field("source_row", pa.int64()),
    pa.field("identity", pa.string()),
    pa.field("labels", pa.list_(pa.int32()), nullable=False),
    pa.field("size", pa.int64()),
]
ITEMS: Final = pa.schema(_ITEM_FIELDS)
# The items of a plan, with a row group per shard.
PLAN: Final = ITEMS.remove(ITEMS.get_field_index("size")).append(
    pa.field("shard", pa.int32(), nullable=False)
)

_TARGET_BOX_FIELDS: Final[list["pa.Field[Any]"]] = [
    pa.field("label", pa.int32()),
    pa.field("score", pa.float32()),
    *(pa.field(corner, pa.float32()) for corner in CORNERS),
    pa.field("fallback", pa.bool_()),
]
BOX: Final = pa.struct([pa.field("rank", pa.int8()), *_TARGET_BOX_FIELDS])
TARGET_BOX: Final = pa.struct(_TARGET_BOX_FIELDS)
TARGET: Final = pa.struct(
    [
        pa.field("label", pa.int32()),
        pa.field("score", pa.float32()),
        pa.field("cam", pa.binary()),
        pa.field("refined", pa.binary()),
        pa.field("boxes", pa.list_(TARGET_BOX)),
    ]
)

# A part, without its metadata. Maps are plain bytes, which every Parquet reader opens: see `cam_maps` and
# `refined_u8`. The metadata has their shapes under "cam_shape" and "refined_shape", as JSON.
_PREDICTION_FIELDS: Final[list["pa.Field[Any]"]] = [
    pa.field("image_id", pa.string(), nullable=False),
    pa.field("generation", pa.int32(), nullable=False),
    pa.field("uri", pa.string(), nullable=False),
    pa.field("source_row", pa.int64()),
    pa.field("identity", pa.string(), nullable=False),
    pa.field("status", pa.string(), nullable=False),
    pa.field("error", pa.string()),
    pa.field("width", pa.int32()),
    pa.field("height", pa.int32()),
    pa.field("labels", pa.list_(pa.int32())),
    pa.field("names", pa.list_(pa.string())),
    pa.field("scores", pa.list_(pa.float32())),
    pa.field("boxes", pa.list_(BOX)),
    pa.field("cams", pa.binary()),
    pa.field("refined", pa.binary()),
    pa.field("targets", pa.list_(TARGET)),
]
PREDICTIONS: Final = pa.schema(_PREDICTION_FIELDS)


@dataclass(frozen=True, slots=True)
class CamShape:
    """The shape of the maps of a row, raw or refined.

    Attributes:
        k: Number of classes.
        h: Height of a map, in cells.
        w: Width of a map, in cells.
    """

    k: int
    h: int
    w: int

    @property
    def one(self) -> "CamShape":
        """The shape of a single map."""
        return CamShape(1, self.h, self.w)

    @property
    def size(self) -> int:
        """The number of values."""
        return self.k * self.h * self.w

    def to_json(self) -> str:
        """Return the shape as file metadata hold it: "[k, h, w]"."""
        return json.dumps([self.k, self.h, self.w])

    @classmethod
    def from_json(cls, text: str | bytes) -> "CamShape | None":
        """Return the shape that `to_json` wrote, None for "null".

        Raises:
            CorruptedError: The text is neither.
        """
        try:
            content = json.loads(text)
        except ValueError:
            content = ""
        match content:
            case None:
                return None
            case [int(k), int(h), int(w)] if min(k, h, w) > 0:
                return cls(k, h, w)
        raise CorruptedError(f"{text!r} is not the shape of maps")


def cam_maps(column: MapColumn, shape: CamShape) -> NDArray[np.float16]:
    """Return a column of class activation maps as one array.

    Args:
        column: The column "cams", or "cam" of targets (with a shape of k = 1), without nulls.
        shape: The shape of the maps of a value.

    Returns:
        float16 [N, k, h, w]; a read-only view of the column's memory if that is one chunk.

    Raises:
        CorruptedError: A value is null or does not have this shape.
    """
    return _decoded(column, shape, np.dtype("<f2"))


def refined_u8(column: MapColumn, shape: CamShape) -> NDArray[np.uint8]:
    """Return a column of refined maps as one array, see `cam_maps`.

    Args:
        column: The column "refined", or "refined" of targets (with a shape of k = 1), without nulls.
        shape: The shape of the maps of a value.

    Returns:
        uint8 [N, k, h, w]: round(255 sqrt(M / max M)), as `camworker.boxes.refine.decode_refined` reads it.

    Raises:
        CorruptedError: A value is null or does not have this shape.
    """
    return _decoded(column, shape, np.dtype(np.uint8))


def _decoded(column: MapColumn, shape: CamShape, kind: np.dtype[Any]) -> NDArray[Any]:
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    parts = [_values(chunk, shape.size, kind) for chunk in chunks if len(chunk)]
    values = parts[0] if len(parts) == 1 else np.concatenate([np.empty(0, kind), *parts])
    return values.reshape(-1, shape.k, shape.h, shape.w)


def _values(chunk: "pa.Array[Any]", size: int, kind: np.dtype[Any]) -> NDArray[Any]:
    """Return the values of binary strings of `size` values each, without a copy."""
    # The stubs do not know that NumPy reads Arrow's buffers.
    _, offsets, data = cast("list[Any]", chunk.buffers())
    starts = np.frombuffer(offsets, np.int32)[chunk.offset : chunk.offset + len(chunk) + 1]
    if chunk.null_count or (np.diff(starts) != size * kind.itemsize).any():
        raise CorruptedError(f"a row does not hold maps of {size} values: run camworker verify OUT")
    values: NDArray[Any] = np.frombuffer(data, kind, size * len(chunk), int(starts[0]))
    return values
