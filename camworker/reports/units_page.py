"""units.html: the units of each class with the patches that excite them, cut from the photographs."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from camworker.reports.heat_map import data_uri
from camworker.reports.render import write_page

_LONG_SIDE: Final = 128  # pixels of a patch on the page


@dataclass(frozen=True, slots=True)
class Patch:
    """A patch on the page. source: a data URI, or None where the photograph cannot be read any more.

    activation, mean: of the unit, at the patch and over the whole map.
    """

    source: str | None
    image_id: str
    activation: float
    mean: float


@dataclass(frozen=True, slots=True)
class UnitOnPage:
    """A unit of a class, and its patches, the best first."""

    unit: int
    weight: float
    patches: Sequence[Patch]


@dataclass(frozen=True, slots=True)
class ClassOnPage:
    """A class and its units, the largest weight first."""

    label: int
    name: str
    seen: int
    units: Sequence[UnitOnPage]


PatchBox = tuple[float, float, float, float]
Pictures = Mapping[tuple[str, PatchBox], str]  # (image_id, box) -> data URI


def cut_patch(photo_HW3: NDArray[np.uint8], box: PatchBox) -> str:
    """The pixels in a box (half-open, pixels of the photograph) as a small picture: a data URI."""
    height, width = photo_HW3.shape[:2]
    left, top = (min(int(edge), size - 1) for edge, size in zip(box[:2], (width, height), strict=True))
    right, bottom = max(left + 1, round(box[2])), max(top + 1, round(box[3]))
    patch_HW3 = photo_HW3[top:bottom, left:right]
    scale = _LONG_SIDE / max(patch_HW3.shape[:2])
    size = tuple(max(1, round(length * scale)) for length in patch_HW3.shape[1::-1])
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    return data_uri(cv2.resize(patch_HW3, size, interpolation=how))


def classes_on_page(
    rows: Iterable[dict[str, Any]], classes: Sequence[tuple[int, str, int]], pictures: Pictures
) -> list[ClassOnPage]:
    """Lay out rows of units.parquet. classes: label, name and images seen.

    A patch that is not in pictures cannot be read any more. A class without rows has no units on the page.
    """
    units: dict[int, dict[int, list[dict[str, Any]]]] = {label: {} for label, _, _ in classes}
    for row in rows:
        if row["label"] in units:
            units[row["label"]].setdefault(row["unit"], []).append(row)
    return [
        ClassOnPage(
            label,
            name,
            seen,
            [
                UnitOnPage(unit, patches[0]["weight"], [_patch(row, pictures) for row in patches])
                for unit, patches in units[label].items()
            ],
        )
        for label, name, seen in classes
    ]


def write_units_page(folder: str | Path, classes: Sequence[ClassOnPage], **facts: Any) -> Path:
    """Write units.html into folder; returns its path.

    facts: network, images, failed (count by status), total (classes in the Parquet file), by_count
    (whether the page's classes are those seen most), side and input_size in pixels.
    """
    return write_page(folder, "units.html", classes=classes, **facts)


def box_of(row: Mapping[str, Any]) -> PatchBox:
    """The box of a row of units.parquet."""
    return row["xmin"], row["ymin"], row["xmax"], row["ymax"]


def _patch(row: dict[str, Any], pictures: Pictures) -> Patch:
    source = pictures.get((row["image_id"], box_of(row)))
    return Patch(source, row["image_id"], row["activation"], row["mean"])
