"""`Truth`: the ground truth as metrics use it, labels, boxes and masks that are looked up by image id."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from camworker.classes import Classes
from camworker.errors import UsageError
from camworker.frame import CORNERS
from camworker.metrics.ground_truth.annotations import By, Corners
from camworker.metrics.ground_truth.read import read_annotations

_NAMED: Final = 3  # labels that a message names
_EXTENSION: Final = r"\.[^./]*$"


@dataclass(frozen=True)
class Truth:
    """Ground truth, sorted by image: a row is a box or a mask of one label, or a label alone.

    Images are in the order of the hashes of their ids.

    Attributes:
        images: The distinct image ids, strings [I].
        hashes: Hashes of the image ids, ascending, uint64 [I].
        offsets: Index of each image's first row, and the number of rows, [I + 1].
        labels: Class index of each row, int32 [N].
        corners: Half-open box of each row in pixels of the original image, float32 [N, 4]; NaN in a row
            without a box; None if no row has one.
        inclusive: Whether the file named the last pixel of each box.
        masks: Path of each row's mask, [N]; None without masks.
        ignores: Path of each row's mask of ignored pixels, [N]; None without any.
        stems: Whether the image ids have no file extension.
        unknown: Labels that the network does not have, with the number of rows that were left out.
        notes: What else was left out or is remarkable, with its number.
    """

    images: "pa.Array[Any]"
    hashes: NDArray[np.uint64]
    offsets: NDArray[np.int64]
    labels: NDArray[np.int32]
    corners: NDArray[np.float32] | None = None
    inclusive: bool = False
    masks: "pa.Array[Any] | None" = None
    ignores: "pa.Array[Any] | None" = None
    stems: bool = False
    unknown: dict[str, int] = field(default_factory=dict)
    notes: dict[str, int] = field(default_factory=dict)

    @classmethod
    def from_rows(
        cls,
        image_ids: "Sequence[str] | pa.Array[Any]",
        labels: Sequence[int] | NDArray[np.integer],
        corners: Sequence[Sequence[float]] | NDArray[np.floating] | None = None,
        *,
        masks: "pa.Array[Any] | None" = None,
        ignores: "pa.Array[Any] | None" = None,
        inclusive: bool = False,
        stems: bool = False,
        unknown: dict[str, int] | None = None,
        notes: dict[str, int] | None = None,
    ) -> "Truth":
        """Return the ground truth of rows in any order; see the attributes for the arguments."""
        ids = pa.array(image_ids, pa.string()).dictionary_encode()
        distinct_hashes = hash_ids(ids.dictionary)
        by_hash = np.argsort(distinct_hashes, kind="stable")
        rank = np.empty(len(by_hash), np.int64)
        rank[by_hash] = np.arange(len(by_hash))
        codes = rank[ids.indices.to_numpy()]
        order = np.argsort(codes, kind="stable")
        return cls(
            ids.dictionary.take(by_hash),
            distinct_hashes[by_hash],
            np.searchsorted(codes[order], np.arange(len(by_hash) + 1)),
            np.asarray(labels, np.int32)[order],
            None if corners is None else np.asarray(corners, np.float32).reshape(-1, 4)[order],
            masks=None if masks is None else masks.take(order),
            ignores=None if ignores is None else ignores.take(order),
            inclusive=inclusive,
            stems=stems,
            unknown=unknown or {},
            notes=notes or {},
        )

    def boxes_of(self, image_id: str, label: int | None = None) -> NDArray[np.float32]:
        """Return the true boxes of one image, of one label or of all, float32 [N, 4]."""
        _, rows = self.rows_of(pa.array([image_id]))
        if self.corners is None:
            return np.empty((0, 4), np.float32)
        rows = rows[np.isfinite(self.corners[rows, 0])]
        boxes: NDArray[np.float32] = self.corners[rows if label is None else rows[self.labels[rows] == label]]
        return boxes

    def index_of(self, image_ids: "pa.Array[Any]") -> NDArray[np.int64]:
        """Return the index of each image id in `images`, -1 for an image without ground truth."""
        if self.stems:
            image_ids = pc.replace_substring_regex(image_ids, _EXTENSION, "")
        if not len(self.hashes):
            return np.full(len(image_ids), -1)
        index = np.searchsorted(self.hashes, hash_ids(image_ids))
        index[index == len(self.hashes)] = 0
        same = pc.equal(self.images.take(index), image_ids).to_numpy(zero_copy_only=False)
        return np.where(same, index, -1)

    def rows_of(self, image_ids: "pa.Array[Any]") -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the index in `image_ids` of the image of each row of these images, and that of the row."""
        index = self.index_of(image_ids)
        rows = np.flatnonzero(index >= 0)
        first, last = self.offsets[index[rows]], self.offsets[index[rows] + 1]
        counts = last - first
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        return np.repeat(rows, counts), np.repeat(first, counts) + within


