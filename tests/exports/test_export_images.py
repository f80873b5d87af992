"""Exports with image files, YOLO and Hugging Face, read by other libraries."""

import csv
import json
import os
from pathlib import Path

import globox
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from camworker.exports.export import export
from camworker.exports.file_names import image_file_name
from camworker.exports.selection import LabelSelection
from camworker.inference.localizer import Localizer
from camworker.inputs.sources import open_source
from camworker.ledger.ledger import Ledger
from camworker.ledger.snapshot import Snapshot
from camworker.schemas import ITEMS
from camworker.storage.local import LocalStore
from camworker.storage.memory import MemoryStore
from support.export_rows import IDS, NASTY, RECIPE, exported, recipe, stored
from support.factories import TINY_CLASSES, photograph, run_generation, tiny_package


@pytest.fixture
def photographs(tmp_path):
    """A ledger of localized photographs whose ids are unsafe as file names.

    The centre squares are localized, so the corners are neither whole numbers nor short fractions of a side.
    """
    (tmp_path / "in").mkdir()
    for number in range(len(IDS)):
        (tmp_path / f"in/{number:02d}.png").write_bytes(photograph(number, width=20 + number))
    items = open_source(str(tmp_path / "in"), TINY_CLASSES).items
    ids = [f"../{image_id}.png" for image_id in IDS]
    ledger = Ledger(LocalStore(tmp_path / "out"), RECIPE)
    ledger.write_recipe(recipe(("cat", *NASTY[:2]), top_k=3, resize="crop"))
    localizer = Localizer(tiny_package(), device="cpu", precision="float32", resize="crop")
    run_generation(ledger, localizer, items.set_column(0, ITEMS.field("image_id"), [ids]), size=4)
    return ledger


def test_yolo(tmp_path, photographs):
    folder = exported(photographs, "yolo", tmp_path / "to/yolo", ranks=2)
    assert sorted(path.name for path in (tmp_path / "to").iterdir()) == ["yolo"]
    data = yaml.safe_load((folder / "data.yaml").read_text(encoding="utf-8"))
    assert data == {"train": "images", "val": "images", "names": ["cat", *NASTY[:2]]}
    with open(folder / "image_ids.csv", encoding="utf-8", newline="") as file:
        image_ids = dict(list(csv.reader(file))[1:])
    images = stored(photographs, ranks=2)
    assert set(image_ids.values()) == set(images)
    assert {path.name for path in (folder / "images").iterdir()} == set(image_ids)
    read = globox.AnnotationSet.from_yolo_v5(
        folder / "labels", image_folder=folder / "images", image_extension=".png"
    )
    assert set(read.image_ids) == set(image_ids)
    for name, image_id in image_ids.items():
        expected = images[image_id]
        assert (folder / "images" / name).read_bytes() == Path(expected.uri).read_bytes()
        boxes = [[b.xmin, b.ymin, b.xmax, b.ymax] for b in read[name].boxes]
        # Ten decimals of fractions of sides of at most 40 pixels.
        assert np.array(boxes) == pytest.approx(np.array(expected.boxes), abs=40 * 1e-10)
        assert [b.label for b in read[name].boxes] == [str(label) for label in expected.labels]


def test_yolo_numbers_the_exported_classes(tmp_path, photographs):
    label = stored(photographs)["../a.jpg.png"].labels[0]
    folder = exported(photographs, "yolo", tmp_path / "yolo", classes=frozenset({label}))
    assert len(yaml.safe_load((folder / "data.yaml").read_text(encoding="utf-8"))["names"]) == 1
    lines = [path.read_text() for path in (folder / "labels").iterdir()]
    assert all(line.startswith("0 ") for line in lines)


