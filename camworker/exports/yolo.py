"""YOLO: a folder with data.yaml, images/ and labels/, as Ultralytics trains on it.

A line of a label file is `class cx cy w h`: the centre and the size of a box as fractions of the image's
width and height. Ten decimals give corners back within 1e-10 of a side. The format cannot hold scores.
image_ids.csv maps the files to image ids.

With masks, a line is `class x1 y1 x2 y2 ...`: the corners of one polygon as fractions of the image's width
and height, to a hundredth of a pixel or better. Bridges without width join the components of a mask, as in
Ultralytics' own conversion from COCO, and cut out its holes.
"""

import csv
import math
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path

import yaml

from camworker.exports.file_names import image_file_name, safe_name
from camworker.exports.mask_encodings import joined, polygons
from camworker.exports.provenance import ExportInfo
from camworker.exports.weak_labels import LabelledImage


def write_yolo(images: Iterable[LabelledImage], info: ExportInfo, folder: Path) -> None:
    """Write the folder. Images are copied and not linked, because trainers repair broken files in place."""
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True)
    (folder / "data.yaml").write_text(_data_yaml(info), encoding="utf-8")
    positions = info.positions
    with open(folder / "image_ids.csv", "x", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file", "image_id"])
        for image in images:
            name = image_file_name(image.image_id)
            with open(folder / "images" / name, "xb") as copy:
                copy.write(image.data)
            lines = "".join(
                _lines(image, positions) if info.mask_threshold is None else _masks(image, positions)
            )
            with open(folder / "labels" / f"{safe_name(image.image_id)}.txt", "x", encoding="ascii") as text:
                text.write(lines)
            table.writerow([name, image.image_id])


def _data_yaml(info: ExportInfo) -> str:
    names = yaml.safe_dump(list(info.names), default_style='"', allow_unicode=True, width=math.inf)
    return (
        f"# {info.description}.\n"
        "# The folders are relative to this file. The format requires val; it names the training images:\n"
        "# evaluate on images with true boxes if you have any.\n"
        f"train: images\nval: images\nnames:\n{textwrap.indent(names, '  ')}"
    )


def _lines(image: LabelledImage, positions: dict[int, int]) -> Iterator[str]:
    for label, (xmin, ymin, xmax, ymax) in zip(image.labels, image.boxes, strict=True):
        fractions = (
            (xmin + xmax) / 2 / image.width,
            (ymin + ymax) / 2 / image.height,
            (xmax - xmin) / image.width,
            (ymax - ymin) / image.height,
        )
        yield f"{positions[label]} {' '.join(f'{fraction:.10f}' for fraction in fractions)}\n"


def _masks(image: LabelledImage, positions: dict[int, int]) -> Iterator[str]:
    for label, mask in zip(image.labels, image.masks, strict=True):
        corners_N2 = joined(polygons(mask.pixels())) / (image.width, image.height)
        yield f"{positions[label]} {' '.join(f'{fraction:.7g}' for fraction in corners_N2.reshape(-1))}\n"
