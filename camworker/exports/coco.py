"""COCO: weak labels as a data set (images, annotations, categories) or as results (a list of boxes).

Boxes are x, y, width and height in pixels, and all ids count from 1. An image's id is its
`LabelledImage.number` and a category's id is its class index + 1. Both are independent of the selection of
labels, so data sets and results of the same output fit together.

With masks, an annotation is a mask and the box around it. A data set holds masks as polygons, which every
tool reads (one for each component; a hole is cut out through a bridge without width), or as compressed run
lengths, which are exact. Results have run lengths, because pycocotools reads nothing else there, and no
boxes, or it would compare those.
"""

import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, NotRequired, TypedDict

from camworker.exports.mask_encodings import RunLengths, polygons
from camworker.exports.provenance import ExportInfo, MaskEncoding
from camworker.exports.weak_labels import LabelledImage


class _Box(TypedDict):
    image_id: int
    category_id: int
    bbox: list[float]
    score: float
    fallback: NotRequired[bool]


class _Mask(TypedDict):
    image_id: int
    category_id: int
    segmentation: dict[str, object]
    score: float


def write_coco_dataset(images: Iterable[LabelledImage], info: ExportInfo, path: Path) -> None:
    """Write a COCO data set; `file_name` is the image id, and every annotation also has its score.

    Boxes over the whole image that stand for a map without a positive value also have `fallback`.
    """
    head = {
        "info": info.as_dict(),
        "licenses": [],
        "categories": [{"id": index + 1, "name": name} for index, name in info.classes.items()],
    }
    # The annotations come after all images. They wait in a temporary file, because there may be millions.
    with open(path, "x", encoding="ascii") as file, _temporary_file(path) as waiting:
        file.write(f'{_json(head)[:-1]},\n"images": [')
        image_items, annotations = _ArrayItems(file), _ArrayItems(waiting)
        for image in images:
            size = {"width": image.width, "height": image.height}
            image_items.add({"id": image.number, "file_name": image.image_id, **size})
            shapes: Iterable[dict[str, object]] = map(_box_shape, image.boxes)
            if info.mask_threshold is not None:
                shapes = (_mask_shape(mask, info.mask_encoding) for mask in image.masks)
            for box, shape in zip(_boxes(image), shapes, strict=True):
                annotations.add({"id": annotations.count + 1, **box, **shape, "iscrowd": 0})
        file.write('\n],\n"annotations": [')
        waiting.seek(0)
        shutil.copyfileobj(waiting, file)
        file.write("\n]}\n")


def write_coco_results(images: Iterable[LabelledImage], info: ExportInfo, path: Path) -> None:
    """Write COCO results, which pycocotools loads with `loadRes` next to a data set of the same output."""
    with open(path, "x", encoding="ascii") as file:
        file.write("[")
        results = _ArrayItems(file)
        for image in images:
            for result in _boxes(image) if info.mask_threshold is None else _masks(image):
                results.add(result)
        file.write("\n]\n")


class _ArrayItems:
    """Writes the items of a JSON array one by one, each on a line of its own."""

    def __init__(self, file: IO[str]) -> None:
        self.count = 0
        self._file = file

    def add(self, item: Mapping[str, object]) -> None:
        self._file.write(",\n" if self.count else "\n")
        self._file.write(_json(item))
        self.count += 1


def _boxes(image: LabelledImage) -> Iterator[_Box]:
    # Differences of float32 values, taken and written in float64: x + width is exactly the stored corner.
    for label, score, (xmin, ymin, xmax, ymax), fallback in zip(
        image.labels, image.scores, image.boxes, image.fallback, strict=True
    ):
        bbox = [xmin, ymin, xmax - xmin, ymax - ymin]
        box: _Box = {"image_id": image.number, "category_id": label + 1, "bbox": bbox, "score": score}
        yield box | {"fallback": True} if fallback else box


def _masks(image: LabelledImage) -> Iterator[_Mask]:
    for label, score, mask in zip(image.labels, image.scores, image.masks, strict=True):
        yield {
            "image_id": image.number,
            "category_id": label + 1,
            "segmentation": mask.coco(),
            "score": score,
        }


def _box_shape(corners: list[float]) -> dict[str, object]:
    xmin, ymin, xmax, ymax = corners
    return {"area": (xmax - xmin) * (ymax - ymin), "segmentation": []}


def _mask_shape(mask: RunLengths, encoding: MaskEncoding) -> dict[str, object]:
    if encoding == "rle":
        return {"area": mask.area, "segmentation": mask.coco()}
    outlines = polygons(mask.pixels())
    return {"area": mask.area, "segmentation": [outline.reshape(-1).tolist() for outline in outlines]}


def _json(content: Mapping[str, object]) -> str:
    # ASCII, because some readers open these files in the encoding of their machine.
    return json.dumps(content, allow_nan=False)


def _temporary_file(path: Path) -> IO[str]:
    """Open an unnamed file in the folder of `path`; it disappears when it is closed."""
    return tempfile.TemporaryFile("w+", dir=path.parent, encoding="ascii")
