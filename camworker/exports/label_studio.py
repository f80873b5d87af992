"""Label Studio: tasks with predictions to correct (tasks.json), and the labelling interface they need.

A region is x, y, width, height in percent of the image's sides. A local image is addressed as Label
Studio serves files below its LOCAL_FILES_DOCUMENT_ROOT, taken to be /; s3:// addresses stay as they are.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from camworker.errors import UsageError
from camworker.exports.file_names import xml_attribute
from camworker.exports.provenance import ExportInfo
from camworker.exports.weak_labels import LabelledImage

_SERVED: Final = "/data/local-files/?d="


def write(images: Iterable[LabelledImage], about: ExportInfo, folder: Path) -> None:
    """Write tasks.json and label_config.xml. Raises UsageError for an image that is no file of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "label_config.xml").write_text(_label_config(about), encoding="utf-8")
    with open(folder / "tasks.json", "x", encoding="ascii") as file:
        file.write("[")
        for number, image in enumerate(images):
            file.write(",\n" if number else "\n")
            file.write(json.dumps(_task(image, about), allow_nan=False))
        file.write("\n]\n")


def _label_config(about: ExportInfo) -> str:
    labels = "".join(f"    <Label value={xml_attribute(name)}/>\n" for name in about.names)
    return (
        "<View>\n"
        '  <Image name="image" value="$image"/>\n'
        f'  <RectangleLabels name="label" toName="image">\n{labels}  </RectangleLabels>\n'
        "</View>\n"
    )


def _task(image: LabelledImage, about: ExportInfo) -> dict[str, Any]:
    regions = [
        {
            "id": f"{image.number}-{place}",
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
                "rectanglelabels": [about.classes[label]],
            },
        }
        for place, (label, score, (xmin, ymin, xmax, ymax)) in enumerate(
            zip(image.labels, image.scores, image.boxes, strict=True), start=1
        )
    ]
    prediction = {"model_version": about.recipe, "score": max(image.scores), "result": regions}
    return {"data": {"image": _address(image), "image_id": image.image_id}, "predictions": [prediction]}


def _address(image: LabelledImage) -> str:
    if image.in_table:
        raise UsageError(
            f"Label Studio shows files, and {image.image_id!r} is a row of {image.uri}: "
            "write the images to files and localize these, or choose another format"
        )
    return image.uri if "://" in image.uri else _SERVED + quote(image.uri.lstrip("/"))
