"""Cards of the pages: the photograph of one image, its heat maps, and the boxes on them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, NotRequired, TypedDict

import numpy as np
from numpy.typing import NDArray

from camworker.boxes.refine import decode_refined
from camworker.boxes.rules import boxes_from_cams, uses_refined
from camworker.frame import Frame
from camworker.metrics.criteria import RAW_RULE
from camworker.reports.heat_map import data_uri, heat_map, thumbnail

_FALLBACK: Final = " (no positive value: the box covers the whole image)"


class BoxRecord(TypedDict):
    """A box of a prediction row, in pixels of the original image; only boxes of top-k classes have a rank."""

    rank: NotRequired[int]
    xmin: float
    ymin: float
    xmax: float
    ymax: float
    fallback: bool


class TargetRecord(TypedDict):
    """A target class of a prediction row, its maps (the bytes of the row) and its boxes."""

    label: int
    score: float
    cam: bytes
    refined: bytes | None
    boxes: list[BoxRecord]


class PredictionRecord(TypedDict):
    """The columns of a prediction row with status "ok" that cards show."""

    image_id: str
    width: int
    height: int
    labels: list[int]
    names: list[str]
    scores: list[float]
    boxes: list[BoxRecord]
    targets: list[TargetRecord]


@dataclass(frozen=True, slots=True)
class DrawnBox:
    """A box on a picture.

    Attributes:
        kind: The class of its rectangle in the style sheet. "raw" is a box of a raw map next to a refined
            one, "fallback" a predicted box over the whole image, because its map has no positive value.
        xmin: Left side in pixels of the original image.
        ymin: Top in pixels of the original image.
        xmax: Right side in pixels of the original image.
        ymax: Bottom in pixels of the original image.
    """

    kind: Literal["predicted", "raw", "fallback", "true"]
    xmin: float
    ymin: float
    xmax: float
    ymax: float


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture of a card.

    Attributes:
        source: The pixels as a data URI.
        width: Width of the original image in pixels.
        height: Height of the original image in pixels.
        caption: The text under the picture.
        score: The number next to the caption, if any.
        boxes: The boxes that are drawn on the picture.
    """

    source: str
    width: int
    height: int
    caption: str
    score: float | None
    boxes: tuple[DrawnBox, ...]


@dataclass(frozen=True, slots=True)
class Card:
    """The photograph of one image, followed by its heat maps.

    Attributes:
        image_id: The title of the card.
        groups: The pictures. The first group is the photograph, each other one the heat maps of a class: the
            raw map, and next to it the refined map if there is one. Empty if the photograph cannot be read.
        error: Why there are no pictures.
        note: A line of text under the title.
    """

    image_id: str
    groups: tuple[tuple[Picture, ...], ...]
    error: str | None = None
    note: str | None = None

    @property
    def pictures(self) -> list[Picture]:
        """The pictures of all groups."""
        return [picture for group in self.groups for picture in group]


@dataclass(frozen=True, slots=True)
class Section:
    """Cards under a common title."""

    title: str
    cards: Sequence[Card]


@dataclass(frozen=True, slots=True)
class MapsOfClass:
    """The maps of one class of an image.

    Attributes:
        cam_hw: The class activation map.
        refined_hw: The refined map as it is stored, uint8; None if there is none.
    """

    cam_hw: NDArray[np.float16]
    refined_hw: NDArray[np.uint8] | None

    @property
    def decoded(self) -> NDArray[np.float32] | None:
        """The values of the refined map."""
        return None if self.refined_hw is None else decode_refined(self.refined_hw)

    def boxes(self, frame: Frame, rule: str) -> list[BoxRecord]:
        """Return the boxes that a rule makes of the raw or of the refined map.

        Raises:
            ValueError: The rule is for refined maps, and there is none.
        """
        map_hw = self.decoded if uses_refined(rule) else self.cam_hw
        if map_hw is None:
            raise ValueError(f"no refined map for {rule}")
        made = boxes_from_cams(map_hw[None], [frame], np.zeros(1, np.int64), rule)
        corners = zip(made.corners_L4.tolist(), made.fallback_L, strict=True)
        return [
            BoxRecord(xmin=xmin, ymin=ymin, xmax=xmax, ymax=ymax, fallback=bool(fallback))
            for (xmin, ymin, xmax, ymax), fallback in corners
        ]


