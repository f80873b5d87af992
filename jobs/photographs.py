"""Read the photographs of prediction rows again, for the pages that show them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from camworker.dataset import committed_parts, read_latest
from camworker.errors import Failure
from camworker.frame import Frame
from camworker.inputs.fetch import open_fetchers
from camworker.ledger.ledger import Ledger
from camworker.ledger.recipe import Recipe
from camworker.reports.cards import PredictionRecord


@dataclass(frozen=True, slots=True)
class Photograph:
    """A prediction row with status "ok" and its photograph.

    Attributes:
        row: The row without its maps.
        cams_khw: The maps of the top-k classes.
        frame: The frame of the image.
        photo_HW3: RGB uint8 pixels of the original size; None if the photograph cannot be read any more.
        error: Why there are no pixels.
    """

    row: PredictionRecord
    cams_khw: NDArray[np.float16]
    frame: Frame
    photo_HW3: NDArray[np.uint8] | None
    error: str | None = None


def photographs(ledger: Ledger, recipe: Recipe, image_ids: Sequence[str]) -> Iterator[Photograph]:
    """Yield the photographs of images whose current rows have predictions, one at a time.

    Args:
        ledger: The recipe's ledger.
        recipe: The recipe.
        image_ids: Ids of the images. The photographs come in the order in which they are read.
    """
    rows = _current_rows(ledger, image_ids)
    if rows is None:
        return
    # Loading torch takes seconds, so it is imported only if a photograph is decoded.
    from camworker.images.decode import decode

    for generation in cast(list[int], pc.unique(rows["generation"]).to_pylist()):
        plan = ledger.read_plan(generation)
        generation_rows = rows.filter(pc.equal(rows["generation"], pa.scalar(generation)))
        cams = cast("pa.FixedShapeTensorArray[Any]", generation_rows["cams"].combine_chunks())
        records = cast(list[PredictionRecord], generation_rows.drop_columns("cams").to_pylist())
        # The plan's policy checks identities: the maps of a photograph that was replaced do not fit it.
        fetchers = open_fetchers(generation_rows, plan.policy)
        for cams_khw, row, fetch in zip(cams.to_numpy_ndarray(), records, fetchers, strict=True):
            frame = recipe.frame_spec.frame(row["width"], row["height"])
            data = fetch()
            pixels_CHW = data if isinstance(data, Failure) else decode(data)
            if isinstance(pixels_CHW, Failure):
                error = f"the photograph cannot be shown: {pixels_CHW.reason}"
                yield Photograph(row, cams_khw, frame, None, error)
            else:
                photo_HW3 = pixels_CHW.permute(1, 2, 0).contiguous().numpy()
                yield Photograph(row, cams_khw, frame, photo_HW3)


def _current_rows(ledger: Ledger, image_ids: Sequence[str]) -> pa.Table | None:
    """Return the current rows of these images in reading order, or None if no image has a row.

    Only parts with a row of one of these images are read completely.
    """
    wanted = pa.array(image_ids, pa.string())
    parts = []
    for key in committed_parts(ledger).values():
        ids = read_latest(ledger, key, None, ["image_id"])["image_id"]
        if pc.any(pc.is_in(ids, wanted)).as_py():
            rows = read_latest(ledger, key, None)
            parts.append(rows.filter(pc.is_in(rows["image_id"], wanted)))
    if not parts:
        return None
    rows = pa.concat_tables(parts)
    last = rows.group_by("image_id").aggregate([("generation", "max")]).combine_chunks()
    last_row = pc.index_in(rows["image_id"], last["image_id"])
    rows = rows.filter(pc.equal(rows["generation"], last["generation_max"].take(last_row)))
    return rows.sort_by([("uri", "ascending"), ("source_row", "ascending")])
