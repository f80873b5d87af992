"""Select labels from the columns of a part, with their stored boxes, new boxes, or refined maps."""

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from camworker.boxes.refine import decode_refined
from camworker.boxes.rules import boxes_from_cams, uses_refined
from camworker.exports.selection import Counts, LabelSelection
from camworker.frame import CORNERS
from camworker.ledger.snapshot import Snapshot
from camworker.schemas import CamShape, cam_maps, refined_u8


@dataclass(frozen=True, slots=True)
class SelectedLabels:
    """N labels of a part, ordered by row, then by rank.

    A label stands here once for each of its boxes, as the box rule returned them, or once if masks are made.

    Attributes:
        row_N: Row of each label in the part.
        label_N: Class index of each label.
        score_N: Score of each label.
        corners_N4: Box of each label: xmin, ymin, xmax, ymax in pixels of the original image; zeros if masks
            are made.
        fallback_N: Whether the box is the one over the whole image, of a map without a positive value.
        refined_Nhw: Refined map of each label as stored, uint8, if masks are made.
    """

    row_N: NDArray[np.int64]
    label_N: NDArray[np.int32]
    score_N: NDArray[np.float32]
    corners_N4: NDArray[np.float32]
    fallback_N: NDArray[np.bool_]
    refined_Nhw: NDArray[np.uint8] | None = None


@dataclass(frozen=True, slots=True)
class _Labels:
    """P labels of a part: for each its row, its index among the labels of the row, its class and score."""

    row_P: NDArray[np.int64]
    index_P: NDArray[np.int64]
    label_P: NDArray[np.int32]
    score_P: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class _Boxes:
    """N boxes: for each the index of its label among all P, its corners, and whether it is a fallback."""

    parent_N: NDArray[np.int64]
    corners_N4: NDArray[np.float32]
    fallback_N: NDArray[np.bool_]


def needed_columns(selection: LabelSelection) -> list[str]:
    """Return the columns that `select_labels` reads; maps only if they are needed."""
    if selection.targets:
        return ["targets"]
    if selection.mask_threshold is not None:
        maps_or_boxes = "refined"
    elif selection.box_rule is None:
        maps_or_boxes = "boxes"
    else:
        maps_or_boxes = "refined" if uses_refined(selection.box_rule) else "cams"
    return ["labels", "scores", maps_or_boxes]


def select_labels(
    snapshot: Snapshot, rows: pa.Table, selection: LabelSelection, counts: Counts
) -> SelectedLabels:
    """Select the labels of rows with predictions, and count what is left out.

    Args:
        snapshot: What the recipe holds.
        rows: Current rows of it with status "ok", each column in one chunk.
        selection: Which boxes or masks become labels.
        counts: Updated with what is left out.
    """
    labels = _labels(rows, selection.targets)
    if selection.targets:
        counts.known_labels += len(labels.row_P)
    ranked = np.full(len(labels.row_P), selection.targets) | (labels.index_P < selection.ranks)
    wanted = np.ones(len(labels.row_P), bool)
    if selection.classes is not None:
        wanted = np.isin(labels.label_P, sorted(selection.classes))
    # Compare in float32, as scores are stored, so that 0.9 includes a stored score of 0.9.
    scored = labels.score_P >= np.float32(selection.min_score)
    counts.labels_of_other_classes += int((ranked & ~wanted).sum())
    counts.labels_under_min_score += int((ranked & wanted & ~scored).sum())
    kept = np.flatnonzero(ranked & wanted & scored)
    if selection.mask_threshold is not None:
        kept, refined_Nhw = _refined(snapshot, rows, labels, kept, selection.targets, counts)
        nothing_N4, none_N = np.zeros((len(kept), 4), np.float32), np.zeros(len(kept), np.bool_)
        return SelectedLabels(
            labels.row_P[kept], labels.label_P[kept], labels.score_P[kept], nothing_N4, none_N, refined_Nhw
        )
    if selection.box_rule is None:
        boxes = _stored_boxes(rows, kept, selection.targets)
    else:
        boxes = _made_boxes(snapshot, rows, labels, kept, selection.targets, selection.box_rule, counts)
    fits_N = np.full(len(boxes.parent_N), selection.keep_fallback) | ~boxes.fallback_N
    has_area_N = (boxes.corners_N4[:, 2:] > boxes.corners_N4[:, :2]).all(1)
    counts.fallback_boxes += int((~fits_N).sum())
    counts.boxes_without_area += int((fits_N & ~has_area_N).sum())
    used_N = fits_N & has_area_N
    parent_N = boxes.parent_N[used_N]
    return SelectedLabels(
        labels.row_P[parent_N],
        labels.label_P[parent_N],
        labels.score_P[parent_N],
        boxes.corners_N4[used_N],
        boxes.fallback_N[used_N],
    )


