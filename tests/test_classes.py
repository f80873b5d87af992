"""Labels in a user's table, of any type; labels that the network does not have are refused or counted."""

import numpy as np
import pyarrow as pa
import pytest

from camworker.classes import Classes
from camworker.errors import UsageError

CLASSES = Classes(("cat", "crane", "dog", "crane", "7"), ("n10", "n11", "n12", "n13", "n14"))


def indices(labels: pa.Array | pa.ChunkedArray, classes: Classes = CLASSES) -> list[int]:
    found = classes.resolve(labels, "labels.csv, column label")
    assert found.dtype == np.int32
    return found.tolist()


def refusal(labels: pa.Array, classes: Classes = CLASSES) -> str:
    with pytest.raises(UsageError) as caught:
        classes.resolve(labels, "labels.csv, column label")
    message = str(caught.value)
    assert message.startswith("labels.csv, column label: ")
    assert "\n" not in message
    return message


@pytest.mark.parametrize("kind", [pa.int8(), pa.int32(), pa.int64(), pa.uint8(), pa.uint64()])
def test_integers(kind):
    assert indices(pa.array([0, 4, 2, 2], kind)) == [0, 4, 2, 2]
    assert indices(pa.array([3, None, 0], kind)) == [3, -1, 0]
    assert indices(pa.array([], kind)) == []


@pytest.mark.parametrize("kind", [pa.float32(), pa.float64()])
def test_floats_are_integers_with_nulls(kind):
    assert indices(pa.array([1.0, None, 4.0], kind)) == [1, -1, 4]
    assert "fractions" in refusal(pa.array([1.0, 2.5], kind))
    assert "-1" in refusal(pa.array([-1.0], kind))


@pytest.mark.parametrize("value", [float("inf"), -float("inf"), 1e30, float("nan")])
def test_floats_that_are_no_integer(value):
    refusal(pa.array([value, 1.0]))


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_text(kind):
    labels = ["dog", "n10", "n13", "2", None, "cat", "dog"]
    assert indices(pa.array(labels, kind)) == [2, 0, 3, 2, -1, 0, 2]
    assert indices(pa.array([None, None], kind)) == [-1, -1]
    assert indices(pa.array([], kind)) == []


def test_names_win_over_digits():
    assert indices(pa.array(["7", "4"])) == [4, 4]  # the class called "7" is the fourth
    assert indices(pa.array([4])) == [4]
    assert "not among" in refusal(pa.array([7]))


def test_names_win_over_ids():
    classes = Classes(("b", "a"), ("a", "b"))
    assert indices(pa.array(["a", "b"]), classes) == [1, 0]


def test_dictionaries():
    labels = pa.array(["dog", None, "cat", "dog"]).dictionary_encode()
    assert indices(labels) == [2, -1, 0, 2]
    unused = pa.DictionaryArray.from_arrays(
        pa.array([1, 0, 1], pa.int8()), pa.array(["cat", "dog", "unicorn"])
    )
    assert indices(unused) == [2, 0, 2]  # a dictionary entry that no row uses is not an error
    assert indices(pa.array([3, 1, None]).dictionary_encode()) == [3, 1, -1]


def test_chunks():
    assert indices(pa.chunked_array([["dog", None], [], ["n11"]])) == [2, -1, 1]
    assert indices(pa.chunked_array([], pa.int64())) == []
    halves = [pa.array(["dog"]).dictionary_encode(), pa.array(["cat", "dog"]).dictionary_encode()]
    assert indices(pa.chunked_array(halves)) == [2, 0, 2]


def test_nothing_but_nulls():
    # The type of a CSV column without values.
    assert indices(pa.nulls(2)) == [-1, -1]


@pytest.mark.parametrize("label", [-1, 5, 1000])
def test_indices_out_of_range(label):
    message = refusal(pa.array([0, label, label, None]))
    assert "1 labels" in message
    assert str(label) in message
    assert "0 to 4" in message


def test_indices_beyond_any_integer():
    refusal(pa.array([2**63], pa.uint64()))


