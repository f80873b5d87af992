"""Rows of predictions -> images with weak labels: which boxes are taken, and a count of what is not."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from camworker.boxes.rules import boxes_from_cam
from camworker.dataset import iter_latest
from camworker.errors import Failure
from camworker.frame import CORNERS, Frame, frame_size
from camworker.inputs.fetch import open_fetchers
from camworker.ledger.ledger import Ledger

_IMAGE: Final = ("image_id", "uri", "source_row", "identity", "width", "height")

# (width, height) -> the frame of an image of that size.
Framing = Callable[[int, int], Frame]


@dataclass(frozen=True, slots=True)
class LabelSelection:
    """Which boxes become labels.

    classes: class indices; None takes all. ranks: how many of the top-k, the best first. min_score: in
    the network's scoring, 0..1. targets: the boxes of the known labels in place of the predicted ones;
    ranks then counts for nothing. box_rule: makes other boxes of the stored maps; None takes the stored.
    """

    classes: frozenset[int] | None = None
    ranks: int = 1
    min_score: float = 0.0
    targets: bool = False
    box_rule: str | None = None


@dataclass
class Counts:
    """What was exported, and what was left out and why.

    A label is a class of an image: it is left out with all its boxes. failed, unreadable: images by
    status, of the row and of the attempt to read the image again. empty_images: without a box.
    known_labels: of the images that are ok, where the known labels are asked for.
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
        """Images looked at."""
        return self.images + self.empty_images + self.failed.total() + self.unreadable.total()


@dataclass(frozen=True, slots=True)
class LabelledImage:
    """One image and its N >= 1 weak labels.

    number: from 1, its place among the current rows that are ok, whatever is chosen of them. in_table:
    it is a row of the Parquet file uri. width, height: as displayed, in pixels. labels [N]: class
    indices. scores [N]. boxes [N][4]: xmin, ymin, xmax, ymax, half-open, in pixels; float32 values. data:
    the image file's bytes, where they were asked for.
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
class Chosen:
    """N boxes of a part: the row of each, class index, score and corners [N, 4].

    In the order of rows, of ranks, and of the boxes that the rule gives for one map.
    """

    row_N: NDArray[np.int64]
    label_N: NDArray[np.int32]
    score_N: NDArray[np.float32]
    corners_N4: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class _Labels:
    """P labels of a part: the row of each, its place from 0 among the row's, class index and score."""

    row_P: NDArray[np.int64]
    place_P: NDArray[np.int64]
    label_P: NDArray[np.int32]
    score_P: NDArray[np.float32]


def labelled_images(
    ledger: Ledger,
    recipe: dict[str, Any],
    choice: LabelSelection,
    counts: Counts,
    *,
    with_bytes: bool = False,
) -> Iterator[LabelledImage]:
    """The images that have a chosen box, part by part; counts is kept as they are drawn.

    with_bytes: each is read again, and left out where it changed since or cannot be read. Raises
    UsageError where nothing is committed yet.
    """
    preprocessing = recipe["preprocessing"]
    size = frame_size(preprocessing["input_size"], recipe["views"])

    def framing(width: int, height: int) -> Frame:
        return Frame(width, height, size, preprocessing["resize"])

    before = 0  # rows of earlier parts that were ok
    for part in iter_latest(ledger, _columns(choice)):
        ok = pc.equal(part["status"], "ok")
        counts.failed.update(part["status"].filter(pc.invert(ok)).to_pylist())
        rows = part.filter(ok).combine_chunks()
        if rows.num_rows:
            yield from _images(
                ledger, rows, before, choose(rows, choice, framing, counts), counts, with_bytes
            )
        before += rows.num_rows


def _columns(choice: LabelSelection) -> list[str]:
    """The columns that are read: no maps where none are needed."""
    columns = [*_IMAGE, "status", "generation"]
    columns += ["targets"] if choice.targets else ["labels", "scores"]
    if choice.box_rule:
        columns.append("cams")  # for the known labels too: its type tells the shape of their maps
    elif not choice.targets:
        columns.append("boxes")
    return columns


def _images(
    ledger: Ledger, rows: pa.Table, before: int, chosen: Chosen, counts: Counts, with_bytes: bool
) -> Iterator[LabelledImage]:
    """The images of one part's rows that have a chosen box; before: rows that were ok in earlier parts."""
    present, boxes_each = np.unique(chosen.row_N, return_counts=True)
    counts.empty_images += rows.num_rows - len(present)
    images = rows.select(_IMAGE).take(pa.array(present))
    contents: Iterable[bytes | Failure] = repeat(b"", len(present))
    if with_bytes:
        plan = ledger.read_plan(rows["generation"][0].as_py())
        contents = (fetch() for fetch in open_fetchers(images, verify=plan.verify, tables=plan.tables))
    end = 0
    for image, row, boxes, data in zip(images.to_pylist(), present, boxes_each, contents, strict=True):
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
            labels=chosen.label_N[start:end].tolist(),
            scores=chosen.score_N[start:end].tolist(),
            boxes=chosen.corners_N4[start:end].tolist(),
            data=data,
        )


