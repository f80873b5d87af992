"""Labelled images from folders, tables and label files, and which of them are held back."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from camworker.classes import Classes
from camworker.errors import UsageError
from camworker.inputs.sources import open_source
from camworker.training.labelled_images import held_back, manifest, read_class_names, read_examples
from support.factories import make_items, photograph, write_table


@pytest.fixture
def classes_in_folders(tmp_path):
    for n, name in enumerate(["dog/1.png", "dog/2.png", "cat/deep/3.png", "bird/4.png"]):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(photograph(n))
    return tmp_path / "in"


def labels_of(examples):
    table = examples.listing.items
    return dict(zip(table["image_id"].to_pylist(), table["labels"].to_pylist(), strict=True))


def test_a_folder_for_each_class(classes_in_folders):
    examples = read_examples(str(classes_in_folders))
    assert examples.classes.names == ("bird", "cat", "dog")
    assert labels_of(examples) == {
        "bird/4.png": [0],
        "cat/deep/3.png": [1],
        "dog/1.png": [2],
        "dog/2.png": [2],
    }


def test_class_names_give_the_order(classes_in_folders, tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("dog\nfish\ncat\nbird\n\n")
    examples = read_examples(str(classes_in_folders), class_names=str(names))
    assert examples.classes.names == ("dog", "fish", "cat", "bird")
    assert labels_of(examples)["cat/deep/3.png"] == [2]


def test_a_folder_that_is_missing_in_the_class_names_is_refused(classes_in_folders, tmp_path):
    (tmp_path / "names.txt").write_text("dog\ncat\n")
    with pytest.raises(UsageError, match="'bird'"):
        read_examples(str(classes_in_folders), class_names=str(tmp_path / "names.txt"))


def test_a_folder_with_a_file_of_labels(folder, tmp_path):
    labels = write_table(tmp_path / "labels.parquet", image_id=["00.png", "01.png"], label=["b", "a"])
    examples = read_examples(str(folder), image_labels=labels)
    assert examples.classes.names == ("a", "b")
    assert labels_of(examples) == {"00.png": [1], "01.png": [0]}
    assert examples.unlabelled == 9


def test_several_labels_need_multi_label(folder, tmp_path):
    labels = write_table(
        tmp_path / "l.parquet", image_id=["00.png", "00.png", "01.png"], label=["b", "a", "b"]
    )
    with pytest.raises(UsageError, match=r"'00\.png' has 2 labels"):
        read_examples(str(folder), image_labels=labels)
    examples = read_examples(str(folder), image_labels=labels, multi_label=True)
    assert labels_of(examples)["00.png"] == [0, 1]
    # An image without a label shows none of the classes, and is used for training as well.
    assert examples.listing.items.num_rows == 11
    assert labels_of(examples)["05.png"] == []


def test_a_manifest_with_labels(folder, tmp_path):
    path = tmp_path / "in" / "m.csv"
    path.write_text("uri,label\n00.png,cat\n01.png,dog\n")
    examples = read_examples(str(path))
    assert examples.classes.names == ("cat", "dog")
    assert examples.listing.items["uri"].to_pylist() == [str(folder / "00.png"), str(folder / "01.png")]


def table_of(path, labels, metadata=None):
    table = pa.table(
        {"id": [str(n) for n in range(len(labels))], "image": [b""] * len(labels), "label": labels}
    )
    pq.write_table(table.replace_schema_metadata(metadata), path)
    return str(path)


def test_integers_without_names(tmp_path):
    assert read_examples(table_of(tmp_path / "a.parquet", [3, 0])).classes.names == ("0", "1", "2", "3")


def test_integers_with_hugging_faces_names(tmp_path):
    features = {"label": {"names": ["cat", "dog", "bird"], "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    examples = read_examples(table_of(tmp_path / "a.parquet", [2, 0], metadata))
    assert examples.classes.names == ("cat", "dog", "bird")
    assert labels_of(examples) == {"0": [2], "1": [0]}


def test_lists_of_labels(tmp_path):
    path = table_of(tmp_path / "a.parquet", [["b", "a"], ["c"], []])
    examples = read_examples(path, multi_label=True)
    assert examples.classes.names == ("a", "b", "c")
    assert labels_of(examples) == {"0": [0, 1], "1": [2], "2": []}


def test_unusable_labels_are_refused(folder, tmp_path):
    with pytest.raises(UsageError, match="one folder per class"):
        read_examples(str(folder))
    with pytest.raises(UsageError, match=r"one class, 'a'.*needs two or more"):
        read_examples(table_of(tmp_path / "one.parquet", ["a", "a"]))
    with pytest.raises(UsageError, match="is empty"):
        read_examples(table_of(tmp_path / "none.parquet", pa.array([None, None], pa.string())))
    with pytest.raises(UsageError, match="indices from 0"):
        read_examples(table_of(tmp_path / "minus.parquet", [-1, 2]))


def test_class_names_of_a_file(tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("cat\nJack Russell terrier \n")
    assert read_class_names(str(path)).names == ("cat", "Jack Russell terrier")
    for content in ("", "cat\n\ndog\n"):
        path.write_text(content)
        with pytest.raises(UsageError, match="one class name per line"):
            read_class_names(str(path))
    with pytest.raises(UsageError, match="cannot be read"):
        read_class_names(str(tmp_path / "nowhere"))


@given(st.lists(st.integers(0, 3), max_size=40), st.floats(0, 1), st.integers(-5, 5))
def test_a_fraction_of_each_class_is_held_back(labels, fraction, seed):
    items = pa.concat_tables([make_items(), *(make_items(str(n), labels=[k]) for n, k in enumerate(labels))])
    held = held_back(items, fraction, seed)
    for label in set(labels):
        held_of_class = held[np.array(labels) == label]
        if fraction and len(held_of_class) > 1:
            assert 1 <= held_of_class.sum() <= len(held_of_class) - 1
            assert abs(held_of_class.sum() - fraction * len(held_of_class)) <= 1
        else:
            assert held_of_class.sum() == round(fraction * len(held_of_class))


def test_held_back_images_depend_only_on_ids_and_seed():
    items = make_items(*map(str, range(50)), labels=[0])
    ids = np.array(items["image_id"].to_pylist())
    held = set(ids[held_back(items, 0.3, 1)])
    reversed_items = items.take(list(reversed(range(50))))
    assert set(np.array(reversed_items["image_id"].to_pylist())[held_back(reversed_items, 0.3, 1)]) == held
    assert set(ids[held_back(items, 0.3, 2)]) != held
    assert len(held) == 15


def test_the_manifest_can_be_read_as_input(folder, tmp_path):
    classes = Classes(("cat", "dog"))
    items = open_source(str(folder), classes).items.slice(0, 2)
    column = items.schema.get_field_index("labels")
    labels = pa.array([[1], [0, 1]], pa.list_(pa.int32()))
    items = items.set_column(column, items.schema.field(column), labels)
    pq.write_table(manifest(items, classes), tmp_path / "held.parquet")
    again = open_source(str(tmp_path / "held.parquet"), classes).items
    assert again["uri"].to_pylist() == items["uri"].to_pylist()
    assert again["labels"].to_pylist() == [[1], [0, 1]]
