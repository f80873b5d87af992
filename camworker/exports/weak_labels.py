"""Turn rows of predictions into images with weak labels, and count what is left out."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import repeat
from typing import Final, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from camworker.boxes.masks import weak_mask
from camworker.boxes.refine import decode_refined
from camworker.errors import Failure
from camworker.exports.mask_encodings import RunLengths
from camworker.exports.selected_labels import SelectedLabels, needed_columns, select_labels
from camworker.exports.selection import Counts, LabelSelection
from camworker.frame import Frame
from camworker.inputs.fetch import open_fetchers
from camworker.ledger.snapshot import Snapshot

_IMAGE: Final = ("image_id", "uri", "source_row", "identity", "width", "height")


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
        boxes: Box of each label, [N][4]: xmin, ymin, xmax, ymax in pixels, half-open, float32 values; around
            the mask if there are masks.
        fallback: Whether each box is the one over the whole image, of a map without a positive value.
        masks: Mask of each label, [N]; empty if masks were not requested.
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
    fallback: list[bool]
    masks: list[RunLengths] = field(default_factory=list)
    data: bytes = b""


def labelled_images(
    snapshot: Snapshot,
    selection: LabelSelection,
    counts: Counts,
    *,
    with_bytes: bool = False,
) -> Iterator[LabelledImage]:
    """Yield the images that have a selected box or mask, part by part.

    Args:
        snapshot: What the recipe holds.
        selection: Which boxes or masks become labels.
        counts: Updated while images are yielded.
        with_bytes: Read every image again. An image that has changed or cannot be read is left out.

    Raises:
        UsageError: Nothing is committed yet.
    """
    columns = [*_IMAGE, "status", "generation", *needed_columns(selection)]
    before = 0  # number of rows with predictions in earlier parts
    for part in snapshot.iter_latest(columns):
        ok = pc.equal(part["status"], pa.scalar("ok"))
        counts.failed.update(cast(list[str], part["status"].filter(pc.invert(ok)).to_pylist()))
        rows = part.filter(ok).combine_chunks()
        if rows.num_rows:
            yield from _images(snapshot, rows, before, selection, counts, with_bytes)
        before += rows.num_rows


def _images(
    snapshot: Snapshot,
    rows: pa.Table,
    before: int,
    selection: LabelSelection,
    counts: Counts,
    with_bytes: bool,
) -> Iterator[LabelledImage]:
    """Yield the images of one part that have a selected label, numbered after the `before` earlier rows."""
    selected = select_labels(snapshot, rows, selection, counts)
    row_M, labels_per_row_M = np.unique(selected.row_N, return_counts=True)
    counts.empty_images += rows.num_rows - len(row_M)
    images = rows.select(_IMAGE).take(row_M)
    contents: Iterable[bytes | Failure] = repeat(b"", len(row_M))
    if with_bytes:
        plan = snapshot.plan(rows["generation"][0].as_py())
        contents = (fetch() for fetch in open_fetchers(images, plan.policy))
    end = 0
    for image, row, labels, data in zip(images.to_pylist(), row_M, labels_per_row_M, contents, strict=True):
        start, end = end, end + int(labels)
        if isinstance(data, Failure):
            counts.unreadable[data.status] += 1
            continue
        used = np.arange(start, end)
        boxes = selected.corners_N4[used].tolist()
        masks: list[RunLengths] = []
        if selection.mask_threshold is not None:
            frame = snapshot.recipe.frame_spec.frame(image["width"], image["height"])
            found = _masks(selected, used, frame, selection.mask_threshold)
            counts.labels_without_mask += len(used) - len(found)
            used, masks = np.array([*found], np.int64), [*found.values()]
            boxes = [mask.box for mask in masks]
            if not masks:
                counts.empty_images += 1
                continue
        counts.images += 1
        counts.boxes += len(used)
        yield LabelledImage(
            number=before + int(row) + 1,
            image_id=image["image_id"],
            uri=image["uri"],
            in_table=image["source_row"] is not None,
            width=image["width"],
            height=image["height"],
            labels=selected.label_N[used].tolist(),
            scores=selected.score_N[used].tolist(),
            boxes=boxes,
            fallback=selected.fallback_N[used].tolist(),
            masks=masks,
            data=data,
        )


def _masks(
    selected: SelectedLabels, used: NDArray[np.int64], frame: Frame, threshold: float
) -> dict[int, RunLengths]:
    """Return the masks of the used labels of one image by their index; none of those without a pixel."""
    assert selected.refined_Nhw is not None  # because masks were selected
    masks = {}
    for n in used.tolist():
        # One at a time: before it is encoded, a mask takes a byte for every pixel of the image.
        mask = RunLengths.of(weak_mask(decode_refined(selected.refined_Nhw[n]), frame, threshold))
        if mask.area:
            masks[n] = mask
    return masks
