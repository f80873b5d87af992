"""Predictions matched with ground truth: what is right for each instance.

An instance is an image and one label of its ground truth.
"""

from dataclasses import dataclass
from typing import Any, Final, TypeAlias, cast

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from camworker.boxes.iou import paired_iou
from camworker.boxes.refine import decode_refined
from camworker.boxes.rules import MapBoxes, boxes_from_cams
from camworker.errors import UsageError
from camworker.frame import CORNERS
from camworker.metrics.criteria import MAP_COLUMNS, NO_REFINED_MAPS, Criteria, MapKind, map_kind
from camworker.metrics.error_categories import error_categories
from camworker.metrics.ground_truth.truth import Truth
from camworker.schemas import CamShape, cam_maps, refined_u8
from camworker.storage.parquet import combine_chunks

COLUMNS: Final = ("image_id", "status", "width", "height", "labels", "scores", "boxes", "targets")
TOP_K: Final = (1, 5)
IOU: Final = 0.5

# Boxes of rows: row, label, rank (from 0, over all boxes of the row), xmin, ymin, xmax, ymax.
Pairs: TypeAlias = pd.DataFrame


@dataclass(frozen=True)
class Matches:
    """What is right for each of the U instances of a table, ordered by row and then by label.

    All attributes but rows, labels, classified, has_boxes, missing_map and target are meaningful only for
    instances that have true boxes.

    Attributes:
        rows: Index of the instance's row in the table, [U].
        labels: Class index, [U].
        classified: Whether the label is among the first 1 and 5 ranked classes, [U, 2].
        has_boxes: Whether the label has true boxes in this image, [U].
        localized: Whether the label with an IoU of at least 0.5 is among the first 1 and 5 (label, box)
            pairs, [U, 2].
        missing_map: Whether the row is ok but does not hold the label's own map, [U].
        target: Index of the label's own map in the table's `Targets`, or -1, [U].
        iou: Best IoU of the first box of the label's own map with a true box; 0 without a map, [U].
        localized_anywhere: Whether the first box of the label's own map, or without one the label's first box
            at any rank, has an IoU of at least 0.5, [U].
        error: Index into error_categories.ERRORS of the first (label, box) pair, [U].
        size: Share of the image's area that the largest true box covers; NaN if the image's size is unknown,
            [U].
        boxes: Half-open true boxes of all instances, instance by instance, [B, 4].
        box_instances: Index of the instance of each true box, [B].
    """

    rows: NDArray[np.int64]
    labels: NDArray[np.int32]
    classified: NDArray[np.bool_]
    has_boxes: NDArray[np.bool_]
    localized: NDArray[np.bool_]
    missing_map: NDArray[np.bool_]
    target: NDArray[np.int64]
    iou: NDArray[np.float64]
    localized_anywhere: NDArray[np.bool_]
    error: NDArray[np.int8]
    size: NDArray[np.float64]
    boxes: NDArray[np.float32]
    box_instances: NDArray[np.int64]


@dataclass(frozen=True)
class Targets:
    """The maps of known labels in a table, in the order of its rows.

    Attributes:
        rows: Index of each map's row, [N].
        labels: Class index of each map, [N].
        cams_Nhw: Class activation maps, float16 [N, h, w].
        refined_Nhw: Refined maps as they are stored, uint8; None without refinement.
    """

    rows: NDArray[np.int64]
    labels: NDArray[np.int32]
    cams_Nhw: NDArray[np.float16]
    refined_Nhw: NDArray[np.uint8] | None = None

    def maps(self, kind: MapKind) -> NDArray[Any]:
        """Return the maps from which boxes are made, [N, h, w].

        Raises:
            UsageError: The rows hold no refined maps.
        """
        if kind == "raw":
            return self.cams_Nhw
        if self.refined_Nhw is None:
            raise UsageError(NO_REFINED_MAPS)
        return decode_refined(self.refined_Nhw)


