"""Pictures and HTML: heat maps over photographs, cards of them, the contact sheet, the page of a training.

Every page is one file that opens from disk: pictures inside it, no script, nothing fetched.
"""

import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import cv2
import jinja2
import numpy as np
from numpy.typing import NDArray

from camworker import __version__
from camworker.frame import Frame

_LONG_SIDE: Final = 320  # pixels of a picture on a page
_HEAT: Final = 0.5  # share of the heat map in the blend
_JPEG_QUALITY: Final = 82
_CURVES: Final = (
    ("Loss", ("loss", "validation_loss")),
    ("Accuracy on held-back images", ("validation_accuracy", "gt_known_localization_accuracy")),
)


@dataclass(frozen=True, slots=True)
class DrawnBox:
    """A box over a picture, in pixels of the original image. kind: "predicted" or "true"."""

    kind: str
    xmin: float
    ymin: float
    xmax: float
    ymax: float


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture of a card: a data URI, the original's size in pixels, what is drawn and said."""

    source: str
    width: int
    height: int
    caption: str
    score: float | None
    boxes: tuple[DrawnBox, ...]


@dataclass(frozen=True, slots=True)
class Card:
    """One image: its id, and the photograph followed by its heat maps; or why there are none.

    note: what is said of it.
    """

    image_id: str
    pictures: tuple[Picture, ...]
    trouble: str | None = None
    note: str | None = None


@dataclass(frozen=True, slots=True)
class Section:
    """Cards under a title."""

    title: str
    cards: Sequence[Card]


