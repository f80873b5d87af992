"""PNG masks: CLASS/IMAGE.png, which `summarize --truth` and many tools read, with masks.csv and info.json.

A mask has one bit for each pixel of the image: white is the object. The name of a class is its folder, and
the image id without its extension is the name of the file. A class whose name cannot be a folder is named by
its index, and an image whose id cannot be a path, or has the path of another image, by `safe_name`. masks.csv
maps the files to image ids.
"""

import csv
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Final

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from camworker.exports.file_names import safe_name
from camworker.exports.mask_encodings import RunLengths
from camworker.exports.provenance import ExportInfo
from camworker.exports.weak_labels import LabelledImage

# Names that every common file system holds unchanged, relative to a folder.
_NAME: Final = re.compile(r"[\w(][\w ().,'+&-]{0,99}(?<![ .])", re.ASCII)


def write_png_masks(images: Iterable[LabelledImage], info: ExportInfo, folder: Path) -> None:
    """Write the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "info.json").write_text(json.dumps(info.as_dict(), indent=2) + "\n", encoding="ascii")
    description = PngInfo()
    description.add_text("Description", info.description)
    folders = {index: name if _NAME.fullmatch(name) else str(index) for index, name in info.classes.items()}
    with open(folder / "masks.csv", "x", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file", "image_id", "label", "score", "pixels"])
        for image in images:
            for label, score, mask in zip(image.labels, image.scores, image.masks, strict=True):
                path, png = _create(folder, folders[label], image.image_id)
                with png:
                    _image(mask).save(png, "PNG", pnginfo=description)
                table.writerow([path, image.image_id, label, score, mask.area])


def _create(folder: Path, name: str, image_id: str) -> tuple[str, IO[bytes]]:
    """Create the file of a mask and return its path relative to the folder."""
    stem = os.path.splitext(image_id)[0]
    if all(map(_NAME.fullmatch, stem.split("/"))):
        path = folder / name / f"{stem}.png"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            return path.relative_to(folder).as_posix(), open(path, "xb")
        except FileExistsError:  # a.jpg and a.png, or a.jpg in a folder of the name of another mask
            pass
    path = folder / name / f"{safe_name(image_id)}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.relative_to(folder).as_posix(), open(path, "xb")


def _image(mask: RunLengths) -> Image.Image:
    bits = np.packbits(mask.pixels(), axis=1).tobytes()
    return Image.frombytes("1", (mask.width, mask.height), bits)
