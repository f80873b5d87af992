"""YOLO: a folder with data.yaml, images/ and labels/, as Ultralytics trains on it.

A line of a label file is class cx cy w h: the centre and the size of a box in shares of the image's
width and height, to 10 decimals, so that corners come back within 1e-10 of a side. The format has no
place for scores in what is trained on. image_ids.csv tells which file is which image.
"""

import csv
from collections.abc import Iterable
from pathlib import Path

from camworker.exports.file_names import image_file_name, safe_name, yaml_string
from camworker.exports.provenance import ExportInfo
from camworker.exports.weak_labels import LabelledImage


def write(images: Iterable[LabelledImage], about: ExportInfo, folder: Path) -> None:
    """Write the folder. Images are copied: trainers restore broken files where these lie."""
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True)
    (folder / "data.yaml").write_text(_data_yaml(about), encoding="ascii")
    places = about.places
    with open(folder / "image_ids.csv", "x", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file", "image_id"])
        for image in images:
            name = image_file_name(image.image_id)
            with open(folder / "images" / name, "xb") as copy:
                copy.write(image.data)
            lines = "".join(_lines(image, places))
            with open(folder / "labels" / f"{safe_name(image.image_id)}.txt", "x", encoding="ascii") as text:
                text.write(lines)
            table.writerow([name, image.image_id])


def _data_yaml(about: ExportInfo) -> str:
    names = "".join(f"  - {yaml_string(name)}\n" for name in about.names)
    return (
        f"# Weak labels by camworker: recipe {about.recipe}, box rule {about.box_rule}.\n"
        "# The folders are those beside this file. val has to be named: judge by true boxes where there are\n"
        "# some, for these are the labels that were trained on.\n"
        f"train: images\nval: images\nnames:\n{names}"
    )


def _lines(image: LabelledImage, places: dict[int, int]) -> Iterable[str]:
    for label, (xmin, ymin, xmax, ymax) in zip(image.labels, image.boxes, strict=True):
        shares = (
            (xmin + xmax) / 2 / image.width,
            (ymin + ymax) / 2 / image.height,
            (xmax - xmin) / image.width,
            (ymax - ymin) / image.height,
        )
        yield f"{places[label]} {' '.join(f'{share:.10f}' for share in shares)}\n"