def heat_map(photo_HW3: NDArray[np.uint8], cam_hw: NDArray[np.floating], frame: Frame) -> NDArray[np.uint8]:
    """A CAM over its photograph, as in the paper's pictures: RGB uint8, the photograph's size.

    Negative values count as zero and the maximum is red. photo_HW3 may be scaled down; frame is the
    original's. What the network did not see (resize "crop") stays as cold as a zero.
    """
    height, width = photo_HW3.shape[:2]
    size = (frame.input_size, frame.input_size)
    cam = cv2.resize(np.asarray(cam_hw, np.float32), size, interpolation=cv2.INTER_LINEAR)
    heat = np.clip(cam / max(float(cam.max()), 1e-12), 0, 1)
    # The centre of each pixel of the photograph, in pixels of the network's input.
    y, x = np.mgrid[0:height, 0:width].astype(np.float32) + 0.5
    x, y = x * frame.width / width, y * frame.height / height
    points = frame.to_input(np.stack([x, y, x, y], axis=-1).reshape(-1, 4)).reshape(height, width, 4)
    seen = cv2.remap(
        heat, points[..., 0] - 0.5, points[..., 1] - 0.5, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    seen[((points[..., :2] < 0) | (points[..., :2] > frame.input_size)).any(-1)] = 0
    colours = cv2.cvtColor(
        cv2.applyColorMap((255 * seen).round().astype(np.uint8), cv2.COLORMAP_JET), cv2.COLOR_BGR2RGB
    )
    return cv2.addWeighted(colours, _HEAT, photo_HW3, 1 - _HEAT, 0)


def make_card(
    row: dict[str, Any],
    cams: NDArray[np.float16],
    photo_HW3: NDArray[np.uint8],
    frame: Frame,
    true_boxes: Iterable[Sequence[float]] = (),
    names: Sequence[str] = (),
) -> Card:
    """The card of a row that is ok: the photograph, its top-k heat maps, and known labels beside them.

    row: a prediction as a dictionary. cams: [k, h, w]. photo_HW3: the decoded image. true_boxes are
    drawn on every picture. names: the network's class names, for the known labels.
    """
    size = _thumbnail_size(frame)
    photo_HW3 = cv2.resize(photo_HW3, size, interpolation=cv2.INTER_AREA)
    true = tuple(DrawnBox("true", *map(float, box)) for box in true_boxes)
    first = tuple(_predicted(box) for box in row["boxes"] if box["rank"] == 1)
    pictures = [_picture(photo_HW3, frame, "photograph", None, first + true)]
    for place, (name, score) in enumerate(zip(row["names"], row["scores"], strict=True)):
        drawn = tuple(_predicted(box) for box in row["boxes"] if box["rank"] == place + 1)
        pictures.append(_picture(heat_map(photo_HW3, cams[place], frame), frame, name, score, drawn + true))
    for target in row["targets"]:
        if target["label"] not in row["labels"]:
            cam = np.array(target["cam"], np.float16).reshape(cams.shape[1:])
            drawn = tuple(_predicted(box) for box in target["boxes"])
            caption = f"known: {names[target['label']]}"
            picture = heat_map(photo_HW3, cam, frame)
            pictures.append(_picture(picture, frame, caption, target["score"], drawn + true))
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
    """The card of one known label: the photograph and the label's own map over it, both with its boxes.

    caption: what the map is of. box: the predicted one; boxes in pixels of the original.
    """
    photo_HW3 = cv2.resize(photo_HW3, _thumbnail_size(frame), interpolation=cv2.INTER_AREA)
    drawn = (
        DrawnBox("predicted", *map(float, box)),
        *(DrawnBox("true", *map(float, true)) for true in true_boxes),
    )
    pictures = (
        _picture(photo_HW3, frame, "photograph", None, drawn),
        _picture(heat_map(photo_HW3, cam_hw, frame), frame, caption, None, drawn),
    )
    return Card(image_id, pictures, note=note)


def write_contact_sheet(
    folder: str | Path, sections: Sequence[Section], failures: Sequence[dict[str, str]], **facts: Any
) -> Path:
    """Write contact_sheet.html into folder; returns its path.

    failures: image_id, status and error of rows to list. facts: recipe, images, failed (count by
    status), truth (whether true boxes are drawn).
    """
    return write_page(folder, "contact_sheet.html", sections=sections, failures=failures, **facts)


def training_page(history: Sequence[dict[str, Any]], settings: dict[str, Any], best: int) -> str:
    """The page of a training: its curves and figures by epoch. best: index of the epoch that was kept."""
    curves = []
    for title, names in _CURVES:
        lines = [(name.replace("_", " "), [epoch[name] for epoch in history]) for name in names]
        if drawn := [line for line in lines if all(value is not None for value in line[1])]:
            highest = 1.0 if "accuracy" in title.lower() else max(max(values) for _, values in drawn) or 1.0
            curves.append({"title": title, "highest": highest, "lines": drawn})
    return _render("training.html", history=history, settings=settings, best=best, curves=curves)


def data_uri(pixels_HW3: NDArray[np.uint8]) -> str:
    """RGB pixels as a JPEG inside an address."""
    options = [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY]
    _, data = cv2.imencode(".jpg", cv2.cvtColor(pixels_HW3, cv2.COLOR_RGB2BGR), options)
    return f"data:image/jpeg;base64,{base64.b64encode(data.tobytes()).decode()}"


def write_page(folder: str | Path, name: str, **content: Any) -> Path:
    """Fill the template of that name with content and write it into folder; returns its path."""
    page = _render(name, **content)
    path = Path(folder).absolute() / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    return path


def _render(name: str, **content: Any) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("camworker", "reports/templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template(f"{name}.j2").render(version=__version__, **content)


def _picture(
    pixels_HW3: NDArray[np.uint8],
    frame: Frame,
    caption: str,
    score: float | None,
    boxes: tuple[DrawnBox, ...],
) -> Picture:
    return Picture(data_uri(pixels_HW3), frame.width, frame.height, caption, score, boxes)


def _predicted(box: dict[str, Any]) -> DrawnBox:
    return DrawnBox("predicted", box["xmin"], box["ymin"], box["xmax"], box["ymax"])


def _thumbnail_size(frame: Frame) -> tuple[int, int]:
    scale = min(1.0, _LONG_SIDE / max(frame.width, frame.height))
    return max(1, round(frame.width * scale)), max(1, round(frame.height * scale))
