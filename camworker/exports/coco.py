"""COCO: weak labels as a data set (images, annotations, categories) and as results (a list of boxes).

Boxes are x, y, width, height in pixels, from the corner of the image; every id counts from 1. An image's
id is its LabelledImage.number and a category's its class index + 1, so that data sets and results
of one output go together however their boxes were chosen.
"""

import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from camworker.exports.provenance import ExportInfo
from camworker.exports.weak_labels import LabelledImage


def write_dataset(images: Iterable[LabelledImage], about: ExportInfo, path: Path) -> None:
    """Write the data set form, with file_name the image id and each box's score beside it."""
    head = {
        "info": {"description": "weak labels by camworker", **about.as_dict()},
        "licenses": [],
        "categories": [{"id": index + 1, "name": name} for index, name in about.classes.items()],
    }
    # The annotations come after all images, which are as many as there are: they wait in a file.
    with open(path, "x", encoding="ascii") as file, _scratch(path) as waiting:
        file.write(f'{_json(head)[:-1]},\n"images": [')
        described, annotations = _Items(file), _Items(waiting)
        for image in images:
            size = {"width": image.width, "height": image.height}
            described.add({"id": image.number, "file_name": image.image_id, **size})
            for box in _boxes(image):
                width, height = box["bbox"][2:]
                shape = {"area": width * height, "iscrowd": 0, "segmentation": []}
                annotations.add({"id": annotations.count + 1, **box, **shape})
        file.write('\n],\n"annotations": [')
        waiting.seek(0)
        shutil.copyfileobj(waiting, file)
        file.write("\n]}\n")


def write_results(images: Iterable[LabelledImage], about: ExportInfo, path: Path) -> None:
    """Write the results form, which pycocotools' loadRes reads beside a data set of the same output."""
    with open(path, "x", encoding="ascii") as file:
        file.write("[")
        results = _Items(file)
        for image in images:
            for box in _boxes(image):
                results.add(box)
        file.write("\n]\n")


class _Items:
    """Items of a JSON array, a line each, written as they come."""

    def __init__(self, file: IO[str]) -> None:
        self.count = 0
        self._file = file

    def add(self, item: dict[str, Any]) -> None:
        self._file.write(",\n" if self.count else "\n")
        self._file.write(_json(item))
        self.count += 1


def _boxes(image: LabelledImage) -> Iterator[dict[str, Any]]:
    # Differences of float32 values in float64, in full: x + width gives the stored corner back.
    for label, score, (xmin, ymin, xmax, ymax) in zip(image.labels, image.scores, image.boxes, strict=True):
        bbox = [xmin, ymin, xmax - xmin, ymax - ymin]
        yield {"image_id": image.number, "category_id": label + 1, "bbox": bbox, "score": score}


def _json(content: dict[str, Any]) -> str:
    # ASCII: readers open these files in whatever encoding their machine has.
    return json.dumps(content, allow_nan=False)


def _scratch(path: Path) -> IO[str]:
    """A file beside path that has no name, and so is gone with the process."""
    return tempfile.TemporaryFile("w+", dir=path.parent, encoding="ascii")
