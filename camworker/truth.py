"""Ground truth: the labels of images, with their boxes where the file has them."""

from dataclasses import dataclass
from functools import cached_property
from typing import Final, Literal, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from camworker.classes import Classes
from camworker.errors import UsageError
from camworker.tables import column_types, read_columns

Corners = Literal["half-open", "inclusive"]
CORNERS: tuple[Corners, ...] = get_args(Corners)
_COLUMNS: Final = ("xmin", "ymin", "xmax", "ymax")


@dataclass(frozen=True)
class Truth:
    """Rows of truth sorted by image: image_id, label and corners [N, 4] (half-open, original pixels).

    corners is None where the truth knows labels only, a row each; else a row is a box.
    """

    image_ids: NDArray[np.object_]
    labels: NDArray[np.int32]
    corners: NDArray[np.float32] | None

    @cached_property
    def images(self) -> pd.Index:
        """The distinct image ids, in order."""
        return pd.Index(np.unique(self.image_ids.astype(str)).astype(object))

    def of(self, image_ids: NDArray[np.object_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(row in image_ids, row in truth) for every truth row of these images."""
        position = self.images.get_indexer(image_ids)
        rows = np.flatnonzero(position >= 0)
        first, last = self._offsets[position[rows]], self._offsets[position[rows] + 1]
        counts = last - first
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        return np.repeat(rows, counts), np.repeat(first, counts) + within

    @cached_property
    def _offsets(self) -> NDArray[np.int64]:
        codes = self.images.get_indexer(self.image_ids)
        return np.searchsorted(codes, np.arange(len(self.images) + 1))


def read_truth(path: str, classes: Classes, corners: Corners = "half-open") -> Truth:
    """Truth in long form from Parquet or CSV: image_id, label and, a box a row, xmin, ymin, xmax, ymax.

    corners: "inclusive" truth names the last pixel of a box; it becomes half-open by +1 on the
    maxima. Raises UsageError for a missing column, an unknown label, a box that is none.
    """
    have = column_types(path)
    boxed = any(name in have for name in _COLUMNS)
    table = read_columns(path, ["image_id", "label", *(_COLUMNS if boxed else ())], text=["image_id"])
    labels = classes.indices(table["label"], f"{path}, column 'label'")
    image_ids = table["image_id"].to_numpy()
    if table["image_id"].null_count or (labels < 0).any():
        raise UsageError(f"{path} has rows without image_id or label")
    order = np.argsort(image_ids.astype(str), kind="stable")
    boxes = None
    if boxed:
        try:
            boxes = np.stack([table[name].to_numpy().astype(np.float32) for name in _COLUMNS], axis=1)
        except (TypeError, ValueError) as error:
            raise UsageError(f"{path}: corners have to be numbers: {error}") from error
        if corners == "inclusive":
            boxes[:, 2:] += 1
        bad = ~(np.isfinite(boxes).all(1) & (boxes[:, 2:] > boxes[:, :2]).all(1))
        if bad.any():
            row = int(bad.argmax())
            raise UsageError(
                f"{path}: {bad.sum()} boxes have no area (row {row + 1}, {image_ids[row]}, for one): "
                "corners are xmin < xmax and ymin < ymax in pixels"
            )
        boxes = boxes[order]
    return Truth(image_ids[order], labels[order], boxes)
