"""units.html: the units of each class, with the patches of photographs that activate them most."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypedDict

import cv2
import numpy as np
from numpy.typing import NDArray

from camworker.reports.heat_map import data_uri
from camworker.reports.render import write_page

_LONG_SIDE: Final = 128  # pixels of a patch on the page

PatchBox = tuple[float, float, float, float]  # xmin, ymin, xmax, ymax in pixels of the photograph
Pictures = Mapping[tuple[str, PatchBox], str]  # (image_id, box) -> data URI


class PatchRecord(TypedDict):
    """The columns of units.parquet that the page shows."""

    label: int
    unit: int
    weight: float
    max_activation: float
    mean_activation: float
    image_id: str
    xmin: float
    ymin: float
    xmax: float
    ymax: float


@dataclass(frozen=True, slots=True)
class Patch:
    """A patch on the page.

    Attributes:
        source: The pixels as a data URI, or None if the photograph cannot be read any more.
        image_id: Id of the image.
        max_activation: Activation of the unit at the patch.
        mean_activation: Mean activation of the unit over the image.
    """

    source: str | None
    image_id: str
    max_activation: float
    mean_activation: float


@dataclass(frozen=True, slots=True)
class UnitOnPage:
    """A unit of a class and its patches, the best first."""

    unit: int
    weight: float
    patches: Sequence[Patch]


@dataclass(frozen=True, slots=True)
class ClassOnPage:
    """A class and its units, by descending weight.

    Attributes:
        label: Index of the class.
        name: Name of the class.
        images: Number of images whose best class is this class.
        units: The units.
    """

    label: int
    name: str
    images: int
    units: Sequence[UnitOnPage]


def cut_patch(photo_HW3: NDArray[np.uint8], box: PatchBox) -> str:
    """Return the pixels in a half-open box of the photograph as a small picture, in a data URI."""
    height, width = photo_HW3.shape[:2]
    left, top = (min(int(edge), size - 1) for edge, size in zip(box[:2], (width, height), strict=True))
    right, bottom = max(left + 1, round(box[2])), max(top + 1, round(box[3]))
    patch_HW3 = photo_HW3[top:bottom, left:right]
    scale = _LONG_SIDE / max(patch_HW3.shape[:2])
    size = tuple(max(1, round(length * scale)) for length in patch_HW3.shape[1::-1])
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    return data_uri(cv2.resize(patch_HW3, size, interpolation=interpolation))


def classes_on_page(
    rows: Iterable[PatchRecord], classes: Sequence[tuple[int, str, int]], pictures: Pictures
) -> list[ClassOnPage]:
    """Group rows of units.parquet by class and unit.

    Args:
        rows: The rows, in the order of the file.
        classes: Index, name and number of images of the classes to show. A class without rows has no units.
        pictures: The pictures of the patches; a missing one could not be read any more.
    """
    units: dict[int, dict[int, list[PatchRecord]]] = {label: {} for label, _, _ in classes}
    for row in rows:
        if row["label"] in units:
            units[row["label"]].setdefault(row["unit"], []).append(row)
    return [
        ClassOnPage(
            label,
            name,
            images,
            [
                UnitOnPage(unit, patches[0]["weight"], [_patch(row, pictures) for row in patches])
                for unit, patches in units[label].items()
            ],
        )
        for label, name, images in classes
    ]


def write_units_page(
    folder: str | Path,
    classes: Sequence[ClassOnPage],
    *,
    network: str,
    images: int,
    failed: Mapping[str, int],
    total: int,
    by_count: bool,
    side: int | None,
    input_size: int,
) -> Path:
    """Write units.html into a folder and return its path.

    Args:
        folder: Where the page is written.
        classes: The classes to show.
        network: Name of the network.
        images: Number of images that were evaluated.
        failed: Number of failed images by status.
        total: Number of classes in units.parquet.
        by_count: Whether the page shows the classes with the most images.
        side: Side of a patch in pixels of the network's input, if known.
        input_size: Side of the network's input in pixels.
    """
    return write_page(
        folder,
        "units.html",
        classes=classes,
        network=network,
        images=images,
        failed=failed,
        total=total,
        by_count=by_count,
        side=side,
        input_size=input_size,
    )


def box_of(row: PatchRecord) -> PatchBox:
    """Return the box of a row of units.parquet."""
    return row["xmin"], row["ymin"], row["xmax"], row["ymax"]


def _patch(row: PatchRecord, pictures: Pictures) -> Patch:
    source = pictures.get((row["image_id"], box_of(row)))
    return Patch(source, row["image_id"], row["max_activation"], row["mean_activation"])