def read_parquet(folder, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets

    files = sorted(str(path) for path in (folder / "data").iterdir())
    return datasets, datasets.load_dataset(
        "parquet", data_files=files, cache_dir=folder / "cache", split="train"
    )


def test_hugging_face(tmp_path, photographs, monkeypatch):
    folder = exported(photographs, "hugging-face", tmp_path / "hf", ranks=2)
    images = stored(photographs, ranks=2)
    datasets, read = read_parquet(folder, monkeypatch)
    assert isinstance(read.features["image"], datasets.Image)
    assert read.features["objects"]["category"].feature.names == ["cat", *NASTY[:2]]
    assert read["image_id"][:] == list(images)
    for row, expected in zip(read, images.values(), strict=True):
        assert (row["width"], row["height"]) == row["image"].size == (expected.width, expected.height)
        # x + width in float32 may differ from the corner by one unit in the last place.
        boxes = [[x, y, x + width, y + height] for x, y, width, height in row["objects"]["bbox"]]
        assert np.array(boxes) == pytest.approx(
            np.array(expected.boxes), abs=float(np.spacing(np.float32(40)))
        )
        assert [bbox[:2] for bbox in row["objects"]["bbox"]] == [box[:2] for box in expected.boxes]
        assert row["objects"]["category"] == expected.labels
        assert row["objects"]["score"] == expected.scores
        assert row["objects"]["fallback"] == [False] * len(expected.labels)
    for raw, expected in zip(
        read.cast_column("image", datasets.Image(decode=False)), images.values(), strict=True
    ):
        assert raw["image"]["bytes"] == Path(expected.uri).read_bytes()
        assert raw["image"]["path"] == image_file_name(expected.image_id)


def test_hugging_face_numbers_the_exported_classes(tmp_path, photographs):
    label = stored(photographs)["../a.jpg.png"].labels[0]
    assert label > 0
    folder = exported(photographs, "hugging-face", tmp_path / "hf", classes=frozenset({label}))
    (path,) = (folder / "data").iterdir()
    read = pq.read_table(path)
    assert all(row["category"] == [0] for row in read["objects"].to_pylist())
    features = json.loads(read.schema.metadata[b"huggingface"])["info"]["features"]
    assert features["objects"]["category"]["feature"]["names"] == [NASTY[label - 1]]


def test_hugging_face_files_and_row_groups_are_bounded(tmp_path, photographs, monkeypatch):
    monkeypatch.setattr("camworker.exports.hugging_face._ROWS", 3)
    first_four = [Path(image.uri) for image in stored(photographs).values()][:4]
    limit = sum(path.stat().st_size for path in first_four)  # exceeded in the second group of a file
    monkeypatch.setattr("camworker.exports.hugging_face._FILE_BYTES", limit)
    folder = exported(photographs, "hugging-face", tmp_path / "hf")
    files = [pq.ParquetFile(path) for path in sorted((folder / "data").iterdir())]
    groups = [[f.metadata.row_group(n).num_rows for n in range(f.num_row_groups)] for f in files]
    assert groups == [[3, 3], [3, 2]]
    assert len(read_parquet(folder, monkeypatch)[1]) == 11


def test_an_empty_export_still_has_its_columns(tmp_path, photographs):
    export(Snapshot.load(photographs), "hugging-face", tmp_path / "hf", LabelSelection(min_score=1.0))
    (path,) = (tmp_path / "hf/data").iterdir()
    read = pq.read_table(path)
    assert read.num_rows == 0
    assert read.column_names == ["image", "image_id", "width", "height", "objects"]
    assert "ClassLabel" in read.schema.metadata[b"huggingface"].decode()


@pytest.mark.parametrize("form", ["yolo", "hugging-face"])
def test_changed_and_deleted_images_are_left_out(tmp_path, photographs, form):
    first, second, *_ = stored(photographs).values()
    Path(first.uri).write_bytes(photograph(99))
    os.unlink(second.uri)
    counts = export(Snapshot.load(photographs), form, tmp_path / "to", LabelSelection())
    assert counts.unreadable == {"changed": 1, "read_error": 1}
    assert (counts.images, counts.seen) == (len(IDS) - 2, len(IDS))
    if form == "yolo":
        assert len(list((tmp_path / "to/images").iterdir())) == len(IDS) - 2
        assert len(list((tmp_path / "to/labels").iterdir())) == len(IDS) - 2


def test_images_inside_parquet(tmp_path, tiny_localizer):
    images = [{"bytes": photograph(number), "path": None} for number in range(9)]
    pq.write_table(pa.table({"id": [f"{n}" for n in range(9)], "image": images}), tmp_path / "in.parquet")
    source = open_source(str(tmp_path / "in.parquet"), TINY_CLASSES)
    ledger = Ledger(MemoryStore(), RECIPE)
    ledger.write_recipe(recipe(TINY_CLASSES.names))
    run_generation(ledger, tiny_localizer, source.items, size=4)
    folder = exported(ledger, "hugging-face", tmp_path / "hf")
    (path,) = (folder / "data").iterdir()
    assert [image["bytes"] for image in pq.read_table(path)["image"].to_pylist()] == [
        i["bytes"] for i in images
    ]
