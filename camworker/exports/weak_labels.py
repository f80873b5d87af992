"""Turn rows of predictions into images with weak labels, and count what is left out."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any, Final, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from camworker.boxes.rules import boxes_from_cam
from camworker.errors import Failure
from camworker.frame import CORNERS, FrameSpec
from camworker.inputs.fetch import open_fetchers
from camworker.ledger.snapshot import Snapshot
from camworker.schemas import CamShape, cam_maps

_IMAGE: Final = ("image_id", "uri", "source_row", "identity", "width", "height")


@dataclass(frozen=True, slots=True)
class LabelSelection:
    """Which boxes become labels.

    Attributes:
        classes: Class indices, or None for all classes.
        ranks: How many of the top-k labels of an image are used, the best first; ignored for targets.
        min_score: Minimum score of a label, from 0 to 1.
        targets: Use the known labels of each image instead of the predicted ones.
        box_rule: Make new boxes from the stored maps with this rule; None uses the stored boxes.
    """

    classes: frozenset[int] | None = None
    ranks: int = 1
    min_score: float = 0.0
    targets: bool = False
    box_rule: str | None = None


@dataclass
class Counts:
    """What was exported, and what was left out and why.

    A label is a class of an image; it is left out with all of its boxes.

    Attributes:
        images: Exported images.
        boxes: Exported boxes.
        failed: Images whose row has no prediction, by status.
        labels_of_other_classes: Labels whose class was not selected.
        labels_under_min_score: Labels with a lower score than selected.
        boxes_without_area: Boxes of width or height zero.
        empty_images: Images without a selected box.
        unreadable: Images that could not be read again, by the status of the attempt.
        known_labels: Known labels of the images with predictions; counted only if these are selected.
    """

    images: int = 0
    boxes: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    labels_of_other_classes: int = 0
    labels_under_min_score: int = 0
    boxes_without_area: int = 0
    empty_images: int = 0
    unreadable: Counter[str] = field(default_factory=Counter)
    known_labels: int = 0

    @property
    def seen(self) -> int:
        """Number of images so far, exported or not."""
        return self.images + self.empty_images + self.failed.total() + self.unreadable.total()


@dataclass(frozen=True, slots=True)
class LabelledImage:
    """One image and its N >= 1 weak labels.

    Attributes:
        number: Number of the image, from 1, among the current rows with predictions; independent of the
            selection of labels.
        image_id: Id of the image.
        uri: Where the image was read.
        in_table: Whether the image is a row of the Parquet file `uri`.
        width: Width in pixels, as displayed.
        height: Height in pixels, as displayed.
        labels: Class index of each label, [N].
        scores: Score of each label, [N].
        boxes: Box of each label, [N][4]: xmin, ymin, xmax, ymax in pixels, half-open, float32 values.
        data: The bytes of the image file, if they were requested.
    """

    number: int
    image_id: str
    uri: str
    in_table: bool
    width: int
    height: int
    labels: list[int]
    scores: list[float]
    boxes: list[list[float]]
    data: bytes = b""


@dataclass(frozen=True, slots=True)
class SelectedBoxes:
    """N boxes of a part, ordered by row, then by rank, then as the box rule returned them for one map.

    Attributes:
        row_N: Row of each box in the part.
        label_N: Class index of each box.
        score_N: Score of each box's label.
        corners_N4: xmin, ymin, xmax, ymax in pixels of the original image.
    """

    row_N: NDArray[np.int64]
    label_N: NDArray[np.int32]
    score_N: NDArray[np.float32]
    corners_N4: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class _Labels:
    """P labels of a part: for each its row, its index among the labels of the row, its class and score."""

    row_P: NDArray[np.int64]
    index_P: NDArray[np.int64]
    label_P: NDArray[np.int32]
    score_P: NDArray[np.float32]


def labelled_images(
    snapshot: Snapshot,
    selection: LabelSelection,
    counts: Counts,
    *,
    with_bytes: bool = False,
) -> Iterator[LabelledImage]:
    """Yield the images that have a selected box, part by part.

    Args:
        snapshot: What the recipe holds.
        selection: Which boxes become labels.
        counts: Updated while images are yielded.
        with_bytes: Read every image again. An image that has changed or cannot be read is left out.

    Raises:
        UsageError: Nothing is committed yet.
    """
    before = 0  # number of rows with predictions in earlier parts
    for part in snapshot.iter_latest(_columns(selection)):
        ok = pc.equal(part["status"], pa.scalar("ok"))
        counts.failed.update(cast(list[str], part["status"].filter(pc.invert(ok)).to_pylist()))
        rows = part.filter(ok).combine_chunks()
        if rows.num_rows:
            spec, shape = snapshot.recipe.frame_spec, snapshot.cam_shape()
            selected = select_boxes(rows, selection, spec, shape, counts)
            yield from _images(snapshot, rows, before, selected, counts, with_bytes)
        before += rows.num_rows


def _columns(selection: LabelSelection) -> list[str]:
    """Return the columns to read; maps only if they are needed."""
    columns = [*_IMAGE, "status", "generation"]
    columns += ["targets"] if selection.targets else ["labels", "scores"]
    if selection.box_rule:
        columns += [] if selection.targets else ["cams"]
    elif not selection.targets:
        columns.append("boxes")
    return columns


def _images(
    snapshot: Snapshot, rows: pa.Table, before: int, selected: SelectedBoxes, counts: Counts, with_bytes: bool
) -> Iterator[LabelledImage]:
    """Yield the images of one part that have a selected box, numbered after the `before` earlier rows."""
    row_M, boxes_per_row_M = np.unique(selected.row_N, return_counts=True)
    counts.empty_images += rows.num_rows - len(row_M)
    images = rows.select(_IMAGE).take(row_M)
    contents: Iterable[bytes | Failure] = repeat(b"", len(row_M))
    if with_bytes:
        plan = snapshot.plan(rows["generation"][0].as_py())
        contents = (fetch() for fetch in open_fetchers(images, plan.policy))
    end = 0
    for image, row, boxes, data in zip(images.to_pylist(), row_M, boxes_per_row_M, contents, strict=True):
        start, end = end, end + int(boxes)
        if isinstance(data, Failure):
            counts.unreadable[data.status] += 1
            continue
        counts.images += 1
        counts.boxes += end - start
        yield LabelledImage(
            number=before + int(row) + 1,
            image_id=image["image_id"],
            uri=image["uri"],
            in_table=image["source_row"] is not None,
            width=image["width"],
            height=image["height"],
            labels=selected.label_N[start:end].tolist(),
            scores=selected.score_N[start:end].tolist(),
            boxes=selected.corners_N4[start:end].tolist(),
            data=data,
        )


def select_boxes(
    rows: pa.Table, selection: LabelSelection, spec: FrameSpec, shape: CamShape, counts: Counts
) -> SelectedBoxes:
    """Select the boxes of rows with predictions, and count what is left out.

    Args:
        rows: Current rows with status "ok", each column in one chunk.
        selection: Which boxes become labels.
        spec: How the images lie in the network's input.
        shape: Shape of the class activation maps of a row.
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
    kept_P = ranked & wanted & scored
    if selection.box_rule:
        kept = np.flatnonzero(kept_P)
        parent_N, corners_N4 = _made_boxes(
            rows, labels, kept, selection.targets, selection.box_rule, spec, shape
        )
    else:
        parent_N, corners_N4 = _stored_boxes(rows, kept_P, selection.targets)
    has_area_N = (corners_N4[:, 2:] > corners_N4[:, :2]).all(1)
    counts.boxes_without_area += int((~has_area_N).sum())
    parent_N = parent_N[has_area_N]
    return SelectedBoxes(
        labels.row_P[parent_N], labels.label_P[parent_N], labels.score_P[parent_N], corners_N4[has_area_N]
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


def _stored_boxes(
    rows: pa.Table, kept_P: NDArray[np.bool_], targets: bool
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the index of the label and the corners [N, 4] of the N stored boxes of the kept labels."""
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
    return parent_N[kept_P[parent_N]], corners_N4[kept_P[parent_N]]


def _made_boxes(
    rows: pa.Table,
    labels: _Labels,
    kept: NDArray[np.int64],
    targets: bool,
    rule: str,
    spec: FrameSpec,
    shape: CamShape,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the index of the label and the corners [N, 4] of the N boxes made from the kept labels' maps."""
    if targets:
        maps_Phw = cam_maps(_structs(_list_array(rows["targets"])).field("cam"), shape.one)[kept, 0]
    else:
        maps_Phw = cam_maps(rows["cams"], shape)[labels.row_P[kept], labels.index_P[kept]]
    sizes_R2 = np.stack([rows["width"].to_numpy(), rows["height"].to_numpy()], axis=1)
    parents, corners = [np.empty(0, np.int64)], [np.empty((0, 4), np.float32)]
    for label, map_hw, size in zip(kept, maps_Phw, sizes_R2[labels.row_P[kept]].tolist(), strict=True):
        boxes_N4 = boxes_from_cam(map_hw, spec.frame(*size), rule)
        parents.append(np.full(len(boxes_N4), label))
        corners.append(boxes_N4)
    return np.concatenate(parents), np.concatenate(corners)


def _list_array(column: "pa.ChunkedArray[Any]") -> "pa.ListArray[Any]":
    # The columns come from Table.combine_chunks, which leaves each as one chunk.
    return cast("pa.ListArray[Any]", column.chunk(0))


def _structs(lists: "pa.ListArray[Any]") -> pa.StructArray:
    return cast(pa.StructArray, lists.flatten())
