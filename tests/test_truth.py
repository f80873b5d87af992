"""Truth files in long form: labels by index or name, corners by convention, what is refused."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from camworker.classes import Classes
from camworker.errors import UsageError
from camworker.truth import read_truth

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


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_rows_come_sorted_by_image_with_class_indices(tmp_path: Path, kind: str) -> None:
    truth = read_truth(write(tmp_path, kind), CLASSES)
    assert truth.image_ids.tolist() == ["a", "b", "b"]
    assert truth.labels.tolist() == [0, 1, 2]
    assert truth.corners.tolist() == [[1, 1, 3, 4], [0, 0, 9, 9], [2, 2, 5, 6]]


def test_inclusive_corners_become_half_open(tmp_path: Path) -> None:
    truth = read_truth(write(tmp_path), CLASSES, "inclusive")
    assert truth.corners.tolist() == [[1, 1, 4, 5], [0, 0, 10, 10], [2, 2, 6, 7]]


def test_a_box_of_one_pixel_has_an_area_only_inclusively(tmp_path: Path) -> None:
    path = write(tmp_path, xmax=[0, 3, 5])
    assert read_truth(path, CLASSES, "inclusive").corners[1].tolist() == [0, 0, 1, 10]
    with pytest.raises(UsageError, match=r"1 boxes have no area \(row 1, b"):
        read_truth(path, CLASSES)


def test_rows_of_images_are_found_in_any_order(tmp_path: Path) -> None:
    truth = read_truth(write(tmp_path), CLASSES)
    rows, in_truth = truth.of(np.array(["x", "b", "a"], object))
    assert rows.tolist() == [1, 1, 2]
    assert in_truth.tolist() == [1, 2, 0]


def test_truth_without_boxes_knows_labels_only(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("image_id,label\n007,cat\n")
    truth = read_truth(str(path), CLASSES)
    assert truth.corners is None
    assert truth.image_ids.tolist() == ["007"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": ["dog", "cat", "fish"]}, "fish"),
        ({"label": [0, 1, 3]}, "1 labels are not among"),
        ({"label": ["dog", None, "cat"]}, "without image_id or label"),
        ({"image_id": ["a", None, "b"]}, "without image_id or label"),
        ({"xmax": ["wide", 3, 5]}, "corners have to be numbers"),
        ({"ymax": [9, float("nan"), 6]}, "1 boxes have no area"),
    ],
)
def test_what_cannot_be_judged_by_is_refused(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_truth(write(tmp_path, **changes), CLASSES)


def test_a_missing_column_or_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "truth.csv"
    path.write_text("image_id,label,xmin\na,cat,1\n")
    with pytest.raises(UsageError, match="no column 'ymin'"):
        read_truth(str(path), CLASSES)
    with pytest.raises(UsageError, match="cannot be read as Parquet"):
        read_truth(str(tmp_path / "absent.parquet"), CLASSES)
