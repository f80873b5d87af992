"""Hugging Face: Parquet that datasets.load_dataset opens, with the images inside it.

image {bytes, path}, image_id, width, height, objects {bbox, category, score}: boxes are x, y, width,
height in pixels, categories the places of the exported classes, whose names the file's metadata holds.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from camworker.exports.file_names import image_file_name
from camworker.exports.provenance import ExportInfo
from camworker.exports.weak_labels import LabelledImage

_ROWS: Final = 100  # of a row group, or less: readers hold one of them at a time
_GROUP_BYTES: Final = 64_000_000
_FILE_BYTES: Final = 500_000_000
# Image files get no smaller, and no two are alike.
_ENCODING: Final = {"compression": "none", "use_dictionary": False, "write_page_checksum": True}

_SCHEMA: Final = pa.schema(
    [
        pa.field("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        pa.field("image_id", pa.string()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field(
            "objects",
            pa.struct(
                [
                    ("bbox", pa.list_(pa.list_(pa.float32()))),
                    ("category", pa.list_(pa.int64())),
                    ("score", pa.list_(pa.float32())),
                ]
            ),
        ),
    ]
)


def write(images: Iterable[LabelledImage], about: ExportInfo, folder: Path) -> None:
    """Write folder/data/train-00000.parquet and as many after it as about 500 MB each take."""
    data = folder / "data"
    data.mkdir(parents=True)
    schema = _SCHEMA.with_metadata(
        {"huggingface": json.dumps({"info": {"features": _features(about)}}), **_metadata(about)}
    )
    groups = _groups(images, about.places)
    group = next(groups, [])
    number = 0
    while group or not number:
        written = 0
        path = data / f"train-{number:05d}.parquet"
        with pq.ParquetWriter(path, schema, **_ENCODING) as writer:
            while group and written < _FILE_BYTES:
                writer.write_table(pa.Table.from_pylist(group, schema))
                written += _bytes(group)
                group = next(groups, [])
        number += 1


def _features(about: ExportInfo) -> dict[str, Any]:
    """The columns as the datasets library describes them: older versions read Sequence, newer ones too."""

    def value(kind: str) -> dict[str, Any]:
        return {"dtype": kind, "_type": "Value"}

    def sequence(feature: dict[str, Any]) -> dict[str, Any]:
        return {"feature": feature, "_type": "Sequence"}

    return {
        "image": {"_type": "Image"},
        "image_id": value("string"),
        "width": value("int32"),
        "height": value("int32"),
        "objects": {
            "bbox": sequence(sequence(value("float32"))),
            "category": sequence({"names": list(about.names), "_type": "ClassLabel"}),
            "score": sequence(value("float32")),
        },
    }


def _metadata(about: ExportInfo) -> dict[str, str]:
    return {f"camworker.{name}": str(fact) for name, fact in about.as_dict().items()}


def _groups(images: Iterable[LabelledImage], places: dict[int, int]) -> Iterator[list[dict[str, Any]]]:
    """Rows by row groups: at most _ROWS of them, and no more than _GROUP_BYTES before the last."""
    group: list[dict[str, Any]] = []
    for image in images:
        group.append(_row(image, places))
        if len(group) == _ROWS or _bytes(group) >= _GROUP_BYTES:
            yield group
            group = []
    if group:
        yield group


def _row(image: LabelledImage, places: dict[int, int]) -> dict[str, Any]:
    return {
        "image": {"bytes": image.data, "path": image_file_name(image.image_id)},
        "image_id": image.image_id,
        "width": image.width,
        "height": image.height,
        "objects": {
            "bbox": [[xmin, ymin, xmax - xmin, ymax - ymin] for xmin, ymin, xmax, ymax in image.boxes],
            "category": [places[label] for label in image.labels],
            "score": image.scores,
        },
    }


def _bytes(group: list[dict[str, Any]]) -> int:
    return sum(len(row["image"]["bytes"]) for row in group)
