"""Tests of truth: look-up by image id, labels as class indices, what is left out and counted."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from camworker.classes import Classes
from camworker.errors import UsageError
from camworker.metrics.ground_truth.truth import Truth, hash_ids, read_truth
from support.factories import encode

CLASSES = Classes(("cat", "dog", "bird"), ("n1", "n2", "n3"))
ROWS = {
    "image_id": ["b", "a", "b"],
    "label": ["dog", "cat", "n3"],
    "xmin": [0, 1, 2],
    "ymin": [0, 1, 2],
    "xmax": [9, 3, 5],
    "ymax": [9, 4, 6],
}


def write(tmp_path: Path, kind: str = "csv", **changes: object) -> str:
    table = pd.DataFrame({**ROWS, **changes})
    path = tmp_path / f"truth.{kind}"
    table.to_csv(path, index=False) if kind == "csv" else table.to_parquet(path)
    return str(path)


def rows_of(truth: Truth, image_id: str) -> list[Any]:
    """Return (label, corners) of one image, in the order of the truth."""
    _, rows = truth.rows_of(pa.array([image_id]))
    boxes = [None] * len(rows) if truth.corners is None else truth.corners[rows].tolist()
    return list(zip(truth.labels[rows].tolist(), boxes, strict=True))


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_rows_are_grouped_by_image_with_class_indices(tmp_path: Path, kind: str) -> None:
    truth = read_truth(write(tmp_path, kind), CLASSES)
    assert rows_of(truth, "a") == [(0, [1, 1, 3, 4])]
    assert rows_of(truth, "b") == [(1, [0, 0, 9, 9]), (2, [2, 2, 5, 6])]
    assert rows_of(truth, "c") == []
    assert (truth.labels.dtype, truth.corners.dtype) == (np.int32, np.float32)
    assert (truth.unknown, truth.notes, truth.inclusive, truth.stems) == ({}, {}, False, False)
    assert truth.masks is truth.ignores is None


def test_images_are_in_the_order_of_their_hashes() -> None:
    ids = [f"image {n}" for n in range(50)]
    truth = Truth.from_rows(ids * 2, range(100))
    assert truth.images.to_pylist() == sorted(ids, key=lambda i: hash_ids(pa.array([i]))[0])
    assert (np.diff(truth.hashes.astype(object)) > 0).all()
    assert (truth.hashes == hash_ids(truth.images)).all()
    assert truth.offsets.tolist() == list(range(0, 101, 2))
    assert rows_of(truth, "image 7") == [(7, None), (57, None)]


def test_hashes_are_the_same_everywhere() -> None:
    # Bootstraps and folds hang on them: another version may not draw others.
    assert hash_ids(pa.array(["a", "ä/b #.jpg"])).tolist() == [13950350942979735504, 8119766032921109998]
    assert hash_ids(pa.array(["a"])).dtype == np.uint64
    assert len(hash_ids(pa.array([], pa.string()))) == 0


IDS = st.sampled_from(["a", "b", "c", "sub/a.jpg", "ä", ""])


@given(st.lists(st.tuples(IDS, st.integers(0, 9)), max_size=12), st.lists(IDS, max_size=8, unique=True))
def test_rows_are_looked_up_like_in_a_dictionary(rows: list[tuple[str, int]], asked: list[str]) -> None:
    truth = Truth.from_rows([i for i, _ in rows], [label for _, label in rows])
    index = truth.index_of(pa.array(asked, pa.string()))
    assert [index[n] >= 0 for n in range(len(asked))] == [i in dict(rows) for i in asked]
    assert [truth.images[int(p)].as_py() for p in index if p >= 0] == [i for i in asked if i in dict(rows)]
    in_rows, in_truth = truth.rows_of(pa.array(asked, pa.string()))
    found = list(zip(in_rows.tolist(), truth.labels[in_truth].tolist(), strict=True))
    assert found == [(n, label) for n, i in enumerate(asked) for own, label in rows if own == i]


def test_ids_are_found_in_sliced_arrays() -> None:
    truth = Truth.from_rows(["b", "a"], [1, 0])
    ids = pa.array(["x", "a", "b"])
    assert (truth.index_of(ids.slice(1)) == truth.index_of(ids)[1:]).all()
    assert (truth.index_of(ids) >= 0).tolist() == [False, True, True]


def test_a_stem_matches_an_id_without_its_extension() -> None:
    truth = Truth.from_rows(["a", "sub.dir/b", "c.tar"], [0, 1, 2], stems=True)
    ids = ["a.jpg", "a", "a.png", "sub.dir/b.jpeg", "sub.dir/b", "c.tar.png", "c.tar", "b.jpg"]
    found = truth.index_of(pa.array(ids))
    named = [truth.images[int(index)].as_py() if index >= 0 else None for index in found]
    assert named == ["a", "a", "a", "sub.dir/b", "sub.dir/b", "c.tar", None, None]


def test_boxes_of_an_image_leave_out_rows_without_one() -> None:
    nothing = [np.nan] * 4
    truth = Truth.from_rows(
        ["b", "a", "b", "b"], [0, 0, 0, 1], [[0, 0, 1, 1], nothing, nothing, [2, 2, 3, 3]]
    )
    assert truth.boxes_of("b").tolist() == [[0, 0, 1, 1], [2, 2, 3, 3]]
    assert truth.boxes_of("a").shape == truth.boxes_of("x").shape == (0, 4)
    assert Truth.from_rows(["a"], [1]).boxes_of("a").shape == (0, 4)


def test_masks_follow_their_rows() -> None:
    masks = pa.array(["1.png", None, "2.png"])
    truth = Truth.from_rows(["b", "a", "b"], [0, 1, 2], masks=masks, ignores=pa.array([None, None, "i.png"]))
    _, rows = truth.rows_of(pa.array(["b"]))
    assert truth.masks.take(pa.array(rows)).to_pylist() == ["1.png", "2.png"]
    assert truth.ignores.take(pa.array(rows)).to_pylist() == [None, "i.png"]


def test_inclusive_corners_become_half_open(tmp_path: Path) -> None:
    truth = read_truth(write(tmp_path), CLASSES, "inclusive")
    assert rows_of(truth, "a") == [(0, [1, 1, 4, 5])]
    assert truth.inclusive


def test_a_box_of_one_pixel_has_an_area_only_inclusively(tmp_path: Path) -> None:
    path = write(tmp_path, xmax=[0, 3, 5])
    assert rows_of(read_truth(path, CLASSES, "inclusive"), "b")[0] == (1, [0, 0, 1, 10])
    with pytest.raises(UsageError, match=r"1 boxes have no area, the first in row 1, b"):
        read_truth(path, CLASSES)


def test_unknown_labels_are_counted_and_left_out(tmp_path: Path) -> None:
    truth = read_truth(write(tmp_path, label=["unicorn", "cat", "n3"]), CLASSES)
    assert truth.unknown == {"unicorn": 1}
    assert rows_of(truth, "b") == [(2, [2, 2, 5, 6])]
    truth = read_truth(write(tmp_path, label=[7, 0, 7]), CLASSES)
    assert truth.unknown == {"7": 2}
    assert truth.images.to_pylist() == ["a"]


@pytest.mark.parametrize("labels", [["unicorn", "yeti", "n9"], [3, 4, 5]])
def test_a_truth_of_another_network_is_refused(tmp_path: Path, labels: list[Any]) -> None:
    with pytest.raises(
        UsageError, match=f"none of its labels \\('{labels[0]}', .*is a class of this network"
    ):
        read_truth(write(tmp_path, label=labels), CLASSES)


def test_classes_are_matched_by_name_or_by_index(tmp_path: Path) -> None:
    classes = Classes(("2", "1", "0"))
    path = write(tmp_path, "parquet", label=["0", "1", "2"])
    by_name, by_index = read_truth(path, classes), read_truth(path, classes, by="index")
    assert [label for label, _ in rows_of(by_name, "b")] == [2, 0]
    assert [label for label, _ in rows_of(by_index, "b")] == [0, 2]
    with pytest.raises(UsageError, match="match them by name"):
        read_truth(write(tmp_path, label=["cat", "dog", "bird"]), CLASSES, by="index")


def test_a_name_of_two_classes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="belong to two classes"):
        read_truth(write(tmp_path), Classes(("cat", "dog", "n3", "dog")))


def test_excluded_images_keep_their_labels_and_lose_their_boxes(tmp_path: Path) -> None:
    listed = tmp_path / "excluded.txt"
    listed.write_text("b\n\n  \nabsent\n")
    truth = read_truth(write(tmp_path), CLASSES, exclude=str(listed))
    assert truth.notes["excluded_from_localization"] == 1
    assert [label for label, _ in rows_of(truth, "b")] == [1, 2]
    assert len(truth.boxes_of("b")) == 0
    assert truth.boxes_of("a").tolist() == [[1, 1, 3, 4]]


def test_excluded_images_without_truth_are_counted(tmp_path: Path) -> None:
    listed = tmp_path / "excluded.txt"
    listed.write_text("b\nabsent\nILSVRC2012_val_1\n")
    truth = read_truth(write(tmp_path), CLASSES, exclude=str(listed))
    assert sorted(truth.notes.values()) == [1, 2]


def test_excluded_images_lose_their_masks(tmp_path: Path) -> None:
    for name in ("cat/a", "cat/b", "cat/b.ignore"):
        path = tmp_path / "masks" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(np.full((2, 2), 255, np.uint8), "PNG"))
    listed = tmp_path / "excluded.txt"
    listed.write_text("b\n")
    whole, less = (
        read_truth(str(tmp_path / "masks"), CLASSES, exclude=exclude) for exclude in (None, str(listed))
    )
    for truth, expected in ((whole, {"a": "a.png", "b": "b.png"}), (less, {"a": "a.png", "b": None})):
        assert truth.stems
        _, rows = truth.rows_of(pa.array(["a.jpg", "b.jpg"]))
        paths = truth.masks.take(pa.array(rows)).to_pylist()
        names = [path and Path(path).name for path in paths]
        assert dict(zip("ab", names, strict=True)) == expected
    _, rows = less.rows_of(pa.array(["b.jpg"]))
    assert less.ignores.take(pa.array(rows)).to_pylist() == [None]


def test_the_error_names_an_unreadable_list(tmp_path: Path) -> None:
    path = write(tmp_path)
    with pytest.raises(
        UsageError, match=r"absent\.txt cannot be read as a list of image ids: .*No such file"
    ):
        read_truth(path, CLASSES, exclude=str(tmp_path / "absent.txt"))
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match=r"bytes\.txt cannot be read as a list"):
        read_truth(path, CLASSES, exclude=str(tmp_path / "bytes.txt"))


VOC = """<annotation><filename>a.jpg</filename><size><width>20</width><height>20</height></size><object>
<name>cat</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>10</xmax><ymax>10</ymax></bndbox></object></annotation>
"""
COCO = """{"images": [{"id": 1, "file_name": "a.jpg"}], "categories": [{"id": 1, "name": "cat"}],
"annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 10, 10]}]}"""


@pytest.mark.parametrize("corners", ["half-open", "inclusive"])
def test_formats_define_whether_corners_name_the_last_pixel(tmp_path: Path, corners: Any) -> None:
    (tmp_path / "voc").mkdir()
    (tmp_path / "voc" / "a.xml").write_text(VOC)
    (tmp_path / "coco.json").write_text(COCO)
    voc, coco = (read_truth(str(tmp_path / name), CLASSES, corners) for name in ("voc", "coco.json"))
    assert rows_of(voc, "a.jpg") == rows_of(coco, "a.jpg") == [(0, [0, 0, 10, 10])]
    assert (voc.inclusive, coco.inclusive) == (True, False)


def test_truth_without_boxes_knows_labels_only(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("image_id,label\n007,cat\n")
    truth = read_truth(str(path), CLASSES)
    assert truth.corners is None
    assert truth.images.to_pylist() == ["007"]
    assert truth.boxes_of("007").shape == (0, 4)


def test_a_file_without_rows_is_a_truth_without_images(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("image_id,label\n")
    truth = read_truth(str(path), CLASSES)
    assert (len(truth.images), len(truth.labels)) == (0, 0)
    assert truth.index_of(pa.array(["a"])).tolist() == [-1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": ["dog", None, "cat"]}, "without image_id or label"),
        ({"image_id": ["a", None, "b"]}, "without image_id or label"),
        ({"xmax": ["wide", 3, 5]}, "corners have to be numbers"),
        ({"ymax": [9, float("nan"), 6]}, "1 boxes have no area"),
        ({"label": [0.5, 1, 2]}, "not fractions"),
    ],
)
def test_unusable_truth_is_refused(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_truth(write(tmp_path, **changes), CLASSES)


def test_the_error_names_a_missing_column_or_file(tmp_path: Path) -> None:
    path = tmp_path / "truth.csv"
    path.write_text("image_id,label,xmin\na,cat,1\n")
    with pytest.raises(UsageError, match="no column 'ymin'"):
        read_truth(str(path), CLASSES)
    with pytest.raises(UsageError, match="cannot be read as Parquet"):
        read_truth(str(tmp_path / "absent.parquet"), CLASSES)