def match_predictions(table: pa.Table, truth: Truth, criteria: Criteria, targets: Targets) -> Matches:
    """Match rows of predictions with their ground truth.

    A row that failed is wrong in every respect. A box is compared only with true boxes of its own label.

    Args:
        table: Rows with the columns COLUMNS, and their maps if boxes are made anew; each image at most once.
        truth: The ground truth.
        criteria: How boxes are made and compared.
        targets: The maps of known labels of the table, see `read_targets`.
    """
    in_rows, in_truth = truth.rows_of(combine_chunks(table["image_id"]))
    named = pd.DataFrame({"row": in_rows, "label": truth.labels[in_truth]})
    instances = named.drop_duplicates(["row", "label"]).sort_values(["row", "label"], ignore_index=True)
    instances["instance"] = np.arange(len(instances))
    true = named.merge(instances, on=["row", "label"])
    true[list(CORNERS)] = np.nan if truth.corners is None else truth.corners[in_truth]
    true = true[np.isfinite(true["xmin"])].sort_values("instance", kind="stable", ignore_index=True)
    corners = criteria.comparable_corners(true[list(CORNERS)].to_numpy(), truth)
    comparable = true.assign(**dict(zip(CORNERS, corners.T, strict=True)))

    count = len(instances)
    classified, localized = np.zeros((2, count, len(TOP_K)), bool)
    ranked = _flatten(table["labels"], None).merge(instances, on=["row", "label"])
    for column, k in enumerate(TOP_K):
        classified[ranked.loc[ranked["rank"] < k, "instance"], column] = True
    width, height = (table[name].to_numpy() for name in ("width", "height"))
    predicted = _predicted_pairs(table, criteria, np.unique(true["row"]), width, height)
    overlaps = _overlaps(predicted, comparable, criteria)
    for column, k in enumerate(TOP_K):
        hits = overlaps[(overlaps["iou"] >= IOU) & (overlaps["rank"] < k)]
        localized[hits["instance"], column] = True

    known = pd.DataFrame(
        {"row": targets.rows, "label": targets.labels, "target": np.arange(len(targets.rows))}
    )
    known = known.drop_duplicates(["row", "label"]).merge(instances, on=["row", "label"])
    target = np.full(count, -1)
    target[known["instance"]] = known["target"]
    first = _first_target_boxes(table, criteria, known, targets, width, height)
    target_overlaps = _overlaps(first, comparable, criteria)
    iou = np.zeros(count)
    np.maximum.at(iou, target_overlaps["instance"], target_overlaps["iou"])
    # For a label without a map of its own, its best ranked box takes the place of the map's first box.
    best_ranked = predicted.drop_duplicates(["row", "label"]).merge(instances, on=["row", "label"])
    best_ranked = best_ranked[target[best_ranked["instance"]] < 0]
    localized_anywhere = iou >= IOU
    ranked_overlaps = _overlaps(best_ranked[["row", "label", *CORNERS]], comparable, criteria)
    localized_anywhere[ranked_overlaps.loc[ranked_overlaps["iou"] >= IOU, "instance"]] = True

    rows = instances["row"].to_numpy()
    ok = pc.equal(table["status"], pa.scalar("ok")).to_numpy(zero_copy_only=False)
    has_boxes = np.zeros(count, bool)
    has_boxes[true["instance"]] = True
    return Matches(
        rows=rows,
        labels=instances["label"].to_numpy(),
        classified=classified,
        has_boxes=has_boxes,
        localized=localized,
        missing_map=(target < 0) & ok[rows],
        target=target,
        iou=iou,
        localized_anywhere=localized_anywhere,
        error=error_categories(instances, classified, localized, predicted, true),
        size=_object_sizes(count, true, width, height),
        boxes=true[list(CORNERS)].to_numpy(np.float32),
        box_instances=true["instance"].to_numpy(),
    )


def read_targets(column: "pa.ChunkedArray[Any]", criteria: Criteria) -> Targets:
    """Read the maps of known labels from the column targets."""
    lists, refined = _lists(column), criteria.refined_shape
    targets = cast("pa.StructArray", lists.flatten())
    return Targets(
        pc.list_parent_indices(lists).to_numpy(),
        targets.field("label").to_numpy(zero_copy_only=False),
        cam_maps(targets.field("cam"), criteria.cam_shape.one)[:, 0],
        None if refined is None else refined_u8(targets.field("refined"), refined.one)[:, 0],
    )


def _predicted_pairs(
    table: pa.Table,
    criteria: Criteria,
    rows: NDArray[np.int64],
    width: NDArray[np.floating],
    height: NDArray[np.floating],
) -> Pairs:
    """Return the (label, box) pairs of rows, best first; of the best class only if rows hold no other map."""
    if criteria.box_rule is None:
        stored = _flatten(table["boxes"], "label")
        return stored[np.isin(stored["row"], rows)]
    kind = map_kind(criteria.box_rule)
    column = combine_chunks(table[MAP_COLUMNS[kind]]).take(rows)
    rows = rows[column.is_valid().to_numpy(zero_copy_only=False)]
    maps_Nkhw = _read_maps(column.drop_null(), criteria.shape(kind), kind)
    ranked = _flatten(table["labels"], None)
    ranked = ranked[(ranked["rank"] < maps_Nkhw.shape[1]) & np.isin(ranked["row"], rows)]
    made = _make_boxes(maps_Nkhw.reshape(-1, *maps_Nkhw.shape[2:]), ranked, criteria, width, height)
    pairs: Pairs = ranked.iloc[np.repeat(np.arange(len(ranked)), made.counts_M)].reset_index(drop=True)
    row = pairs["row"].to_numpy()
    pairs["rank"] = np.arange(len(row)) - np.searchsorted(row, row)
    pairs[list(CORNERS)] = made.corners_L4
    return pairs


