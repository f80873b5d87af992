"""Annotations: what every reader of ground truth returns, and the columns that they share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from camworker.errors import UsageError, first_line
from camworker.frame import CORNERS

Corners = Literal["half-open", "inclusive"]
By = Literal["name", "index"]

# float32 holds every whole pixel up to here; no picture is larger.
_LARGEST_CORNER: Final = 2.0**24


@dataclass(frozen=True)
class Annotations:
    """Ground truth in long form: a row is a box or a mask of one label in one image, or the label alone.

    table: image_id string; label string (class name) or int64 (class index; another type where a file
    of the user's has one); xmin, ymin, xmax, ymax float32, half-open, pixels of the original, absent
    where no row has a box, null in a row without one; mask and ignore string, absolute paths of PNG
    files, only where the truth has masks, null where a row has none.
    notes: what was left out or is remarkable, and how often; a reader's docstring names its keys.
    stems: image_id carries no extension; it matches an image's id less its own extension.
    inclusive: the corners, half-open here, named the last pixel of a box in their file.
    """

    table: pa.Table
    notes: dict[str, int] = field(default_factory=dict)
    stems: bool = False
    inclusive: bool = False


def counted(**notes: int) -> dict[str, int]:
    """The notes that occurred."""
    return {name: count for name, count in notes.items() if count}


def strings(values: Sequence[str | None], path: str) -> pa.Array:
    """A column of text, None for null. Raises UsageError for text without UTF-8: half a surrogate pair."""
    try:
        return pa.array(values, pa.string())
    except UnicodeEncodeError as error:
        raise UsageError(f"{path}: {error.object!r} is no valid Unicode: rename it") from error


def labels_by(labels: pa.Array | pa.ChunkedArray, by: By, where: str) -> pa.Array | pa.ChunkedArray:
    """The labels as they are, or by index as int64. Raises UsageError for one that is no whole number."""
    if by == "name":
        return labels
    if pa.types.is_dictionary(labels.type):
        labels = labels.cast(labels.type.value_type)
    try:
        return labels.cast(pa.int64())
    except pa.ArrowException as error:
        reason = first_line(error)
        raise UsageError(f"{where}: labels are no class indices, match them by name: {reason}") from error


def is_pixel(value: object) -> bool:
    """Whether a corner or length can be one: a finite number that float32 holds to the pixel."""
    return type(value) in (int, float) and abs(value) <= _LARGEST_CORNER  # type: ignore[arg-type]


def half_open(corners_N4: NDArray[np.float64], corners: Corners) -> NDArray[np.float32]:
    """Corners of either convention -> half-open: the last pixel of an inclusive box is its end less 1."""
    ends = np.array([0, 0, 1, 1] if corners == "inclusive" else [0, 0, 0, 0], np.float64)
    return (corners_N4 + ends).astype(np.float32)


def has_area(corners_N4: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which half-open boxes are boxes: finite, xmin < xmax and ymin < ymax."""
    return np.all(np.isfinite(corners_N4), axis=1) & np.all(corners_N4[:, 2:] > corners_N4[:, :2], axis=1)


def refuse_without_area(corners_N4: NDArray[np.float32], path: str, place: Callable[[int], str]) -> None:
    """Raises UsageError where a half-open box has no area. place: row -> where to find it in path."""
    bad = ~has_area(corners_N4)
    if bad.any():
        raise UsageError(
            f"{path}: {bad.sum()} boxes have no area ({place(int(bad.argmax()))}, for one): "
            "corners are xmin < xmax and ymin < ymax in pixels"
        )


def corner_columns(
    corners_N4: NDArray[np.float32], without: NDArray[np.bool_] | None = None
) -> dict[str, pa.Array]:
    """The four columns of corners; null where without [N] says that a row has no box."""
    return {
        name: pa.array(np.ascontiguousarray(corners_N4[:, n]), mask=without) for n, name in enumerate(CORNERS)
    }
