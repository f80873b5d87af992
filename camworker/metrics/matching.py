"""Rows of predictions beside their truth: for each image and label, what is right. Sums are metrics.py's.

A unit is an image and a label of its truth. A row that failed is wrong in all that it is judged by.
"""

from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias, get_args

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from camworker.boxes.iou import paired_iou
from camworker.boxes.rules import boxes_from_cam
from camworker.frame import CORNERS, Frame, frame_size
from camworker.ledger.recipe import Recipe
from camworker.metrics.ground_truth.truth import Truth
from camworker.storage.parquet import combine_chunks

COLUMNS: Final = ("image_id", "status", "width", "height", "labels", "scores", "boxes", "targets")
TOP_K: Final = (1, 5)
IOU: Final = 0.5

ErrorKind = Literal["correct", "wrong_class", "several_instances", "part", "too_large", "too_small", "no_box"]
ERRORS: Final[tuple[ErrorKind, ...]] = get_args(ErrorKind)

# Gao et al. 2021 (TS-CAM), section 4: intersection over the true box's area (IoG), over the predicted (IoP).
_SEVERAL_IOG: Final = 0.3
_PART_IOP: Final = 0.5
_LAST: Final = np.array([0, 0, 1, 1], np.float32)  # from a half-open corner to the last pixel

Pairs: TypeAlias = pd.DataFrame  # row, label, place, xmin, ymin, xmax, ymax: boxes of rows


@dataclass(frozen=True)
class Criteria:
    """How rows are judged.

    input_size, resize, views: of the recipe, the way from its maps to pixels. map_shape: h, w of its CAMs.
    box_rule: boxes are made anew from the CAMs by this rule; None: those that are stored. inclusive: IoU
    adds 1 to widths and heights, and truth that named last pixels is taken as it stood in its file.
    """

    input_size: int
    resize: Any
    views: Any
    map_shape: tuple[int, int]
    box_rule: str | None = None
    inclusive: bool = False

    @classmethod
    def of_recipe(cls, recipe: Recipe, map_shape: tuple[int, int], **how: Any) -> "Criteria":
        spec = recipe.frame_spec
        return cls(spec.input_size, spec.resize, spec.views, map_shape, **how)

    def frame(self, width: int, height: int) -> Frame:
        return Frame(int(width), int(height), frame_size(self.input_size, self.views), self.resize)

    def as_judged(self, corners: NDArray[Any], truth: Truth) -> NDArray[Any]:
        """True corners [..., 4] as IoU takes them."""
        return corners - _LAST if self.inclusive and truth.inclusive else corners


@dataclass(frozen=True)
class Matches:
    """Units [U] of a table's rows, by image and then label.

    rows, labels: which row, which label. classified, localized: bool [U, 2], right among the first 1 and 5.
    boxed: the label has true boxes here; the rest says nothing where it has none. known: the row holds the
    label's own map (target: which of targets, else -1), or failed. iou: of the first box of the label's own
    map with its best true box; 0 where there is none. found: the label's first box, wherever it is in the
    row, has IoU >= 0.5. error: index into ERRORS, of the first (label, box) pair. share: of the image's area
    that its largest true box covers, NaN where the image's size is unknown. boxes, box_units: the true boxes
    of boxed units, half-open, unit by unit, and the unit of each.
    """

    rows: NDArray[np.int64]
    labels: NDArray[np.int32]
    classified: NDArray[np.bool_]
    boxed: NDArray[np.bool_]
    localized: NDArray[np.bool_]
    known: NDArray[np.bool_]
    target: NDArray[np.int64]
    iou: NDArray[np.float64]
    found: NDArray[np.bool_]
    error: NDArray[np.int8]
    share: NDArray[np.float64]
    boxes: NDArray[np.float32]
    box_units: NDArray[np.int64]


@dataclass(frozen=True)
class Targets:
    """The known labels' own maps of a table: row, label and cam float16 [N, h, w], in the rows' order."""

    rows: NDArray[np.int64]
    labels: NDArray[np.int32]
    cams_Nhw: NDArray[np.float16]