def hash_ids(image_ids: "pa.Array[Any]") -> NDArray[np.uint64]:
    """Return a 64-bit hash of each image id, the same in every process and version."""
    return pd.util.hash_array(image_ids.to_numpy(zero_copy_only=False), categorize=False)


def read_truth(
    path: str,
    classes: Classes,
    corners: Corners = "half-open",
    *,
    by: By = "name",
    masks: str | None = None,
    exclude: str | None = None,
) -> Truth:
    """Read ground truth in any of the formats of `read_annotations`, its labels as class indices.

    Labels that the network does not have are counted in `Truth.unknown`.

    Args:
        path: The file or folder.
        classes: The classes of the network.
        corners: Whether xmax and ymax name the end or the last pixel of a box.
        by: What identifies a class if the format has both its name and its index.
        masks: The folder that mask paths are relative to, for the metadata of Choe et al.
        exclude: A text file of image ids, one per line, that count for classification only: their boxes and
            masks are left out, as ILSVRC does with 1,762 validation images.

    Raises:
        UsageError: The files cannot be read or are malformed, or no label is a class of the network.
    """
    annotations = read_annotations(path, corners=corners, by=by, masks=masks)
    table = annotations.table
    notes = dict(annotations.notes)
    if table["image_id"].null_count or table["label"].null_count:
        raise UsageError(f"{path} has rows without image_id or label")
    labels, unknown = classes.lookup(table["label"], f"{path}, column 'label'")
    if len(labels) and (labels < 0).all():
        named = ", ".join(repr(label) for label in list(unknown)[:_NAMED])
        raise UsageError(f"{path}: none of its labels ({named}, ...) is a class of this network")
    table = table.filter(pa.array(labels >= 0))
    if exclude is not None:
        table, excluded, absent = _exclude(table, exclude)
        notes |= {"excluded_from_localization": excluded, "to_be_excluded_but_absent": absent}
    has = set(table.schema.names)
    boxes = None
    if has.issuperset(CORNERS):
        boxes = np.stack([table[name].to_numpy(zero_copy_only=False) for name in CORNERS], axis=1)
    return Truth.from_rows(
        table["image_id"].combine_chunks(),
        labels[labels >= 0],
        boxes,
        masks=table["mask"].combine_chunks() if "mask" in has else None,
        ignores=table["ignore"].combine_chunks() if "ignore" in has else None,
        inclusive=annotations.inclusive,
        stems=annotations.stems,
        unknown=unknown,
        notes=notes,
    )


def _exclude(table: pa.Table, path: str) -> tuple[pa.Table, int, int]:
    """Remove the boxes and masks of the images that a file lists.

    Returns:
        The table, the number of its images that are listed, and the number of listed images without a row.
    """
    try:
        with open(path, encoding="utf-8") as file:
            ids = [line.strip() for line in file if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read as a list of image ids: {error}") from error
    excluded = pc.is_in(table["image_id"], value_set=pa.array(ids, pa.string()))
    for name in (*CORNERS, "mask", "ignore"):
        if name in table.schema.names:
            index = table.schema.get_field_index(name)
            null = pa.scalar(None, table.schema.field(name).type)
            table = table.set_column(index, name, pc.if_else(excluded, null, table[name]))
    count = len(table.filter(excluded)["image_id"].unique())
    return table, count, len(set(ids)) - count