def choose(rows: pa.Table, choice: LabelSelection, framing: Framing, counts: Counts) -> Chosen:
    """The chosen boxes of rows that are ok; what is left out is counted."""
    labels = _labels(rows, choice.targets)
    if choice.targets:
        counts.known_labels += len(labels.row_P)
    ranked = np.full(len(labels.row_P), choice.targets) | (labels.place_P < choice.ranks)
    wanted = np.ones(len(labels.row_P), bool)
    if choice.classes is not None:
        wanted = np.isin(labels.label_P, sorted(choice.classes))
    # In float32, as scores are stored: 0.9 has to include a score that was 0.9.
    scored = labels.score_P >= np.float32(choice.min_score)
    counts.labels_of_other_classes += int((ranked & ~wanted).sum())
    counts.labels_under_min_score += int((ranked & wanted & ~scored).sum())
    kept_P = ranked & wanted & scored
    if choice.box_rule:
        kept = np.flatnonzero(kept_P)
        of_label_N, corners_N4 = _made_boxes(rows, labels, kept, choice.targets, choice.box_rule, framing)
    else:
        of_label_N, corners_N4 = _stored_boxes(rows, kept_P, choice.targets)
    has_area_N = (corners_N4[:, 2:] > corners_N4[:, :2]).all(1)
    counts.boxes_without_area += int((~has_area_N).sum())
    of_label_N = of_label_N[has_area_N]
    return Chosen(
        labels.row_P[of_label_N],
        labels.label_P[of_label_N],
        labels.score_P[of_label_N],
        corners_N4[has_area_N],
    )


def _labels(rows: pa.Table, targets: bool) -> _Labels:
    lists = _one_array(rows["targets" if targets else "labels"])
    row_P = pc.list_parent_indices(lists).to_numpy().astype(np.int64)
    values = lists.flatten()
    label = values.field("label") if targets else values
    score = values.field("score") if targets else _one_array(rows["scores"]).flatten()
    place_P = np.arange(len(row_P)) - np.searchsorted(row_P, row_P)
    return _Labels(row_P, place_P, label.to_numpy(), score.to_numpy())


def _stored_boxes(
    rows: pa.Table, kept_P: NDArray[np.bool_], targets: bool
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Of the N stored boxes of the kept labels: the label's number, corners [N, 4]."""
    if targets:
        lists = _one_array(rows["targets"]).flatten().field("boxes")
        of_label_N = pc.list_parent_indices(lists).to_numpy().astype(np.int64)
    else:
        lists = _one_array(rows["boxes"])
        first_of_row = np.cumsum([0, *pc.list_value_length(_one_array(rows["labels"])).to_numpy()])
        rank = lists.flatten().field("rank").to_numpy().astype(np.int64)
        of_label_N = first_of_row[pc.list_parent_indices(lists).to_numpy()] + rank - 1
    boxes = lists.flatten()
    corners_N4 = np.stack([boxes.field(corner).to_numpy() for corner in CORNERS], axis=1)
    return of_label_N[kept_P[of_label_N]], corners_N4[kept_P[of_label_N]]


def _made_boxes(
    rows: pa.Table, labels: _Labels, kept: NDArray[np.int64], targets: bool, rule: str, framing: Framing
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Of the N boxes that the rule makes of the kept labels' maps: the label's number, corners [N, 4]."""
    cams = _one_array(rows["cams"])
    if targets:
        h, w = cams.type.shape[1:]
        values = _one_array(rows["targets"]).flatten().field("cam").flatten()
        maps_Phw = values.to_numpy().reshape(-1, h, w)[kept]
    else:
        maps_Phw = cams.to_numpy_ndarray()[labels.row_P[kept], labels.place_P[kept]]
    sizes_R2 = np.stack([rows["width"].to_numpy(), rows["height"].to_numpy()], axis=1)
    taken, made = [np.empty(0, np.int64)], [np.empty((0, 4), np.float32)]
    for number, map_hw, size in zip(kept, maps_Phw, sizes_R2[labels.row_P[kept]].tolist(), strict=True):
        boxes_N4 = boxes_from_cam(map_hw, framing(*size), rule)
        taken.append(np.full(len(boxes_N4), number))
        made.append(boxes_N4)
    return np.concatenate(taken), np.concatenate(made)


def _one_array(column: pa.ChunkedArray) -> pa.Array:
    # combine_chunks of a table leaves a column as one chunk.
    return column.chunk(0)
