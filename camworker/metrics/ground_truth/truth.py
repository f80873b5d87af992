"""Ground truth as metrics use it: labels, boxes and masks by image, found by hash. Files: annotations.py."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from camworker.classes import Classes
from camworker.errors import UsageError
from camworker.frame import CORNERS
from camworker.metrics.ground_truth.read import By, Corners, read_annotations

_NAMED: Final = 3
_ENDING: Final = r"\.[^./]*$"


@dataclass(frozen=True)
class Truth:
    """What is known of images. Rows lie image by image, images in the order of their hashes.

    images: the distinct ids [I] (string); hashes: theirs, uint64 [I], ascending; offsets [I + 1]: where an
    image's rows begin. labels: int32 [N]. corners: float32 [N, 4], half-open, original pixels; NaN in a row
    that has a label only; None where no row has a box. inclusive: the file named the last pixel of each box.
    masks, ignores: paths of PNG files [N], where there are masks. stems: ids lack the images' endings.
    unknown: labels that the network lacks -> rows that were left out for it. notes: what else was left out.
    """

    images: pa.Array
    hashes: NDArray[np.uint64]
    offsets: NDArray[np.int64]
    labels: NDArray[np.int32]
    corners: NDArray[np.float32] | None = None
    inclusive: bool = False
    masks: pa.Array | None = None
    ignores: pa.Array | None = None
    stems: bool = False
    unknown: dict[str, int] = field(default_factory=dict)
    notes: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of_rows(
        cls,
        image_ids: Sequence[str] | pa.Array,
        labels: Sequence[int] | NDArray[np.integer],
        corners: Sequence[Sequence[float]] | NDArray[np.floating] | None = None,
        *,
        masks: pa.Array | None = None,
        ignores: pa.Array | None = None,
        **facts: object,
    ) -> "Truth":
        """Truth from rows in any order: an image id, a label and, where known, a box or a mask each."""
        ids = pa.array(image_ids, pa.string()).dictionary_encode()
        distinct_hashes = hash_ids(ids.dictionary)
        by_hash = np.argsort(distinct_hashes, kind="stable")
        place = np.empty(len(by_hash), np.int64)
        place[by_hash] = np.arange(len(by_hash))
        codes = place[ids.indices.to_numpy()]
        order = np.argsort(codes, kind="stable")
        return cls(
            ids.dictionary.take(pa.array(by_hash)),
            distinct_hashes[by_hash],
            np.searchsorted(codes[order], np.arange(len(by_hash) + 1)),
            np.asarray(labels, np.int32)[order],
            None if corners is None else np.asarray(corners, np.float32).reshape(-1, 4)[order],
            masks=None if masks is None else masks.take(pa.array(order)),
            ignores=None if ignores is None else ignores.take(pa.array(order)),
            **facts,  # type: ignore[arg-type]
        )

    def boxes_of(self, image_id: str, label: int | None = None) -> NDArray[np.float32]:
        """The true boxes of one image, of all labels or of one: float32 [N, 4]."""
        _, rows = self.of(pa.array([image_id]))
        if self.corners is None:
            return np.empty((0, 4), np.float32)
        rows = rows[np.isfinite(self.corners[rows, 0])]
        return self.corners[rows if label is None else rows[self.labels[rows] == label]]

    def find(self, image_ids: pa.Array) -> NDArray[np.int64]:
        """The place in images of each id; -1 where it has no truth."""
        if self.stems:
            image_ids = pc.replace_substring_regex(image_ids, _ENDING, "")
        if not len(self.hashes):
            return np.full(len(image_ids), -1)
        place = np.searchsorted(self.hashes, hash_ids(image_ids))
        place[place == len(self.hashes)] = 0
        same = pc.equal(self.images.take(pa.array(place)), image_ids).to_numpy(zero_copy_only=False)
        return np.where(same, place, -1)

    def of(self, image_ids: pa.Array) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(row in image_ids, row in truth) for every truth row of these images."""
        place = self.find(image_ids)
        rows = np.flatnonzero(place >= 0)
        first, last = self.offsets[place[rows]], self.offsets[place[rows] + 1]
        counts = last - first
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        return np.repeat(rows, counts), np.repeat(first, counts) + within


def hash_ids(image_ids: pa.Array) -> NDArray[np.uint64]:
    """64 bits of each id, the same in every process and version."""
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
    """Truth in any of the formats of annotations.py, its labels as class indices.

    by: what a class is known by where the format has both. masks: the folder that mask files are named
    in. exclude: a text file of image ids, one a line, that count for classification only: their boxes and
    masks are left out (as ILSVRC does with 1,762 images). Labels that the network
    lacks are counted in Truth.unknown. Raises UsageError for what cannot be read, and where no label is
    known.
    """
    annotations = read_annotations(path, corners=corners, by=by, masks=masks)
    table = annotations.table
    notes = dict(annotations.notes)
    if table["image_id"].null_count or table["label"].null_count:
        raise UsageError(f"{path} has rows without image_id or label")
    labels, unknown = classes.find(table["label"], f"{path}, column 'label'")
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
    return Truth.of_rows(
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
    try:
        with open(path, encoding="utf-8") as file:
            ids = [line.strip() for line in file if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read as a list of image ids: {error}") from error
    out = pc.is_in(table["image_id"], value_set=pa.array(ids, pa.string()))
    for name in (*CORNERS, "mask", "ignore"):
        if name in table.schema.names:
            place = table.schema.get_field_index(name)
            nothing = pa.scalar(None, table.schema.field(name).type)
            table = table.set_column(place, name, pc.if_else(out, nothing, table[name]))
    excluded = len(table.filter(out)["image_id"].unique())
    return table, excluded, len(set(ids)) - excluded
