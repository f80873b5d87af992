"""Write the results of `camworker units`: the table of patches and the page that shows them."""

import json
from collections import defaultdict
from pathlib import Path
from typing import cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from camworker.errors import Failure
from camworker.images.decode import decode
from camworker.inputs.fetch import open_fetchers
from camworker.reports.units_page import (
    PatchBox,
    PatchRecord,
    Pictures,
    box_of,
    classes_on_page,
    cut_patch,
    write_units_page,
)
from camworker.storage.atomic import write_then_rename
from camworker.units.table import units_table
from camworker.units.top_activations import CollectedActivations, patch_boxes
from jobs.units.request import ImageBatchSource, Request


def make_units_table(request: Request, collected: CollectedActivations, side: int | None) -> pa.Table:
    """Return the rows of units.parquet.

    Args:
        request: The request of the run.
        collected: The top activations of all images.
        side: Side of a patch in pixels of the network's input; None if no image could be decoded.
    """
    settings = request.settings
    boxes_UN4 = patch_boxes(
        collected.activations.best_UN, request.map_size, side or 1, settings.input_size, settings.resize
    )
    return units_table(
        request.labels,
        request.package.classes.names,
        request.units_KU,
        request.weights_KC,
        collected.activations,
        boxes_UN4,
        request.items,
    )


def write_units_table(table: pa.Table, folder: Path, request: Request, side: int | None) -> Path:
    """Write units.parquet into a folder, completely or not at all, and return its path."""
    settings = request.settings
    metadata = {
        "network": request.package.name,
        "weights": request.package.fingerprint,
        "frame": json.dumps({"resize": settings.resize, "input_size": settings.input_size}),
        "patch_side": json.dumps(side),
    }
    path = folder / "units.parquet"
    with write_then_rename(path) as draft:
        pq.write_table(
            table.replace_schema_metadata(metadata), draft, compression="zstd", write_page_checksum=True
        )
    return path


def write_patches_page(
    folder: Path,
    request: Request,
    table: pa.Table,
    collected: CollectedActivations,
    *,
    side: int | None,
    max_classes: int,
    by_count: bool,
) -> Path:
    """Write units.html into a folder and return its path.

    Args:
        folder: Where the page is written.
        request: The request of the run.
        table: The rows of units.parquet.
        collected: The top activations of all images.
        side: Side of a patch in pixels of the network's input, if known.
        max_classes: Maximum number of classes on the page.
        by_count: Show the classes that are predicted for most images instead of the first ones.
    """
    labels = request.labels
    if by_count:
        labels = labels[np.argsort(-collected.top1_counts_K[labels], kind="stable")]
    labels = labels[:max_classes]
    shown = table.filter(pc.is_in(table["label"], pa.array(labels)))
    names = request.package.classes.names
    return write_units_page(
        folder,
        classes_on_page(
            cast(list[PatchRecord], shown.to_pylist()),
            [(int(label), names[label], int(collected.top1_counts_K[label])) for label in labels],
            _pictures(shown, request.sources),
        ),
        network=request.package.name,
        images=collected.images["ok"],
        failed={status: count for status, count in collected.images.items() if status != "ok"},
        total=len(request.labels),
        by_count=by_count,
        side=side,
        input_size=request.settings.input_size,
    )


def _pictures(shown: pa.Table, sources: list[ImageBatchSource]) -> Pictures:
    """Cut the patches of these rows from the photographs, reading each photograph once."""
    boxes: dict[str, set[PatchBox]] = defaultdict(set)
    for row in cast(list[PatchRecord], shown.to_pylist()):
        boxes[row["image_id"]].add(box_of(row))
    pictures = {}
    for source in sources:
        items = source.items.filter(pc.is_in(source.items["image_id"], pc.unique(shown["image_id"])))
        image_ids = cast(list[str], items["image_id"].to_pylist())
        for image_id, fetch in zip(image_ids, open_fetchers(items, source.policy), strict=True):
            data = fetch()
            pixels_CHW = data if isinstance(data, Failure) else decode(data)
            if not isinstance(pixels_CHW, Failure):
                photo_HW3 = pixels_CHW.permute(1, 2, 0).contiguous().numpy()
                pictures.update({(image_id, box): cut_patch(photo_HW3, box) for box in boxes[image_id]})
    return pictures
