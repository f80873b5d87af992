"""Manifests of URIs, and labels of images in tables and files."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from camworker.errors import Failure, UsageError
from camworker.inputs import ReadPolicy
from camworker.inputs.fetch import open_fetchers
from camworker.inputs.sources import open_source
from camworker.schemas import ITEMS
from support.factories import CLASSES, column, items_of


def write(path, columns):
    """Write columns as Parquet, or text, to a file."""
    if isinstance(columns, str):
        path.write_text(columns)
    else:
        pq.write_table(pa.table(columns), path)
    return str(path)


@pytest.fixture
def images(tmp_path):
    """A folder with three images."""
    (tmp_path / "in/deep").mkdir(parents=True)
    for name in ("007.jpg", "b #1%20.jpg", "deep/c.jpg"):
        (tmp_path / "in" / name).write_bytes(name.encode())
    return tmp_path / "in"


# URIs


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_manifest(images, suffix):
    uris = ["007.jpg", "b #1%20.jpg", str(images / "deep/c.jpg"), "deep/../deep/gone.jpg"]
    table = "uri\n" + "\n".join(uris) if suffix == "csv" else {"uri": uris}
    source = open_source(write(images / f"list.{suffix}", table), CLASSES)
    # Without ids, the id is the URI as it is written. Relative paths start at the folder of the manifest.
    assert column(source.items, "image_id") == column(source.items, "identity") == uris
    assert column(source.items, "uri") == [
        *(str(images / name) for name in ("007.jpg", "b #1%20.jpg", "deep/c.jpg", "deep/gone.jpg"))
    ]
    assert source.items.schema.equals(ITEMS)
    assert not source.policy.check_identity
    results = [fetch() for fetch in open_fetchers(source.items, ReadPolicy(check_identity=False))]
    assert results[:3] == [b"007.jpg", b"b #1%20.jpg", b"deep/c.jpg"]
    assert isinstance(results[3], Failure)
    assert results[3].status == "read_error"


def test_csv_may_have_a_column_image(images):
    """A CSV file cannot hold bytes, so the column is ignored."""
    items = items_of(write(images / "list.csv", "image_id,image,uri\n1,a cat,007.jpg\n"))
    assert column(items, "uri") == [str(images / "007.jpg")]


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("http://169.254.169.254/latest/meta-data/", r"row 2: http://\.\.\. cannot be read"),
        ("file:///etc/passwd", r"row 2: file://\.\.\. cannot be read"),
        ("https://user:canary@host/a.jpg", "row 2: a URI holds credentials"),
        ("s3://key:canary@bucket/a.jpg", "row 2: a URI holds credentials"),
        ("s3://bucket/a.jpg?X-Amz-Signature=canary", "row 2: a URI holds credentials"),
        ("s3:///a.jpg", "names no bucket"),
        ("/etc/passwd", r"row 2: /etc/passwd lies in none of .*/in\): name its folder"),
        ("../secret.jpg", r"row 2: .*/secret\.jpg lies in none of .*/in"),
        ("deep/../../in2/a.jpg", r"row 2: .*/in2/a\.jpg lies in none of"),
    ],
)
@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_uris_outside_the_input_are_refused(images, suffix, uri, message):
    columns = f"uri\n007.jpg\n{uri}\n" if suffix == "csv" else {"uri": ["007.jpg", uri]}
    with pytest.raises(UsageError, match=message) as caught:
        items_of(write(images / f"list.{suffix}", columns))
    assert "canary" not in str(caught.value)
    assert str(caught.value).isprintable()


def test_manifest_may_name_files_in_the_roots(images, tmp_path, monkeypatch):
    (tmp_path / "lists").mkdir()
    path = write(tmp_path / "lists/list.csv", f"uri\n../in/007.jpg\n{images}/deep/c.jpg\n")
    with pytest.raises(UsageError, match="name its folder") as caught:
        items_of(path)
    assert caught.value.parameter == "local_root"
    with pytest.raises(UsageError, match=r"row 1: .*/in/007\.jpg"):
        items_of(path, policy=ReadPolicy(roots=(str(images / "deep"),)))
    monkeypatch.chdir(tmp_path)
    for roots in (("in",), (str(images),), (str(images / "deep"), str(tmp_path))):
        assert column(items_of(path, policy=ReadPolicy(roots=roots)), "uri") == [
            f"{images}/007.jpg",
            f"{images}/deep/c.jpg",
        ]


def test_manifest_may_name_files_anywhere_in_the_input(images):
    """The root is the input, not the folder of the manifest."""
    write(images / "deep/list.parquet", {"uri": ["../007.jpg"]})
    for name in ("007.jpg", "b #1%20.jpg", "deep/c.jpg"):
        (images / name).rename(images / f"{name}.data")
    assert column(items_of(str(images)), "uri") == [f"{images}/007.jpg"]


def test_s3_uris_are_not_changed(images):
    uris = ["s3://one/a b.jpg", "s3://two/#?%41/../x", "007.jpg"]
    source = open_source(write(images / "list.parquet", {"uri": uris}), CLASSES)
    assert column(source.items, "uri") == [*uris[:2], str(images / "007.jpg")]
    # The ETag of a local file cannot be checked.
    columns = {"uri": uris, "etag": ['"a-2"', "b", "c"], "size": [1, 2, 3]}
    source = open_source(write(images / "list.parquet", columns), CLASSES)
    assert column(source.items, "identity") == ["a-2-1", "b-2", "c-3"]
    assert not source.policy.check_identity
    columns = {name: values[:2] for name, values in columns.items()}
    assert open_source(write(images / "list.parquet", columns), CLASSES).policy.check_identity


def test_etag_and_size_are_the_identity(images):
    text = 'image_id,uri,etag,size\n007,007.jpg,"0123",7\n08,deep/c.jpg,abc,10\n'
    items = items_of(write(images / "list.csv", text))
    assert column(items, "image_id") == ["007", "08"]
    assert column(items, "identity") == ["0123-7", "abc-10"]
    assert column(items, "size") == [7, 10]


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
@pytest.mark.parametrize("name", ["size", "etag"])
def test_etag_or_size_alone_is_not_an_identity(images, suffix, name):
    table = {"uri": ["007.jpg"], name: [7]}
    path = write(images / f"list.{suffix}", f"uri,{name}\n007.jpg,7\n" if suffix == "csv" else table)
    assert column(items_of(path), "identity") == ["007.jpg"]


def test_identity_column_overrides_etag_and_size(images):
    text = "uri,etag,size,version\n007.jpg,a,7,012\n"
    assert column(items_of(write(images / "l.csv", text), identity_column="version"), "identity") == ["012"]


@pytest.mark.parametrize(
    "text",
    [
        "uri,etag,size\n007.jpg,a,7\nb.jpg,b,\n",
        "uri,etag,size\n007.jpg,a,7 kB\n",
        "image_id,uri\n1,007.jpg\n,b.jpg\n",
        "image_id,uri\n1,007.jpg\n2,\n",
    ],
    ids=["no size", "size in words", "no id", "no uri"],
)
def test_cells_that_cannot_be_planned_are_refused(images, text):
    with pytest.raises(UsageError):
        items_of(write(images / "list.csv", text))


# Labels in the input


@pytest.mark.parametrize(
    "labels",
    [
        pa.array([1, None, 0]),
        pa.array([1, None, 0], pa.uint8()),
        pa.array([1.0, None, 0.0]),  # pandas writes integers with gaps like this.
        pa.array(["dog", None, "cat"]),
        pa.array(["dog", None, "cat"]).dictionary_encode(),
        pa.array(["n02", None, "n01"]),
        pa.array(["1", None, "0"]),
        pa.array([[1, 1], None, [0]]),
        pa.array([["dog"], [], ["cat", None]]),
        pa.array([["dog"], [], ["cat"]], pa.large_list(pa.large_string())),
    ],
    ids=lambda labels: str(labels.type),
)
def test_label_column(tmp_path, labels):
    table = {"id": [1, 2, 3], "image": [b""] * 3, "label": labels}
    assert column(items_of(write(tmp_path / "t.parquet", table)), "labels") == [[1], [], [0]]


def test_labels_are_distinct_and_ascending(tmp_path):
    table = {"id": [1, 2], "image": [b""] * 2, "label": [[3, 0, 3, 1], [2]]}
    assert column(items_of(write(tmp_path / "t.parquet", table)), "labels") == [[0, 1, 3], [2]]


@pytest.mark.parametrize("second", ["1", "dog", ""])
def test_labels_with_gaps_in_csv(images, second):
    """An empty cell is not a label, even if other cells hold names."""
    path = write(images / "list.csv", f"uri,label\n007.jpg,\ndeep/c.jpg,{second}\n")
    assert column(items_of(path), "labels") == [[], [1] if second else []]


def test_labels_that_are_all_missing(tmp_path):
    table = {"id": [1], "image": [b""], "label": pa.nulls(1)}
    assert column(items_of(write(tmp_path / "t.parquet", table)), "labels") == [[]]


def test_tables_with_and_without_labels(tmp_path):
    write(tmp_path / "a.parquet", {"id": [1], "image": [b""], "label": ["dog"]})
    write(tmp_path / "b.parquet", {"id": [2], "image": [b""]})
    assert column(items_of(str(tmp_path)), "labels") == [[1], []]


# Labels in a file of their own


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
@pytest.mark.parametrize("names", [True, False])
def test_image_labels(images, suffix, names):
    rows = [("deep/c.jpg", 3), ("007.jpg", 1), ("deep/c.jpg", 0), ("007.jpg", 1), ("not in the input", 1)]
    rows = [(i, ("cat", "dog", "n03", "n04")[label] if names else label) for i, label in rows]
    table = {"image_id": [i for i, _ in rows], "label": [label for _, label in rows]}
    if suffix == "csv":
        table = "image_id,label\n" + "".join(f"{i},{label}\n" for i, label in rows)
    labels = write(images.parent / f"labels.{suffix}", table)
    items = items_of(str(images), image_labels=labels)
    assert column(items, "image_id") == ["007.jpg", "b #1%20.jpg", "deep/c.jpg"]
    assert column(items, "labels") == [[1], [], [0, 3]]
    assert items.schema.equals(ITEMS)


def test_image_ids_of_labels_are_text(tmp_path):
    table = {"image_id": ["007", "7"], "image": [b"", b""]}
    labels = write(tmp_path / "labels.csv", "image_id,label\n007,1\n")
    items = items_of(write(tmp_path / "t.parquet", table), image_labels=labels)
    assert column(items, "labels") == [[1], []]


def test_image_labels_are_added_to_the_column(tmp_path):
    table = {"id": [1, 2, 3], "image": [b""] * 3, "label": ["dog", "cat", None]}
    labels = write(tmp_path / "labels.csv", "image_id,label\n1,0\n1,1\n3,2\n2,\n3,\n")
    items = items_of(write(tmp_path / "t.parquet", table), image_labels=labels)
    assert column(items, "labels") == [[0, 1], [0], [2]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image_id,label\n007.jpg,cow\n", "column 'label': 1 labels.*'cow'"),
        ("image_id,label\n007.jpg,4\n", "'4'"),
        ("image_id,label\n007.jpg,-1\n", "'-1'"),
        ("image_id,label\n007.jpg,0.5\n", "not fractions"),
        ("image_id,label\n007.jpg,bird\n", "two classes each.*'bird'"),
        ("image_id,label\n7.jpg,1\n", "none of its image ids is .*'7.jpg' against '007.jpg'"),
        ("image,label\n007.jpg,1\n", "no column 'image_id': it has image, label"),
        ("image_id\n007.jpg\n", "no column 'label'"),
        ("", "cannot be read as CSV"),
    ],
)
def test_image_labels_that_cannot_be_used_are_refused(images, text, message):
    with pytest.raises(UsageError, match=message):
        items_of(str(images), image_labels=write(images.parent / "labels.csv", text))


def test_image_labels_for_an_empty_table_are_refused(images):
    table = {"id": pa.array([], pa.string()), "image": pa.array([], pa.binary())}
    labels = write(images.parent / "labels.csv", "image_id,label\n007.jpg,1\n")
    with pytest.raises(UsageError):
        items_of(write(images.parent / "t.parquet", table), image_labels=labels)


def test_missing_file_of_image_labels_is_refused(images):
    with pytest.raises(UsageError, match=r"nowhere\.csv"):
        items_of(str(images), image_labels=str(images / "nowhere.csv"))
