"""Tests of the readers of ground truth: hand-written files, and comparison with other libraries."""

import json
from pathlib import Path
from xml.sax.saxutils import escape

import globox
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools.coco import COCO

from camworker.metrics.ground_truth.read import read_annotations

COCO_FILE = {
    "info": {"description": "hand-made"},
    "images": [
        {"id": 9, "file_name": "sub/a b#1.jpg", "width": 40, "height": 30},
        {"id": 3, "file_name": "été?.png", "width": 20, "height": 20},
        {"id": 4, "file_name": "empty.jpg", "width": 20, "height": 20},
    ],
    "categories": [{"id": 18, "name": "dog"}, {"id": 1, "name": "hot dog"}],
    "annotations": [
        {"id": 1, "image_id": 3, "category_id": 1, "bbox": [1.5, 2, 3.25, 4], "iscrowd": 0, "area": 13},
        {
            "id": 2,
            "image_id": 9,
            "category_id": 18,
            "bbox": [0, 0, 40, 30],
            "segmentation": [[0, 0, 9, 9, 0, 9]],
        },
        {"id": 3, "image_id": 9, "category_id": 18, "bbox": [5, 5, 9, 9], "iscrowd": 1},
        {"id": 4, "image_id": 3, "category_id": 18, "bbox": [5, 5, 9, 0]},
    ],
}


def rows(table: pa.Table) -> list[tuple]:
    return [tuple(row.values()) for row in table.to_pylist()]


def voc(filename: str | None, *objects: tuple, head: str = "") -> str:
    """Return a VOC file; an object is its name, its corners in the file, and more elements."""
    name = "" if filename is None else f"<filename>{escape(filename)}</filename>"
    return f"{head}<annotation><folder>f</folder>{name}<size><width>99</width><height>99</height></size>" + (
        "".join(
            f"<object><name>{escape(label)}</name>{more}<bndbox><xmin>{x}</xmin><ymin>{y}</ymin>"
            f"<xmax>{right}</xmax><ymax>{bottom}</ymax></bndbox></object>"
            for label, x, y, right, bottom, more in objects
        )
        + "</annotation>"
    )