def match_predictions(table: pa.Table, truth: Truth, criteria: Criteria, targets: Targets) -> Matches:
    """Judge rows (COLUMNS, and cams where boxes are made anew), each image once."""
    in_rows, in_truth = truth.of(combine_chunks(table["image_id"]))
    named = pd.DataFrame({"row": in_rows, "label": truth.labels[in_truth]})
    units = named.drop_duplicates(["row", "label"]).sort_values(["row", "label"], ignore_index=True)
    units["unit"] = np.arange(len(units))
    true = named.merge(units, on=["row", "label"])
    true[list(CORNERS)] = np.nan if truth.corners is None else truth.corners[in_truth]
    true = true[np.isfinite(true["xmin"])].sort_values("unit", kind="stable", ignore_index=True)
    judged = true.assign(
        **dict(zip(CORNERS, criteria.as_judged(true[list(CORNERS)].to_numpy(), truth).T, strict=True))
    )

    count = len(units)
    classified, localized = np.zeros((2, count, len(TOP_K)), bool)
    ranked = _flat(table["labels"], None).merge(units, on=["row", "label"])
    for column, k in enumerate(TOP_K):
        classified[ranked.loc[ranked["place"] < k, "unit"], column] = True
    width, height = (table[name].to_numpy() for name in ("width", "height"))
    predicted = _predicted(table, criteria, np.unique(true["row"]), width, height)
    overlaps = _overlaps(predicted, judged, criteria)
    for column, k in enumerate(TOP_K):
        hits = overlaps[(overlaps["iou"] >= IOU) & (overlaps["place"] < k)]
        localized[hits["unit"], column] = True

    own = pd.DataFrame({"row": targets.rows, "label": targets.labels, "target": np.arange(len(targets.rows))})
    own = own.drop_duplicates(["row", "label"]).merge(units, on=["row", "label"])
    target = np.full(count, -1)
    target[own["unit"]] = own["target"]
    first = _first_boxes(table, criteria, own, targets, width, height)
    own_overlaps = _overlaps(first, judged, criteria)
    iou = np.zeros(count)
    np.maximum.at(iou, own_overlaps["unit"], own_overlaps["iou"])
    # Where a label has no map of its own, its best place among the top-k stands for it.
    instead = predicted.drop_duplicates(["row", "label"]).merge(units, on=["row", "label"])
    instead = instead[target[instead["unit"]] < 0]
    found = iou >= IOU
    anywhere = _overlaps(instead[["row", "label", *CORNERS]], judged, criteria)
    found[anywhere.loc[anywhere["iou"] >= IOU, "unit"]] = True

    rows = units["row"].to_numpy()
    ok = pc.equal(table["status"], "ok").to_numpy(zero_copy_only=False)
    boxed = np.zeros(count, bool)
    boxed[true["unit"]] = True
    return Matches(
        rows,
        units["label"].to_numpy(),
        classified,
        boxed,
        localized,
        (target >= 0) | ~ok[rows],
        target,
        iou,
        found,
        _errors(units, classified, localized, predicted, true),
        _shares(count, true, width, height),
        true[list(CORNERS)].to_numpy(np.float32),
        true["unit"].to_numpy(),
    )


def read_targets(column: pa.ChunkedArray, map_shape: tuple[int, int]) -> Targets:
    """The known labels' maps of a column of targets."""
    lists = combine_chunks(column)
    targets = lists.flatten()
    cams = targets.field("cam").flatten().to_numpy(zero_copy_only=False)
    return Targets(
        pc.list_parent_indices(lists).to_numpy(),
        targets.field("label").to_numpy(zero_copy_only=False),
        cams.reshape(-1, *map_shape),
    )


def _predicted(
    table: pa.Table,
    criteria: Criteria,
    rows: NDArray[np.int64],
    width: NDArray[np.floating],
    height: NDArray[np.floating],
) -> Pairs:
    """The (label, box) pairs of these rows, in order."""
    if criteria.box_rule is None:
        pairs = _flat(table["boxes"], "label")
        return pairs[np.isin(pairs["row"], rows)]
    labels = combine_chunks(table["labels"])
    maps = combine_chunks(table["cams"]).take(pa.array(rows))
    there = rows[maps.is_valid().to_numpy(zero_copy_only=False)]
    cams = maps.storage.flatten().to_numpy(zero_copy_only=False).reshape(len(there), *maps.type.shape)
    found: list[tuple[float, ...]] = []
    for row, cams_khw in zip(there, cams, strict=True):
        frame = criteria.frame(width[row], height[row])
        place = 0
        for label, cam_hw in zip(labels[int(row)].as_py(), cams_khw, strict=True):
            for box in boxes_from_cam(cam_hw, frame, criteria.box_rule):
                found.append((row, place, label, *box))
                place += 1
    return _pairs(found)


def _first_boxes(
    table: pa.Table,
    criteria: Criteria,
    own: pd.DataFrame,
    targets: Targets,
    width: NDArray[np.floating],
    height: NDArray[np.floating],
) -> Pairs:
    """The first box of each unit's own map."""
    if criteria.box_rule is None:
        lists = combine_chunks(table["targets"]).flatten()
        first = pc.list_element(lists.field("boxes"), 0).take(pa.array(own["target"].to_numpy()))
        pairs = own[["row", "label"]].assign(place=0)
        for corner in CORNERS:
            pairs[corner] = first.field(corner).to_numpy(zero_copy_only=False)
        return pairs
    found = []
    for row, label, target in own[["row", "label", "target"]].itertuples(index=False):
        frame = criteria.frame(width[row], height[row])
        box = boxes_from_cam(targets.cams_Nhw[target], frame, criteria.box_rule)[0]
        found.append((row, 0, label, *box))
    return _pairs(found)


