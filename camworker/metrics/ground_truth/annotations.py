"""`Annotations`, which every reader of ground truth returns, and what the readers share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from camworker.errors import UsageError, first_line
from camworker.frame import CORNERS

Corners = Literal["half-open", "inclusive"]
By = Literal["name", "index"]

# float32 represents every whole pixel up to this coordinate; no image is larger.
_LARGEST_CORNER: Final = 2.0**24


@dataclass(frozen=True)
class Annotations:
    """Ground truth in long form: a row is a box or a mask of one label in one image, or a label alone.

    Attributes:
        table: The rows, with the columns image_id (string); label (string for class names, int64 for class
            indices, or the type in the user's file); xmin, ymin, xmax and ymax (float32, half-open, in pixels
            of the original image), absent if no row has a box, null in a row without one; mask and ignore
            (string, absolute paths of PNG files), absent if the ground truth has no masks, null in a row
            without one.
        notes: What was left out or is remarkable, with its number. The docstring of a reader lists its keys.
        stems: Whether image ids have no file extension; they then match image ids without their extension.
        inclusive: Whether the file named the last pixel of each box; the corners here are half-open.
    """

    table: pa.Table
    notes: dict[str, int] = field(default_factory=dict)
    stems: bool = False
    inclusive: bool = False


def nonzero_notes(**notes: int) -> dict[str, int]:
    """Return the notes whose number is not zero."""
    return {name: count for name, count in notes.items() if count}


def string_column(values: Sequence[str | None], path: str) -> "pa.Array[Any]":
    """Return a column of strings, null for None.

    Raises:
        UsageError: A text cannot be encoded as UTF-8, because it holds half a surrogate pair.
    """
    try:
        return pa.array(values, pa.string())
    except UnicodeEncodeError as error:
        raise UsageError(f"{path}: {error.object!r} is not valid Unicode: rename it") from error


def convert_labels(labels: "pa.Array[Any]", by: By, where: str) -> "pa.Array[Any]":
    """Return labels unchanged to match classes by name, or as int64 to match them by index.

    Args:
        labels: The labels in the file.
        by: What identifies a class.
        where: Where the labels were read, for the message.

    Raises:
        UsageError: A label is not a whole number, and classes are matched by index.
    """
    if by == "name":
        return labels
    try:
        if isinstance(labels, pa.DictionaryArray):
            labels = labels.dictionary_decode()
        return labels.cast(pa.int64())
    except pa.ArrowException as error:
        reason = first_line(error)
        raise UsageError(f"{where}: labels are not class indices, match them by name: {reason}") from error


def is_pixel(value: object) -> bool:
    """Return whether a value can be a coordinate: a finite number that float32 represents to the pixel."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _LARGEST_CORNER


def half_open(corners_N4: NDArray[np.float64], corners: Corners) -> NDArray[np.float32]:
    """Return corners [N, 4] as half-open ones.

    The maxima of an inclusive box name its last pixel, so 1 is added to them.
    """
    ends = np.array([0, 0, 1, 1] if corners == "inclusive" else [0, 0, 0, 0], np.float64)
    converted: NDArray[np.float32] = (corners_N4 + ends).astype(np.float32)
    return converted


def has_area(corners_N4: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return which half-open boxes [N, 4] are finite with xmin < xmax and ymin < ymax."""
    valid: NDArray[np.bool_] = np.all(np.isfinite(corners_N4), axis=1) & np.all(
        corners_N4[:, 2:] > corners_N4[:, :2], axis=1
    )
    return valid


def require_area(corners_N4: NDArray[np.float32], path: str, locate: Callable[[int], str]) -> None:
    """Check that all half-open boxes have an area.

    Args:
        corners_N4: The boxes, [N, 4].
        path: The file, for the message.
        locate: Returns where in the file the box of an index is.

    Raises:
        UsageError: A box has no area.
    """
    bad = ~has_area(corners_N4)
    if bad.any():
        raise UsageError(
            f"{path}: {bad.sum()} boxes have no area, the first in {locate(int(bad.argmax()))}: "
            "xmin < xmax and ymin < ymax are needed, in pixels"
        )


def corner_columns(
    corners_N4: NDArray[np.float32], without: NDArray[np.bool_] | None = None
) -> "dict[str, pa.Array[Any]]":
    """Return the four columns of corners [N, 4], null in the rows [N] that are without a box."""
    return {
        name: pa.array(np.ascontiguousarray(corners_N4[:, n]), mask=without) for n, name in enumerate(CORNERS)
    }
