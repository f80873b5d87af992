"""Inputs are listed as items, and the items give the bytes of their images."""

import os

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from camworker.errors import Failure, UsageError
from camworker.inputs import ReadPolicy
from camworker.inputs.fetch import MAX_FILE_BYTES, open_fetchers
from camworker.inputs.sources import open_source
from camworker.schemas import ITEMS
from camworker.storage.uris import entry_of
from support.factories import CLASSES, column, items_of, write_table

UNCHECKED = ReadPolicy(check_identity=False)


def fetch_all(items, policy=ReadPolicy()):
    """Return the bytes of each item, or the status of its failure."""
    results = [fetch() for fetch in open_fetchers(items, policy)]
    return [data.status if isinstance(data, Failure) else data for data in results]


# Folders


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "in put#?%20"
    (root / "deep/er").mkdir(parents=True)
    for name in ("b.jpg", "a.JPEG", "deep/c d.png", "deep/er/é.WebP", "notes.txt", "deep/jpg", "x.jpg.part"):
        (root / name).write_bytes(name.encode())
    return root


def test_images_in_a_folder(folder):
    source = open_source(str(folder), CLASSES)
    assert column(source.items, "image_id") == ["a.JPEG", "b.jpg", "deep/c d.png", "deep/er/é.WebP"]
    assert column(source.items, "uri") == [str(folder / i) for i in column(source.items, "image_id")]
    assert column(source.items, "identity")[0] == entry_of(str(folder / "a.JPEG")).identity
    assert column(source.items, "size")[:2] == [6, 5]
    assert set(column(source.items, "source_row")) == {None}
    assert source.items.schema.equals(ITEMS)
    assert source.policy.check_identity
    assert fetch_all(source.items) == [i.encode() for i in column(source.items, "image_id")]


@pytest.mark.parametrize("names", [[], ["notes.txt"], ["images.csv"]])
def test_folder_without_images_is_refused(tmp_path, names):
    for name in names:
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(UsageError, match="holds neither images"):
        items_of(str(tmp_path))


def test_file_name_that_is_not_utf8_keeps_a_row_that_cannot_be_read(folder):
    with open(os.path.join(os.fsencode(folder), b"\xff\xfe.jpg"), "wb") as file:
        file.write(b"data")
    items = items_of(str(folder))
    assert items.num_rows == 5
    row = column(items, "image_id").index(r"\xff\xfe.jpg")
    results = fetch_all(items)
    assert results.pop(row) == "read_error"
    assert all(isinstance(data, bytes) for data in results)


def test_files_that_were_removed_or_replaced_after_listing(folder):
    items = items_of(str(folder))
    (folder / "a.JPEG").unlink()
    (folder / "b.jpg").write_bytes(b"replaced")
    assert fetch_all(items)[:3] == ["read_error", "changed", b"deep/c d.png"]
    # Without a check of identities, a replaced file is read.
    assert fetch_all(items, UNCHECKED)[:3] == ["read_error", b"replaced", b"deep/c d.png"]


@pytest.mark.parametrize("name", ["nowhere", "deep/jpg", "notes.txt"])
def test_other_paths_are_refused(folder, name):
    with pytest.raises(UsageError, match=name):
        items_of(str(folder / name))


# Parquet with images


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), "struct"])
def test_images_in_parquet(tmp_path, kind):
    images = [b"one", b"two", None]
    if kind == "struct":
        # Hugging Face writes this struct; the path in it is not read.
        image = pa.array([{"bytes": data, "path": "/nowhere/x.jpg"} for data in images])
    else:
        image = pa.array(images, kind)
    path = write_table(tmp_path / "t.parquet", image_id=["a", "b", "c"], image=image, other=[1, 2, 3])
    source = open_source(path, CLASSES)
    assert column(source.items, "image_id") == ["a", "b", "c"]
    assert column(source.items, "source_row") == [0, 1, 2]
    assert column(source.items, "uri") == [path] * 3
    assert len(set(column(source.items, "identity"))) == 3
    assert source.items.schema.equals(ITEMS)
    assert source.policy.tables.keys() == {path}
    assert fetch_all(source.items, source.policy) == [b"one", b"two", "read_error"]


