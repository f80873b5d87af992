"""Arrow schemas of items, plans and predictions."""

from dataclasses import dataclass
from typing import Final, Literal, get_args

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
# The items of a plan, with a row group per shard.
PLAN: Final = ITEMS.remove(ITEMS.get_field_index("size")).append(
    pa.field("shard", pa.int32(), nullable=False)
)

_BOX: Final = pa.struct(
    [("rank", pa.int8()), ("label", pa.int32()), ("score", pa.float32())]
    + [(corner, pa.float32()) for corner in CORNERS]
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
