"""Arrow schemas of items, plans and predictions."""

from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

import pyarrow as pa

from camworker.frame import CORNERS

SCHEMA_VERSION: Final = 1

# Settings that a recipe and a network share.
Pooling = Literal["avg", "max"]
POOLINGS: Final[tuple[Pooling, ...]] = get_args(Pooling)
Scoring = Literal["softmax", "sigmoid"]
SCORINGS: Final[tuple[Scoring, ...]] = get_args(Scoring)
Precision = Literal["auto", "float32", "bfloat16", "float16"]
PRECISIONS: Final[tuple[Precision, ...]] = get_args(Precision)

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
]
_TARGET_FIELDS: Final[list["pa.Field[Any]"]] = [
    pa.field("label", pa.int32()),
    pa.field("score", pa.float32()),
    pa.field("cam", pa.list_(pa.float16())),
    pa.field("boxes", pa.list_(pa.struct(_TARGET_BOX_FIELDS))),
]
BOX: Final = pa.struct([pa.field("rank", pa.int8()), *_TARGET_BOX_FIELDS])
TARGET_BOX: Final = pa.struct(_TARGET_BOX_FIELDS)
TARGET: Final = pa.struct(_TARGET_FIELDS)


@dataclass(frozen=True, slots=True)
class CamShape:
    """The shape of the class activation maps of a row.

    Attributes:
        k: Number of classes.
        h: Height of a map, in cells.
        w: Width of a map, in cells.
    """

    k: int
    h: int
    w: int


def predictions_schema(shape: CamShape) -> pa.Schema:
    """Return the schema of a part, without its metadata."""
    text, integer = pa.string(), pa.int32()
    fields: list[pa.Field[Any]] = [
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
        pa.field("boxes", pa.list_(BOX)),
        pa.field("cams", pa.fixed_shape_tensor(pa.float16(), (shape.k, shape.h, shape.w))),
        pa.field("targets", pa.list_(TARGET)),
    ]
    return pa.schema(fields)