def test_null_struct_is_a_read_error(tmp_path):
    image = pa.array([None, {"bytes": b"one", "path": None}])
    assert fetch_all(items_of(write_table(tmp_path / "t.parquet", id=[1, 2], image=image))) == [
        "read_error",
        b"one",
    ]


@pytest.mark.parametrize(
    ("columns", "option", "expected"),
    [
        ({"image_id": ["x", "y"], "id": [1, 2]}, None, ["x", "y"]),
        ({"id": [1, 2]}, None, ["1", "2"]),
        ({"image_id": ["x", "y"], "mine": ["007", "07"]}, "mine", ["007", "07"]),
    ],
)
def test_id_column(tmp_path, columns, option, expected):
    path = write_table(tmp_path / "t.parquet", image=[b"1", b"2"], **columns)
    assert column(items_of(path, id_column=option), "image_id") == expected


def test_identity_column(tmp_path):
    path = write_table(tmp_path / "t.parquet", id=[1, 2], image=[b"1", b"2"], version=[10, 20])
    source = open_source(path, CLASSES, identity_column="version")
    assert column(source.items, "identity") == ["10", "20"]
    assert not source.policy.check_identity
    assert fetch_all(source.items, source.policy) == [b"1", b"2"]


@pytest.fixture
def tables(tmp_path):
    """Two files of 200 rows in row groups of 90, 90 and 20 rows; a batch has 64."""
    (tmp_path / "in/deep").mkdir(parents=True)
    for name in ("a", "deep/b"):
        ids = [f"{name[-1]}{n}" for n in range(200)]
        table = pa.table({"id": ids, "image": [i.encode() for i in ids]})
        pq.write_table(table, tmp_path / f"in/{name}.parquet", row_group_size=90)
    return str(tmp_path / "in")


@pytest.mark.parametrize(
    ("rows", "groups"),
    [
        ([0], [0]),
        ([0, 63, 64, 89, 90, 153, 154, 179, 180, 199], [0, 1, 2]),
        ([85, 86, 199], [0, 2]),
        ([95, 190, 295, 399], [1, 2, 1, 2]),
        (list(range(400)), [0, 1, 2, 0, 1, 2]),
    ],
)
def test_only_row_groups_with_items_are_read(tables, monkeypatch, rows, groups):
    groups_read, iter_batches = [], pq.ParquetFile.iter_batches

    def recorded(self, *args, row_groups, columns, **kwargs):
        assert columns == ["image"]
        groups_read.extend(row_groups)
        return iter_batches(self, *args, row_groups=row_groups, columns=columns, **kwargs)

    items = items_of(tables).take(rows)
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", recorded)
    assert fetch_all(items) == [i.encode() for i in column(items, "image_id")]
    assert groups_read == groups


def test_all_rows_of_a_replaced_table_are_changed(tables):
    source = open_source(tables, CLASSES)
    write_table(os.path.join(tables, "a.parquet"), id=["a0"], image=[b"other"])
    expected = ["changed"] * 200 + [f"b{n}".encode() for n in range(200)]
    assert fetch_all(source.items, source.policy) == expected
    os.unlink(os.path.join(tables, "a.parquet"))
    assert fetch_all(source.items, source.policy)[:200] == ["read_error"] * 200


@pytest.mark.parametrize(
    ("image", "expected"),
    [([b"1"], [b"1", "changed", "changed"]), ([1, 2, 3], ["read_error"] * 3)],
    ids=["shorter", "no bytes"],
)
def test_replaced_table_without_a_known_identity(tmp_path, image, expected):
    """Each item still has one result, and rows without bytes are errors."""
    path = write_table(tmp_path / "t.parquet", id=[1, 2, 3], image=[b"a", b"b", b"c"], version=[1, 1, 1])
    items = items_of(path, identity_column="version")
    write_table(tmp_path / "t.parquet", id=list(range(len(image))), image=image)
    assert fetch_all(items, UNCHECKED) == expected


