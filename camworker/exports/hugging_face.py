"""Hugging Face: Parquet files with the images inside, for `datasets.load_dataset`.

The columns are image {bytes, path}, image_id, width, height and objects {bbox, category, score, fallback}.
Boxes are x, y, width and height in pixels; a fallback is one over the whole image. A category is a position
among the exported classes, whose names are in the metadata of the file.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, TypedDict

import pyarrow as pa
import pyarrow.parquet as pq

from camworker.exports.file_names import image_file_name
from camworker.exports.provenance import ExportInfo
from camworker.exports.weak_labels import LabelledImage

_ROWS: Final = 100  # maximum number of rows of a row group; readers hold one row group at a time
_GROUP_BYTES: Final = 64_000_000
_FILE_BYTES: Final = 500_000_000


class _Image(TypedDict):
    bytes: bytes
    path: str


class _Objects(TypedDict):
    bbox: list[list[float]]
    category: list[int]
    score: list[float]
    fallback: list[bool]


class _Row(TypedDict):
    image: _Image
    image_id: str
    width: int
    height: int
    objects: _Objects


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
                    ("fallback", pa.list_(pa.bool_())),
                ]
            ),
        ),
    ]
)


def write_hugging_face(images: Iterable[LabelledImage], info: ExportInfo, folder: Path) -> None:
    """Write data/train-00000.parquet into the folder, and further files of about 500 MB each."""
    data = folder / "data"
    data.mkdir(parents=True)
    schema = _SCHEMA.with_metadata(
        {"huggingface": json.dumps({"info": {"features": _features(info)}}), **_metadata(info)}
    )
    groups = _groups(images, info.positions)
    group = next(groups, [])
    number = 0
    while group or not number:
        written = 0
        path = data / f"train-{number:05d}.parquet"
        # Image files are compressed already, and no two are equal.
        with pq.ParquetWriter(
            path, schema, compression="none", use_dictionary=False, write_page_checksum=True
        ) as writer:
            while group and written < _FILE_BYTES:
                writer.write_table(pa.Table.from_pylist(group, schema))
                written += _bytes(group)
                group = next(groups, [])
        number += 1


def _features(info: ExportInfo) -> dict[str, object]:
    """Describe the columns for the datasets library; all of its versions understand "Sequence"."""

    def value(dtype: str) -> dict[str, object]:
        return {"dtype": dtype, "_type": "Value"}

    def sequence(feature: dict[str, object]) -> dict[str, object]:
        return {"feature": feature, "_type": "Sequence"}

    return {
        "image": {"_type": "Image"},
        "image_id": value("string"),
        "width": value("int32"),
        "height": value("int32"),
        "objects": {
            "bbox": sequence(sequence(value("float32"))),
            "category": sequence({"names": list(info.names), "_type": "ClassLabel"}),
            "score": sequence(value("float32")),
            "fallback": sequence(value("bool")),
        },
    }


def _metadata(info: ExportInfo) -> dict[str, str]:
    return {f"camworker.{name}": str(value) for name, value in info.as_dict().items()}


def _groups(images: Iterable[LabelledImage], positions: dict[int, int]) -> Iterator[list[_Row]]:
    """Collect rows into row groups; a group is complete at _ROWS rows or _GROUP_BYTES bytes of images."""
    group: list[_Row] = []
    for image in images:
        group.append(_row(image, positions))
        if len(group) == _ROWS or _bytes(group) >= _GROUP_BYTES:
            yield group
            group = []
    if group:
        yield group


def _row(image: LabelledImage, positions: dict[int, int]) -> _Row:
    return {
        "image": {"bytes": image.data, "path": image_file_name(image.image_id)},
        "image_id": image.image_id,
        "width": image.width,
        "height": image.height,
        "objects": {
            "bbox": [[xmin, ymin, xmax - xmin, ymax - ymin] for xmin, ymin, xmax, ymax in image.boxes],
            "category": [positions[label] for label in image.labels],
            "score": image.scores,
            "fallback": image.fallback,
        },
    }


def _bytes(group: list[_Row]) -> int:
    return sum(len(row["image"]["bytes"]) for row in group)
