"""Read the photographs of prediction rows again, for the pages that show them."""

import itertools
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
from camworker.reports.cards import MapsOfClass, PredictionRecord, TargetRecord
from camworker.schemas import CamShape, MapColumn, cam_maps, refined_u8


@dataclass(frozen=True, slots=True)
class Photograph:
    """A prediction row with status "ok" and its photograph.

    Attributes:
        row: The row without the maps of its top-k classes.
        maps: The maps of the top-k classes.
        targets: The maps of the target classes.
        frame: The frame of the image.
        photo_HW3: RGB uint8 pixels of the original size; None if the photograph cannot be read any more.
        error: Why there are no pixels.
    """

    row: PredictionRecord
    maps: tuple[MapsOfClass, ...]
    targets: tuple[MapsOfClass, ...]
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
    shape, refined_shape = snapshot.cam_shape(), snapshot.refined_shape()
    rows = rows.sort_by([("uri", "ascending"), ("source_row", "ascending")])
    # Loading torch takes seconds, so it is imported only if a photograph is decoded.
    from camworker.images.decode import decode

    for generation in cast(list[int], pc.unique(rows["generation"]).to_pylist()):
        plan = snapshot.plan(generation)
        generation_rows = rows.filter(pc.equal(rows["generation"], pa.scalar(generation)))
        maps = _maps(generation_rows["cams"], generation_rows["refined"], shape, refined_shape)
        records = cast(list[PredictionRecord], generation_rows.drop_columns(["cams", "refined"]).to_pylist())
        # The plan's policy checks identities: the maps of a photograph that was replaced do not fit it.
        fetchers = open_fetchers(generation_rows, plan.policy)
        for maps_of_row, row, fetch in zip(maps, records, fetchers, strict=True):
            targets = tuple(_target(target, shape.one, refined_shape) for target in row["targets"])
            frame = snapshot.recipe.frame_spec.frame(row["width"], row["height"])
            data = fetch()
            pixels_CHW = data if isinstance(data, Failure) else decode(data)
            if isinstance(pixels_CHW, Failure):
                error = f"the photograph cannot be shown: {pixels_CHW.reason}"
                yield Photograph(row, maps_of_row, targets, frame, None, error)
            else:
                photo_HW3 = pixels_CHW.permute(1, 2, 0).contiguous().numpy()
                yield Photograph(row, maps_of_row, targets, frame, photo_HW3)


def _maps(
    cams: MapColumn, refined: MapColumn, shape: CamShape, refined_shape: CamShape | None
) -> list[tuple[MapsOfClass, ...]]:
    """Return the maps of each row's classes, best first; lower ranked classes may have no refined map."""
    cams_Nkhw = cam_maps(cams, shape)
    if refined_shape is None:
        return [tuple(MapsOfClass(cam_hw, None) for cam_hw in cams_khw) for cams_khw in cams_Nkhw]
    refined_Nkhw = refined_u8(refined, refined_shape)
    return [
        tuple(itertools.starmap(MapsOfClass, itertools.zip_longest(cams_khw, refined_khw)))
        for cams_khw, refined_khw in zip(cams_Nkhw, refined_Nkhw, strict=True)
    ]


def _target(target: TargetRecord, shape: CamShape, refined_shape: CamShape | None) -> MapsOfClass:
    cam, refined = (pa.array([data], pa.binary()) for data in (target["cam"], target["refined"]))
    ((maps,),) = _maps(cam, refined, shape, refined_shape and refined_shape.one)
    return maps
