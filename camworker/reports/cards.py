"""Cards of the pages: the photograph of one image, its heat maps, and the boxes on them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NotRequired, TypedDict

import numpy as np
from numpy.typing import NDArray

from camworker.frame import Frame
from camworker.reports.heat_map import data_uri, heat_map, thumbnail


class BoxRecord(TypedDict):
    """A box of a prediction row, in pixels of the original image; only boxes of top-k classes have a rank."""

    rank: NotRequired[int]
    xmin: float
    ymin: float
    xmax: float
    ymax: float


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
        kind: The class of its rectangle in the style sheet.
        xmin: Left side in pixels of the original image.
        ymin: Top in pixels of the original image.
        xmax: Right side in pixels of the original image.
        ymax: Bottom in pixels of the original image.
    """

    kind: Literal["predicted", "true"]
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
        pictures: The photograph and the heat maps; empty if the photograph cannot be read.
        error: Why there are no pictures.
        note: A line of text under the title.
    """

    image_id: str
    pictures: tuple[Picture, ...]
    error: str | None = None
    note: str | None = None


@dataclass(frozen=True, slots=True)
class Section:
    """Cards under a common title."""

    title: str
    cards: Sequence[Card]


def make_card(
    row: PredictionRecord,
    cams: NDArray[np.float16],
    photo_HW3: NDArray[np.uint8],
    frame: Frame,
    true_boxes: Iterable[Sequence[float]] = (),
    names: Sequence[str] = (),
) -> Card:
    """Make the card of a row: the photograph and a heat map for each top-k class and each other target class.

    Args:
        row: A prediction row with status "ok".
        cams: The maps of the top-k classes, [k, h, w].
        photo_HW3: The decoded image, RGB.
        frame: The frame of the image.
        true_boxes: Boxes (xmin, ymin, xmax, ymax) that are drawn on every picture.
        names: All class names of the network, for the captions of target classes.
    """
    photo_HW3 = thumbnail(photo_HW3, frame)
    true = tuple(DrawnBox("true", *map(float, box)) for box in true_boxes)

    def predicted(rank: int) -> tuple[DrawnBox, ...]:
        return tuple(_predicted(box) for box in row["boxes"] if box["rank"] == rank)

    pictures = [_picture(photo_HW3, frame, "photograph", None, predicted(1) + true)]
    for rank, (name, score) in enumerate(zip(row["names"], row["scores"], strict=True), start=1):
        heat_HW3 = heat_map(photo_HW3, cams[rank - 1], frame)
        pictures.append(_picture(heat_HW3, frame, name, score, predicted(rank) + true))
    for target in row["targets"]:
        if target["label"] not in row["labels"]:
            cam = np.frombuffer(target["cam"], "<f2").reshape(cams.shape[1:])
            boxes = tuple(_predicted(box) for box in target["boxes"])
            caption = f"known: {names[target['label']]}"
            heat_HW3 = heat_map(photo_HW3, cam, frame)
            pictures.append(_picture(heat_HW3, frame, caption, target["score"], boxes + true))
    return Card(row["image_id"], tuple(pictures))


def make_known_card(
    image_id: str,
    caption: str,
    cam_hw: NDArray[np.floating],
    photo_HW3: NDArray[np.uint8],
    frame: Frame,
    box: Sequence[float],
    true_boxes: Iterable[Sequence[float]],
    note: str,
) -> Card:
    """Make the card of one known label: the photograph and the label's heat map, both with the boxes.

    Args:
        image_id: The title of the card.
        caption: The caption of the heat map.
        cam_hw: The label's class activation map.
        photo_HW3: The decoded image, RGB.
        frame: The frame of the image.
        box: The predicted box, in pixels of the original image.
        true_boxes: The true boxes, in pixels of the original image.
        note: The line of text under the title.
    """
    photo_HW3 = thumbnail(photo_HW3, frame)
    drawn = (
        DrawnBox("predicted", *map(float, box)),
        *(DrawnBox("true", *map(float, true)) for true in true_boxes),
    )
    pictures = (
        _picture(photo_HW3, frame, "photograph", None, drawn),
        _picture(heat_map(photo_HW3, cam_hw, frame), frame, caption, None, drawn),
    )
    return Card(image_id, pictures, note=note)


def _picture(
    pixels_HW3: NDArray[np.uint8],
    frame: Frame,
    caption: str,
    score: float | None,
    boxes: tuple[DrawnBox, ...],
) -> Picture:
    return Picture(data_uri(pixels_HW3), frame.width, frame.height, caption, score, boxes)


def _predicted(box: BoxRecord) -> DrawnBox:
    return DrawnBox("predicted", box["xmin"], box["ymin"], box["xmax"], box["ymax"])