@pytest.mark.parametrize("label", ["unicorn", "Cat", " cat", "", "5", "-1", "1.0", "n15"])
def test_unknown_text(label):
    assert repr(label) in refusal(pa.array(["cat", label, label]))


def test_many_unknown_labels_are_counted_and_some_shown():
    message = refusal(pa.array([f"x{n}" for n in range(50)]))
    assert "50 labels" in message
    assert "'x0', 'x1', 'x2', ..." in message
    assert "x3" not in message


def test_a_name_of_two_classes_is_ambiguous():
    message = refusal(pa.array(["dog", "crane"]))
    assert "'crane'" in message
    assert "two classes" in message
    # Their ids and indices are not ambiguous.
    assert indices(pa.array(["n11", "n13", "1", "3"])) == [1, 3, 1, 3]
    assert indices(pa.array([1, 3])) == [1, 3]


@pytest.mark.parametrize("labels", [pa.array([True]), pa.array([b"cat"]), pa.array([["cat"]])])
def test_other_types(labels):
    assert str(labels.type) in refusal(labels)


def lookup(labels, classes=CLASSES):
    found, unknown = classes.lookup(labels, "truth.csv, column label")
    assert found.dtype == np.int32
    return found.tolist(), unknown


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_unknown_text_is_counted(kind):
    labels = pa.array(["dog", "unicorn", None, "n10", "unicorn", "5", "1", "yeti"]).cast(kind)
    assert lookup(labels) == ([2, -1, -1, 0, -1, -1, 1, -1], {"unicorn": 2, "5": 1, "yeti": 1})
    assert lookup(pa.chunked_array([labels.slice(0, 2), labels.slice(4, 1)])) == ([2, -1, -1], {"unicorn": 2})


@pytest.mark.parametrize("kind", [pa.int8(), pa.int64(), pa.float64()])
def test_unknown_indices_are_counted(kind):
    labels = pa.array([0, -1, 5, None, 5, 4, 100], kind)
    expected = ([0, -1, -1, -1, -1, 4, -1], {"-1": 1, "5": 2, "100": 1})
    assert lookup(labels) == lookup(labels.dictionary_encode()) == expected


def test_an_index_beyond_int32_is_no_class():
    assert lookup(pa.array([2**32, 2**32 + 1, 1])) == ([-1, -1, 1], {"4294967296": 1, "4294967297": 1})


def test_nothing_unknown():
    assert lookup(pa.array(["cat", "7", None])) == ([0, 4, -1], {})
    assert lookup(pa.array([], pa.string())) == ([], {})
    assert lookup(pa.array([], pa.int64())) == ([], {})
    assert lookup(pa.nulls(2)) == ([-1, -1], {})


@pytest.mark.parametrize("labels", [["crane"], ["unicorn", "crane"]])
def test_an_ambiguous_name_is_refused_along_with_unknown_ones(labels):
    with pytest.raises(UsageError, match=r"truth\.csv, column label: 1 names belong to two classes"):
        lookup(pa.array(labels))


@pytest.mark.parametrize("labels", [pa.array([0.5]), pa.array([True]), pa.array([2**63], pa.uint64())])
def test_values_that_are_not_labels_are_refused_by_both(labels):
    with pytest.raises(UsageError, match="labels are class indices or names"):
        lookup(labels)


def test_without_ids():
    classes = Classes(("cat", "dog"))
    assert len(classes) == 2
    assert indices(pa.array(["dog", "0"]), classes) == [1, 0]
    assert "n10" in refusal(pa.array(["n10"]), classes)


def test_classes_check_themselves():
    with pytest.raises(UsageError, match="at least one"):
        Classes(())
    with pytest.raises(UsageError, match="1 class ids for 2 class names"):
        Classes(("cat", "dog"), ("n10",))


def test_imagenet(default_package):
    labels = pa.array(["giant panda", "n02510455", "388", None])
    assert indices(labels, default_package.classes) == [388, 388, 388, -1]
    everything = default_package.classes
    assert indices(pa.array(everything.names), everything) == list(range(1000))
    assert indices(pa.array(everything.ids), everything) == list(range(1000))