def _pairs(found: list[tuple[float, ...]]) -> Pairs:
    pairs = pd.DataFrame(found, columns=["row", "place", "label", *CORNERS])
    return pairs.astype({"row": np.int64, "place": np.int64, "label": np.int32})


def _overlaps(predicted: Pairs, true: pd.DataFrame, criteria: Criteria) -> pd.DataFrame:
    """Pairs of a predicted and a true box of the same row and label, with unit and iou."""
    pairs = predicted.merge(true, on=["row", "label"], suffixes=("", "_true"))
    corners = pairs[[f"{corner}_true" for corner in CORNERS]].to_numpy()
    pairs["iou"] = paired_iou(pairs[list(CORNERS)].to_numpy(), corners, inclusive=criteria.inclusive)
    return pairs


def _errors(
    units: pd.DataFrame,
    classified: NDArray[np.bool_],
    localized: NDArray[np.bool_],
    predicted: Pairs,
    true: pd.DataFrame,
) -> NDArray[np.int8]:
    """Why the first (label, box) pair of a unit's row is wrong, if it is: exactly one of ERRORS.

    Of pairs that have the label and miss: several_instances covers more than 0.3 of two true boxes or more;
    part lies with more than half of its area in a true box; the rest is too_large or too_small by its area
    beside that of the true box it covers most. Covering more than 0.7 of it (TS-CAM's "more") is too_large.
    """
    errors = np.full(len(units), ERRORS.index("no_box"), np.int8)
    first = predicted[predicted["place"] == 0].drop(columns=["label", "place"])
    pairs = units.drop(columns="label").merge(first, on="row")
    errors[pairs["unit"]] = ERRORS.index("wrong_class")
    pairs = pairs[classified[pairs["unit"], 0]].drop(columns="row")
    pairs = pairs.merge(true, on="unit", suffixes=("", "_true"))
    if len(pairs):
        a = pairs[list(CORNERS)].to_numpy(np.float64)
        b = pairs[[f"{corner}_true" for corner in CORNERS]].to_numpy(np.float64)
        sides = np.clip(np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2]), 0, None)
        inside, area_a, area_b = (
            np.prod(x, axis=1) for x in (sides, a[:, 2:] - a[:, :2], b[:, 2:] - b[:, :2])
        )
        area_a = np.maximum(area_a, np.finfo(float).tiny)
        kinds = pd.DataFrame({"unit": pairs["unit"], "iog": inside / area_b, "iop": inside / area_a})
        kinds["larger"] = area_a > area_b
        kinds["several"] = kinds["iog"] > _SEVERAL_IOG
        kinds = kinds.sort_values(["unit", "iog"], ascending=[True, False], kind="stable")
        by_unit = kinds.groupby("unit")
        table = by_unit.agg({"several": "sum", "iop": "max", "larger": "first"})
        names = np.select(
            [table["several"] > 1, table["iop"] > _PART_IOP, table["larger"]],
            [ERRORS.index(name) for name in ("several_instances", "part", "too_large")],
            ERRORS.index("too_small"),
        )
        errors[table.index] = names
    errors[localized[:, 0]] = ERRORS.index("correct")
    return errors


def _shares(
    count: int, true: pd.DataFrame, width: NDArray[np.floating], height: NDArray[np.floating]
) -> NDArray[np.float64]:
    """The largest true box's share of its image's area, for each unit; NaN without a box or a size."""
    rows = true["row"].to_numpy()
    area = (true["xmax"] - true["xmin"]).to_numpy(float) * (true["ymax"] - true["ymin"]).to_numpy(float)
    shares = np.full(count, np.nan)
    np.fmax.at(shares, true["unit"].to_numpy(), area / (width[rows].astype(float) * height[rows]))
    return np.minimum(shares, 1.0)


def _flat(column: pa.ChunkedArray, label: str | None) -> pd.DataFrame:
    """A column of lists as a frame: row, place in the list, label and, of structs, the corners."""
    lists = combine_chunks(column)
    row, values = pc.list_parent_indices(lists).to_numpy(), lists.flatten()
    place = np.arange(len(row)) - np.searchsorted(row, row)
    frame = pd.DataFrame({"row": row, "place": place})
    frame["label"] = (values if label is None else values.field(label)).to_numpy(zero_copy_only=False)
    if label is not None:
        for corner in CORNERS:
            frame[corner] = values.field(corner).to_numpy(zero_copy_only=False)
    return frame