def test_rewritten_table_never_gives_the_bytes_of_another_image(tmp_path):
    """The rows have moved, and the identities that the table gives are the same."""
    path = write_table(tmp_path / "t.parquet", id=["a", "b"], image=[b"a", b"b"], version=[1, 1])
    source = open_source(path, CLASSES, identity_column="version")
    write_table(tmp_path / "t.parquet", id=["b", "a"], image=[b"b", b"a"], version=[1, 1])
    assert fetch_all(source.items, source.policy) == ["changed"] * 2


def test_damaged_row_group_affects_only_its_own_rows(tables):
    """Rows before and after the damaged row group are read."""
    path = os.path.join(tables, "a.parquet")
    items = items_of(path)
    group = pq.ParquetFile(path).metadata.row_group(1).column(1)
    with open(path, "r+b") as file:
        file.seek(group.dictionary_page_offset or group.data_page_offset)
        file.write(b"\xff" * group.total_compressed_size)
    expected = [f"a{n}".encode() for n in range(200)]
    expected[90:180] = ["read_error"] * 90
    assert fetch_all(items, UNCHECKED) == expected


@pytest.mark.parametrize("kind", [pa.string(), pa.list_(pa.uint8()), pa.struct([("path", pa.string())])])
def test_column_image_without_bytes_is_ignored_if_there_are_uris(tmp_path, kind):
    (tmp_path / "a.jpg").write_bytes(b"a")
    image = pa.nulls(1, kind)
    path = write_table(tmp_path / "t.parquet", id=[1], image=image, uri=["a.jpg"])
    assert fetch_all(items_of(path), UNCHECKED) == [b"a"]
    with pytest.raises(UsageError, match=r"'image' holds .*, not bytes"):
        items_of(write_table(tmp_path / "t.parquet", id=[1], image=image))


def test_output_inside_its_input_is_not_listed(tables):
    write_table(os.path.join(tables, "out.parquet"), id=["x"], image=[b"x"])
    os.makedirs(os.path.join(tables, "out"))
    write_table(os.path.join(tables, "out", "part.parquet"), id=["a0"], image=[b"other"])
    source = open_source(tables, CLASSES, exclude=os.path.join(tables, "out"))
    assert source.items.num_rows == 401


def test_removed_items_are_not_read(tables, folder):
    """Their files and tables are not opened, and the items between them are read."""
    items = pa.concat_tables([items_of(tables), items_of(str(folder))])
    column_index = ITEMS.get_field_index("identity")
    identities = [None if n in (1, 2, 200, 401) else i for n, i in enumerate(column(items, "identity"))]
    expected = fetch_all(items, UNCHECKED)
    for n in (1, 2, 200, 401):
        expected[n] = "removed"
    items = items.set_column(column_index, ITEMS.field(column_index), pa.array(identities))
    assert fetch_all(items, UNCHECKED) == expected
    os.unlink(os.path.join(tables, "a.parquet"))
    assert fetch_all(items.slice(1, 2)) == ["removed"] * 2


def test_file_over_the_size_limit_is_not_read(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"")
    os.truncate(tmp_path / "a.jpg", MAX_FILE_BYTES + 1)
    assert fetch_all(items_of(str(tmp_path))) == ["too_large"]


def test_table_without_its_images_is_a_read_error(tmp_path):
    path = write_table(tmp_path / "t.parquet", id=[1, 2], image=[b"a", b"b"])
    items = items_of(path)
    write_table(tmp_path / "t.parquet", id=[1, 2])
    assert fetch_all(items, UNCHECKED) == ["read_error"] * 2
    (tmp_path / "t.parquet").write_bytes(b"no table")
    assert fetch_all(items, UNCHECKED) == ["read_error"] * 2


def test_results_do_not_depend_on_the_cut_into_shards(tables):
    items = items_of(tables)
    results = [data for start in range(0, 400, 37) for data in fetch_all(items.slice(start, 37))]
    assert results == fetch_all(items)
    only_b = items.filter(pc.starts_with(items["image_id"], "b"))
    assert fetch_all(only_b) == results[200:]
