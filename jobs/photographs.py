"""Read the photographs of prediction rows again, for the pages that show them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from camworker.errors import Failure
from camworker.frame import Frame
from camworker.inputs.fetch import open_fetchers
from camworker.ledger.snapshot import Snapshot
from camworker.reports.cards import PredictionRecord
from camworker.schemas import cam_maps


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


def photographs(snapshot: Snapshot, image_ids: Sequence[str]) -> Iterator[Photograph]:
    """Yield the photographs of images whose current rows have predictions, one at a time.

    Args:
        snapshot: What the recipe holds.
        image_ids: Ids of the images. The photographs come in the order in which they are read.
    """
    rows = snapshot.rows_of(image_ids)
    if rows is None:
        return
    shape = snapshot.cam_shape()
    rows = rows.sort_by([("uri", "ascending"), ("source_row", "ascending")])
    # Loading torch takes seconds, so it is imported only if a photograph is decoded.
    from camworker.images.decode import decode

    for generation in cast(list[int], pc.unique(rows["generation"]).to_pylist()):
        plan = snapshot.plan(generation)
        generation_rows = rows.filter(pc.equal(rows["generation"], pa.scalar(generation)))
        cams_Nkhw = cam_maps(generation_rows["cams"], shape)
        records = cast(list[PredictionRecord], generation_rows.drop_columns(["cams", "refined"]).to_pylist())
        # The plan's policy checks identities: the maps of a photograph that was replaced do not fit it.
        fetchers = open_fetchers(generation_rows, plan.policy)
        for cams_khw, row, fetch in zip(cams_Nkhw, records, fetchers, strict=True):
            frame = snapshot.recipe.frame_spec.frame(row["width"], row["height"])
            data = fetch()
            pixels_CHW = data if isinstance(data, Failure) else decode(data)
            if isinstance(pixels_CHW, Failure):
                error = f"the photograph cannot be shown: {pixels_CHW.reason}"
                yield Photograph(row, cams_khw, frame, None, error)
            else:
                photo_HW3 = pixels_CHW.permute(1, 2, 0).contiguous().numpy()
                yield Photograph(row, cams_khw, frame, photo_HW3)
