"""Photographs behind rows, for the pages that show some: rows by image id, their pixels, their maps."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

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


@dataclass(frozen=True, slots=True)
class Photograph:
    """A row that is ok with its image: the row as a dictionary, its maps [k, h, w] and its frame.

    photo_HW3: RGB uint8 of the original's size; None where it cannot be had any more, and error says why.
    """

    row: dict[str, Any]
    cams_khw: NDArray[np.float16]
    frame: Frame
    photo_HW3: NDArray[np.uint8] | None
    error: str | None = None


def photographs(ledger: Ledger, recipe: Recipe, image_ids: Sequence[str]) -> Iterator[Photograph]:
    """The photographs of these images, whose current rows are ok; one at a time, in the order of reading."""
    rows = _current_rows(ledger, image_ids)
    if rows is None:
        return
    # Torch takes seconds to load: only where a photograph is decoded.
    from camworker.images.decode import decode

    for generation in pc.unique(rows["generation"]).to_pylist():
        plan = ledger.read_plan(generation)
        here = rows.filter(pc.equal(rows["generation"], generation))
        cams = here["cams"].combine_chunks().to_numpy_ndarray()
        # A photograph that was replaced since would lie: its maps are another picture's.
        sources = open_fetchers(here, plan.policy)
        for cams_khw, row, fetch in zip(cams, here.drop_columns("cams").to_pylist(), sources, strict=True):
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
    """The current rows of images that have one, in the order that reads fastest; None where none has.

    Only parts that hold one of them are read whole.
    """
    wanted = pa.array(image_ids, pa.string())
    found = []
    for key in committed_parts(ledger).values():
        ids = read_latest(ledger, key, None, ["image_id"])["image_id"]
        if pc.any(pc.is_in(ids, wanted)).as_py():
            rows = read_latest(ledger, key, None)
            found.append(rows.filter(pc.is_in(rows["image_id"], wanted)))
    if not found:
        return None
    rows = pa.concat_tables(found)
    last = rows.group_by("image_id").aggregate([("generation", "max")]).combine_chunks()
    place = pc.index_in(rows["image_id"], last["image_id"])
    rows = rows.filter(pc.equal(rows["generation"], last["generation_max"].take(place)))
    return rows.sort_by([("uri", "ascending"), ("source_row", "ascending")])