def _first_target_boxes(
    table: pa.Table,
    criteria: Criteria,
    known: pd.DataFrame,
    targets: Targets,
    width: NDArray[np.floating],
    height: NDArray[np.floating],
) -> Pairs:
    """Return the first box of each known label's own map."""
    target = known["target"].to_numpy()
    pairs = known[["row", "label"]].assign(rank=0)
    if criteria.box_rule is None:
        structs = cast("pa.StructArray", _lists(table["targets"]).flatten())
        first = cast("pa.StructArray", pc.list_element(structs.field("boxes"), 0).take(target))
        return pairs.assign(**{c: first.field(c).to_numpy(zero_copy_only=False) for c in CORNERS})
    maps_Mhw = targets.maps(map_kind(criteria.box_rule))[target]
    made = _make_boxes(maps_Mhw, pairs, criteria, width, height)
    first_M = np.cumsum(made.counts_M) - made.counts_M
    pairs[list(CORNERS)] = made.corners_L4[first_M]
    return pairs


def _make_boxes(
    maps_Mhw: NDArray[Any],
    pairs: pd.DataFrame,
    criteria: Criteria,
    width: NDArray[np.floating],
    height: NDArray[np.floating],
) -> MapBoxes:
    """Make boxes by the criteria's rule from the maps of M pairs of a row and a label."""
    rows, image_M = np.unique(pairs["row"].to_numpy(), return_inverse=True)
    frames = [criteria.frame(width[row], height[row]) for row in rows]
    return boxes_from_cams(maps_Mhw, frames, image_M, criteria.box_rule or "")


def _read_maps(column: "pa.Array[Any]", shape: CamShape, kind: MapKind) -> NDArray[Any]:
    """Return maps from which boxes are made, [N, k, h, w]."""
    return cam_maps(column, shape) if kind == "raw" else decode_refined(refined_u8(column, shape))


def _overlaps(predicted: Pairs, true: pd.DataFrame, criteria: Criteria) -> pd.DataFrame:
    """Return all pairs of a predicted and a true box of the same row and label, with instance and iou."""
    pairs = predicted.merge(true, on=["row", "label"], suffixes=("", "_true"))
    corners = pairs[[f"{corner}_true" for corner in CORNERS]].to_numpy()
    pairs["iou"] = paired_iou(pairs[list(CORNERS)].to_numpy(), corners, inclusive=criteria.inclusive)
    return pairs


def _object_sizes(
    count: int, true: pd.DataFrame, width: NDArray[np.floating], height: NDArray[np.floating]
) -> NDArray[np.float64]:
    """Return the share of the image's area of each instance's largest true box, NaN if that is unknown."""
    rows = true["row"].to_numpy()
    area = (true["xmax"] - true["xmin"]).to_numpy(float) * (true["ymax"] - true["ymin"]).to_numpy(float)
    sizes = np.full(count, np.nan)
    np.fmax.at(sizes, true["instance"].to_numpy(), area / (width[rows].astype(float) * height[rows]))
    clipped: NDArray[np.float64] = np.minimum(sizes, 1.0)
    return clipped


def _lists(column: "pa.ChunkedArray[Any]") -> "pa.ListArray[Any]":
    return cast("pa.ListArray[Any]", combine_chunks(column))


def _flatten(column: "pa.ChunkedArray[Any]", label: str | None) -> pd.DataFrame:
    """Return a column of lists as a frame of row, rank in the list and label.

    label is the name of the field with the label if the lists hold structs, whose corners are then added.
    """
    lists = _lists(column)
    row, values = pc.list_parent_indices(lists).to_numpy(), lists.flatten()
    rank = np.arange(len(row)) - np.searchsorted(row, row)
    frame = pd.DataFrame({"row": row, "rank": rank})
    if label is None:
        return frame.assign(label=values.to_numpy(zero_copy_only=False))
    structs = cast("pa.StructArray", values)
    for source, name in ((label, "label"), *zip(CORNERS, CORNERS, strict=True)):
        frame[name] = structs.field(source).to_numpy(zero_copy_only=False)
    return frame