def make_card(
    row: PredictionRecord,
    maps: Sequence[MapsOfClass],
    targets: Sequence[MapsOfClass],
    photo_HW3: NDArray[np.uint8],
    frame: Frame,
    rule: str,
    true_boxes: Iterable[Sequence[float]] = (),
    names: Sequence[str] = (),
) -> Card:
    """Make the card of a row: the photograph and the maps of each top-k class and each other target class.

    Args:
        row: A prediction row with status "ok".
        maps: The maps of the top-k classes.
        targets: The maps of the target classes.
        photo_HW3: The decoded image, RGB.
        frame: The frame of the image.
        rule: The rule that made the boxes of the row.
        true_boxes: Boxes (xmin, ymin, xmax, ymax) that are drawn on every picture.
        names: All class names of the network, for the captions of target classes.
    """
    photo_HW3 = thumbnail(photo_HW3, frame)
    true = tuple(DrawnBox("true", *map(float, box)) for box in true_boxes)
    by_rank = [[box for box in row["boxes"] if box["rank"] == rank + 1] for rank in range(len(maps))]
    photograph = _picture(photo_HW3, frame, "photograph", None, _drawn(by_rank[0]) + true)
    groups: list[tuple[Picture, ...]] = [(photograph,)]
    for name, score, of_class, boxes in zip(row["names"], row["scores"], maps, by_rank, strict=True):
        groups.append(_map_pictures(photo_HW3, frame, name, score, of_class, boxes, rule, true))
    for target, of_class in zip(row["targets"], targets, strict=True):
        if target["label"] not in row["labels"]:
            name = f"known: {names[target['label']]}"
            groups.append(
                _map_pictures(photo_HW3, frame, name, target["score"], of_class, target["boxes"], rule, true)
            )
    return Card(row["image_id"], tuple(groups))


def make_known_card(
    image_id: str,
    name: str,
    maps: MapsOfClass,
    photo_HW3: NDArray[np.uint8],
    frame: Frame,
    rule: str,
    box: BoxRecord,
    true_boxes: Iterable[Sequence[float]],
    note: str,
) -> Card:
    """Make the card of one known label: the photograph and the label's maps, all with their boxes.

    Args:
        image_id: The title of the card.
        name: The name of the label.
        maps: The maps of the label. A refined map is shown only if the rule is for refined maps.
        photo_HW3: The decoded image, RGB.
        frame: The frame of the image.
        rule: The rule that made the box.
        box: The predicted box.
        true_boxes: The true boxes, in pixels of the original image.
        note: The line of text under the title.
    """
    photo_HW3 = thumbnail(photo_HW3, frame)
    true = tuple(DrawnBox("true", *map(float, true)) for true in true_boxes)
    if not uses_refined(rule):
        name, maps = f"map of {name}", replace(maps, refined_hw=None)
    groups = (
        (_picture(photo_HW3, frame, "photograph", None, _drawn([box]) + true),),
        _map_pictures(photo_HW3, frame, name, None, maps, [box], rule, true),
    )
    return Card(image_id, groups, note=note)


def _map_pictures(
    photo_HW3: NDArray[np.uint8],
    frame: Frame,
    name: str,
    score: float | None,
    maps: MapsOfClass,
    boxes: Sequence[BoxRecord],
    rule: str,
    true: tuple[DrawnBox, ...],
) -> tuple[Picture, ...]:
    """Return the heat map of the raw map, and that of the refined map if there is one.

    Each has the boxes that were made of it: next to a refined map, the raw map has its box by RAW_RULE.
    """
    own, refined_hw = _drawn(boxes), maps.decoded
    if refined_hw is None:
        heat_HW3 = heat_map(photo_HW3, maps.cam_hw, frame)
        return (_picture(heat_HW3, frame, name, score, own + true),)
    on_raw = _drawn(maps.boxes(frame, RAW_RULE), "raw") if uses_refined(rule) else own
    on_refined = own if uses_refined(rule) else ()
    raw_HW3, refined_HW3 = (heat_map(photo_HW3, map_hw, frame) for map_hw in (maps.cam_hw, refined_hw))
    return (
        _picture(raw_HW3, frame, f"{name}, raw map", score, on_raw + true),
        _picture(refined_HW3, frame, f"{name}, refined map", None, on_refined + true),
    )


def _picture(
    pixels_HW3: NDArray[np.uint8],
    frame: Frame,
    caption: str,
    score: float | None,
    boxes: tuple[DrawnBox, ...],
) -> Picture:
    if any(box.kind == "fallback" for box in boxes):
        caption += _FALLBACK
    return Picture(data_uri(pixels_HW3), frame.width, frame.height, caption, score, boxes)


def _drawn(
    boxes: Iterable[BoxRecord], kind: Literal["predicted", "raw"] = "predicted"
) -> tuple[DrawnBox, ...]:
    return tuple(
        DrawnBox("fallback" if box["fallback"] else kind, *(float(corner) for corner in _corners(box)))
        for box in boxes
    )


def _corners(box: BoxRecord) -> tuple[float, float, float, float]:
    return box["xmin"], box["ymin"], box["xmax"], box["ymax"]