def write(folder: Path, files: dict[str, str]) -> str:
    """Write a folder of text files, name -> text."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return str(folder)


def write_coco(tmp_path: Path, document: object = COCO_FILE) -> str:
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(document))
    return str(path)


def test_coco_gives_names_and_half_open_boxes(tmp_path: Path) -> None:
    truth = read_annotations(write_coco(tmp_path))
    assert truth.table.schema.field("image_id").type == pa.string()
    assert truth.table.schema.field("xmax").type == pa.float32()
    assert truth.table.column_names == ["image_id", "label", "xmin", "ymin", "xmax", "ymax"]
    assert rows(truth.table) == [
        ("été?.png", "hot dog", 1.5, 2, 4.75, 6),
        ("sub/a b#1.jpg", "dog", 0, 0, 40, 30),
    ]
    assert truth.notes == {"iscrowd": 1, "no_area": 1, "images_without_boxes": 1}
    assert not truth.stems


def test_coco_by_index_gives_category_ids(tmp_path: Path) -> None:
    column = read_annotations(write_coco(tmp_path), by="index").table["label"]
    assert (column.type, column.to_pylist()) == (pa.int64(), [1, 18])


def test_coco_boxes_do_not_depend_on_the_convention_of_other_files(tmp_path: Path) -> None:
    path = write_coco(tmp_path)
    assert read_annotations(path, corners="inclusive").table == read_annotations(path).table


def test_coco_without_annotations_is_valid(tmp_path: Path) -> None:
    truth = read_annotations(write_coco(tmp_path, {**COCO_FILE, "annotations": []}))
    assert truth.table.num_rows == 0
    assert truth.table.schema.field("label").type == pa.string()
    assert truth.notes == {"images_without_boxes": 3}


def test_a_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "truth.JSON"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(COCO_FILE).encode())
    assert read_annotations(str(path)).table.num_rows == 2


coordinate = st.floats(0, 2000, width=32)
box = st.tuples(coordinate, coordinate, st.floats(1, 500, width=32), st.floats(1, 500, width=32))


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 2), box, st.booleans()), max_size=12))
def test_coco_agrees_with_pycocotools(tmp_path_factory: pytest.TempPathFactory, drawn: list) -> None:
    document = {
        "images": [{"id": 70 - n, "file_name": f"{n}.jpg"} for n in range(5)],
        "categories": [{"id": 7 * n, "name": f"class {n}"} for n in range(3)],
        "annotations": [
            {
                "id": n + 1,
                "image_id": 70 - i,
                "category_id": 7 * c,
                "bbox": b,
                "area": 1,
                "iscrowd": int(crowd),
            }
            for n, (i, c, b, crowd) in enumerate(drawn)
        ],
    }
    path = write_coco(tmp_path_factory.mktemp("coco"), document)
    theirs = COCO(path)
    expected = [
        (
            theirs.imgs[entry["image_id"]]["file_name"],
            theirs.cats[entry["category_id"]]["name"],
            *np.float32([x, y, x + width, y + height]).tolist(),
        )
        for entry in theirs.loadAnns(theirs.getAnnIds(iscrowd=False))
        for x, y, width, height in [entry["bbox"]]
    ]
    truth = read_annotations(path)
    assert rows(truth.table) == expected
    assert truth.notes.get("iscrowd", 0) == sum(crowd for *_, crowd in drawn)


def test_voc_corners_count_from_one_and_include_the_last_pixel(tmp_path: Path) -> None:
    difficult = "<difficult>1</difficult><part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>"
    files = {
        "b.xml": voc("a b#é.jpg", ("cat & <dog>", 1, 1, 99, 99, difficult), ("cat", 5, 6, 5, 6, "")),
        "deep/er/a.XML": voc("c.jpg", ("cat", "10.5", 2, 20, "30.25", "<difficult>0</difficult>")),
        "none.xml": voc("none.jpg"),
        "JPEGImages/a.png": "an image, and no mask",
    }
    path = write(tmp_path, files)
    for corners in ("half-open", "inclusive"):
        truth = read_annotations(path, corners=corners)
        assert rows(truth.table) == [
            ("a b#é.jpg", "cat & <dog>", 0, 0, 99, 99),
            ("a b#é.jpg", "cat", 4, 5, 5, 6),
            ("c.jpg", "cat", 9.5, 1, 20, 30.25),
        ]
        assert truth.notes == {"difficult": 1, "images_without_boxes": 1}
        assert not truth.stems


def test_voc_without_filename_is_named_after_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, {"deep/x.y.xml": voc(None, ("7", 1, 1, 2, 2, ""))})
    assert rows(read_annotations(path).table) == [("x.y.jpg", "7", 0, 0, 2, 2)]
    assert read_annotations(path, by="index").table["label"].to_pylist() == [7]


def test_voc_whose_filenames_have_no_extension_gives_stems(tmp_path: Path) -> None:
    path = write(tmp_path, {"a.xml": voc("ILSVRC2012_val_00000001", ("n01440764", 0, 1, 2, 2, ""))})
    truth = read_annotations(path)
    assert truth.stems
    assert rows(truth.table) == [("ILSVRC2012_val_00000001", "n01440764", -1, 0, 2, 2)]
    assert truth.notes == {"below_one": 1}


def test_voc_in_utf16_is_read(tmp_path: Path) -> None:
    head = '<?xml version="1.0" encoding="UTF-16"?>'
    (tmp_path / "a.xml").write_bytes(voc("é.jpg", ("cat", 1, 1, 2, 2, ""), head=head).encode("utf-16"))
    assert rows(read_annotations(str(tmp_path)).table) == [("é.jpg", "cat", 0, 0, 2, 2)]


@given(
    st.lists(st.lists(st.tuples(st.sampled_from(["cat", "a&b"]), box), max_size=3), min_size=1, max_size=4)
)
def test_voc_agrees_with_globox(tmp_path_factory: pytest.TempPathFactory, drawn: list) -> None:
    folder = tmp_path_factory.mktemp("voc")
    for n, objects in enumerate(drawn):
        corners = [(label, x, y, x + width, y + height, "") for label, (x, y, width, height) in objects]
        (folder / f"{n}.xml").write_text(voc(f"{n}.jpg", *corners))
    theirs = globox.AnnotationSet.from_pascal_voc(folder)
    expected = [
        (
            f"{n}.jpg",
            found.label,
            *np.float32([found.xmin - 1, found.ymin - 1, found.xmax, found.ymax]).tolist(),
        )
        for n in range(len(drawn))
        for found in theirs[f"{n}.jpg"].boxes
    ]
    assert rows(read_annotations(str(folder)).table) == expected


METADATA = {
    "image_ids.txt": "\ufeffval/b c.jpg\nval/a#.jpg\nval/é.jpg\n",
    "class_labels.txt": "val/é.jpg,2\nval/b c.jpg,7\nval/a#.jpg,0\n",
    "image_sizes.txt": "val/b c.jpg,50,40\n",
}


def test_metadata_folder_of_boxes(tmp_path: Path) -> None:
    lines = "val/é.jpg,1,2,3,4\nval/b c.jpg,0,0,9,9\nval/é.jpg,5,5,5,5\n"
    path = write(tmp_path, {**METADATA, "localization.txt": lines})
    truth = read_annotations(path, corners="inclusive")
    assert rows(truth.table) == [
        ("val/b c.jpg", 7, 0, 0, 10, 10),
        ("val/a#.jpg", 0, None, None, None, None),
        ("val/é.jpg", 2, 1, 2, 4, 5),
        ("val/é.jpg", 2, 5, 5, 6, 6),
    ]
    assert truth.notes == {"images_without_boxes": 1}


def test_metadata_folder_without_localization_knows_labels(tmp_path: Path) -> None:
    table = read_annotations(write(tmp_path, METADATA)).table
    assert rows(table) == [("val/b c.jpg", 7), ("val/a#.jpg", 0), ("val/é.jpg", 2)]
    assert table.schema.field("label").type == pa.int64()


def test_metadata_folder_of_masks(tmp_path: Path) -> None:
    lines = "val/é.jpg,m/1.png,m/i.png\nval/é.jpg,m/2.png,\r\nval/b c.jpg,m/3 #.png,\n"
    path = write(tmp_path / "meta", {**METADATA, "localization.txt": lines})
    write(tmp_path / "masks", dict.fromkeys(["m/1.png", "m/2.png", "m/3 #.png", "m/i.png"], ""))
    masks = tmp_path / "masks" / "m"
    truth = read_annotations(path, masks=str(tmp_path / "masks"))
    assert rows(truth.table) == [
        ("val/b c.jpg", 7, str(masks / "3 #.png"), None),
        ("val/a#.jpg", 0, None, None),
        ("val/é.jpg", 2, str(masks / "1.png"), str(masks / "i.png")),
        ("val/é.jpg", 2, str(masks / "2.png"), None),
    ]
    assert truth.table.column_names == ["image_id", "label", "mask", "ignore"]
    assert truth.notes == {"images_without_masks": 1}


def test_folder_of_masks(tmp_path: Path) -> None:
    names = ["dog/sub/a b.v2.png", "dog/sub/a b.v2.ignore.png", "cat/é#.PNG", "cat/Thumbs.db"]
    write(tmp_path, dict.fromkeys(names, ""))
    truth = read_annotations(str(tmp_path))
    assert rows(truth.table) == [
        ("é#", "cat", str(tmp_path / names[2]), None),
        ("sub/a b.v2", "dog", str(tmp_path / names[0]), str(tmp_path / names[1])),
    ]
    assert truth.stems
    assert truth.notes == {"other_files": 1}


def test_folder_of_masks_by_index(tmp_path: Path) -> None:
    write(tmp_path, {"12/a.png": "", "3/a.png": ""})
    assert read_annotations(str(tmp_path), by="index").table["label"].to_pylist() == [12, 3]


LONG = {
    "image_id": ["007", "b"],
    "label": [3, 4],
    "xmin": [0, 1],
    "ymin": [0, 1],
    "xmax": [9, 3],
    "ymax": [9, 4],
}


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize(("corners", "more"), [("half-open", 0), ("inclusive", 1)])
def test_long_form(tmp_path: Path, kind: str, corners: str, more: int) -> None:
    table, path = pd.DataFrame(LONG), tmp_path / f"truth.{kind}"
    table.to_csv(path, index=False) if kind == "csv" else table.to_parquet(path)
    truth = read_annotations(str(path), corners=corners)
    assert rows(truth.table) == [
        ("007", 3, 0, 0, 9 + more, 9 + more),
        ("b", 4, 1, 1, 3 + more, 4 + more),
    ]
    assert truth.table.schema.field("xmin").type == pa.float32()
    assert truth.notes == {}


def test_long_form_of_labels_alone_by_name_and_index(tmp_path: Path) -> None:
    path = tmp_path / "truth.parquet"
    pd.DataFrame({"image_id": ["a", "b"], "label": pd.Categorical(["5", "6"])}).to_parquet(path)
    assert read_annotations(str(path)).table["label"].to_pylist() == ["5", "6"]
    column = read_annotations(str(path), by="index").table["label"]
    assert (column.type, column.to_pylist()) == (pa.int64(), [5, 6])