def _labels(rows: pa.Table, targets: bool) -> _Labels:
    lists = _list_array(rows["targets" if targets else "labels"])
    row_P = pc.list_parent_indices(lists).to_numpy().astype(np.int64)
    index_P = np.arange(len(row_P)) - np.searchsorted(row_P, row_P)
    if targets:
        values = _structs(lists)
        return _Labels(row_P, index_P, values.field("label").to_numpy(), values.field("score").to_numpy())
    scores = _list_array(rows["scores"]).flatten()
    return _Labels(row_P, index_P, lists.flatten().to_numpy(), scores.to_numpy())


def _stored_boxes(rows: pa.Table, kept: NDArray[np.int64], targets: bool) -> _Boxes:
    """Return the stored boxes of the kept labels."""
    if targets:
        lists = cast("pa.ListArray[Any]", _structs(_list_array(rows["targets"])).field("boxes"))
        parent_N = pc.list_parent_indices(lists).to_numpy().astype(np.int64)
    else:
        lists = _list_array(rows["boxes"])
        first_of_row = np.cumsum([0, *pc.list_value_length(_list_array(rows["labels"])).to_numpy()])
        rank = _structs(lists).field("rank").to_numpy().astype(np.int64)
        parent_N = first_of_row[pc.list_parent_indices(lists).to_numpy()] + rank - 1
    boxes = _structs(lists)
    corners_N4 = np.stack([boxes.field(corner).to_numpy() for corner in CORNERS], axis=1)
    fallback_N = boxes.field("fallback").to_numpy(zero_copy_only=False)
    kept_N = np.isin(parent_N, kept)
    return _Boxes(parent_N[kept_N], corners_N4[kept_N], fallback_N[kept_N])


def _made_boxes(
    snapshot: Snapshot,
    rows: pa.Table,
    labels: _Labels,
    kept: NDArray[np.int64],
    targets: bool,
    rule: str,
    counts: Counts,
) -> _Boxes:
    """Return the boxes made by a rule from the maps of the kept labels."""
    maps_Phw: NDArray[np.floating]
    if uses_refined(rule):
        kept, refined_Phw = _refined(snapshot, rows, labels, kept, targets, counts)
        maps_Phw = decode_refined(refined_Phw)
    elif targets:
        cams = _structs(_list_array(rows["targets"])).field("cam")
        maps_Phw = cam_maps(cams, snapshot.cam_shape().one)[kept, 0]
    else:
        maps_Phw = cam_maps(rows["cams"], snapshot.cam_shape())[labels.row_P[kept], labels.index_P[kept]]
    row_R, image_P = np.unique(labels.row_P[kept], return_inverse=True)
    sizes_R2 = np.stack([rows["width"].to_numpy(), rows["height"].to_numpy()], axis=1)[row_R]
    frames = [snapshot.recipe.frame_spec.frame(width, height) for width, height in sizes_R2.tolist()]
    boxes = boxes_from_cams(maps_Phw, frames, image_P, rule)
    return _Boxes(np.repeat(kept, boxes.counts_M), boxes.corners_L4, boxes.fallback_L)


def _refined(
    snapshot: Snapshot,
    rows: pa.Table,
    labels: _Labels,
    kept: NDArray[np.int64],
    targets: bool,
    counts: Counts,
) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """Return the kept labels that have a refined map, and these maps [P, h, w]; count the others."""
    shape = snapshot.refined_shape() or CamShape(1, 1, 1)  # of no map: all are null then
    if targets:
        column = _structs(_list_array(rows["targets"])).field("refined")
        source_P, map_P, shape = kept, np.zeros(len(kept), np.int64), shape.one
    else:
        column = cast("pa.Array[Any]", rows["refined"].chunk(0))
        source_P, map_P = labels.row_P[kept], labels.index_P[kept]
    valid = column.is_valid().to_numpy(zero_copy_only=False)
    maps_Vkhw = refined_u8(column.drop_null(), shape)
    position = np.cumsum(valid) - 1  # of a value among those that are not null
    has_map_P = valid[source_P] & (map_P < shape.k)
    counts.labels_without_map += int((~has_map_P).sum())
    return kept[has_map_P], maps_Vkhw[position[source_P[has_map_P]], map_P[has_map_P]]


def _list_array(column: "pa.ChunkedArray[Any]") -> "pa.ListArray[Any]":
    # The columns come from Table.combine_chunks, which leaves each as one chunk.
    return cast("pa.ListArray[Any]", column.chunk(0))


def _structs(lists: "pa.ListArray[Any]") -> pa.StructArray:
    return cast(pa.StructArray, lists.flatten())
