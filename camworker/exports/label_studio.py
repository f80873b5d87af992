"""Label Studio: tasks with predictions to correct (tasks.json), and their labelling interface.

A region is x, y, width and height in percent of the image's sides. The URL of a local image assumes that
Label Studio serves local files with LOCAL_FILES_DOCUMENT_ROOT=/; s3:// URIs are written unchanged.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Final
from urllib.parse import quote

from camworker.errors import UsageError
from camworker.exports.file_names import xml_attribute
from camworker.exports.provenance import ExportInfo
from camworker.exports.weak_labels import LabelledImage

_LOCAL_FILES_URL: Final = "/data/local-files/?d="
_FALLBACK: Final = "the whole image, because the map has no positive value"


def write_label_studio(images: Iterable[LabelledImage], info: ExportInfo, folder: Path) -> None:
    """Write tasks.json and label_config.xml into the folder.

    Raises:
        UsageError: An image is stored in a row of a Parquet file, where Label Studio cannot show it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "label_config.xml").write_text(_label_config(info), encoding="utf-8")
    with open(folder / "tasks.json", "x", encoding="ascii") as file:
        file.write("[")
        for number, image in enumerate(images):
            file.write(",\n" if number else "\n")
            file.write(json.dumps(_task(image, info), allow_nan=False))
        file.write("\n]\n")


def _label_config(info: ExportInfo) -> str:
    labels = "".join(f"    <Label value={xml_attribute(name)}/>\n" for name in info.names)
    return (
        "<View>\n"
        '  <Image name="image" value="$image"/>\n'
        f'  <RectangleLabels name="label" toName="image">\n{labels}  </RectangleLabels>\n'
        "</View>\n"
    )


def _task(image: LabelledImage, info: ExportInfo) -> dict[str, object]:
    regions = [
        {
            "id": f"{image.number}-{number}",
            "type": "rectanglelabels",
            "from_name": "label",
            "to_name": "image",
            "original_width": image.width,
            "original_height": image.height,
            "image_rotation": 0,
            "score": score,
            "value": {
                "x": 100 * xmin / image.width,
                "y": 100 * ymin / image.height,
                "width": 100 * (xmax - xmin) / image.width,
                "height": 100 * (ymax - ymin) / image.height,
                "rotation": 0,
                "rectanglelabels": [info.classes[label]],
            },
            **({"meta": {"text": [_FALLBACK]}} if fallback else {}),
        }
        for number, (label, score, (xmin, ymin, xmax, ymax), fallback) in enumerate(
            zip(image.labels, image.scores, image.boxes, image.fallback, strict=True), start=1
        )
    ]
    prediction = {"model_version": info.recipe, "score": max(image.scores), "result": regions}
    return {"data": {"image": _image_url(image), "image_id": image.image_id}, "predictions": [prediction]}


def _image_url(image: LabelledImage) -> str:
    if image.in_table:
        raise UsageError(
            f"Label Studio can only show files, but {image.image_id!r} is a row of {image.uri}: "
            "write the images to files and localize those, or choose another format"
        )
    return image.uri if "://" in image.uri else _LOCAL_FILES_URL + quote(image.uri.lstrip("/"))
