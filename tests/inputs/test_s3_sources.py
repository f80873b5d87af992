"""Inputs in S3, on a real server: images, Parquet, manifests and labels, and the bytes of items."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from camworker.errors import Failure, UsageError
from camworker.inputs import ReadPolicy
from camworker.inputs.fetch import open_fetchers
from camworker.inputs.sources import check_location, open_source
from camworker.inputs.tabular import column_types
from camworker.schemas import ITEMS
from camworker.storage.s3 import S3Client
from camworker.storage.uris import split_s3_uri
from support.factories import CLASSES, column, items_of
from support.seaweedfs import BUCKET

pytest_plugins = ["support.s3_fixtures"]

CLIENT = S3Client()  # It connects when the first fixture has set the environment.

ODD = [
    *("a b.jpg", "a#b?c.JPG", "100%.jpg", "%41.jpg", "a+b&c;d=[x].png", 'it\'s "q".jpg', "größe/日本.webp"),
    *("dots...jpg", "deep/er/..x.jpg", "a:b.jpg", "~|^`{}<>.jpg"),
]


@pytest.fixture(autouse=True)
def _found(in_s3):
    """Let boto3 find the real server."""


@pytest.fixture
def root(request):
    """A prefix for one test, with unusual characters."""
    return f"s3://{BUCKET}/{request.node.name} #?%41"


def put(uri, data):
    assert CLIENT.create(*split_s3_uri(uri), data)
    return uri


def put_table(uri, columns, **options):
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer, **options)
    return put(uri, buffer.getvalue())


def fetch_all(source, items=None):
    results = [fetch() for fetch in open_fetchers(items or source.items, source.policy)]
    return [data.status if isinstance(data, Failure) else data for data in results]


def replace(real_s3, uri, data):
    bucket, key = split_s3_uri(uri)
    real_s3.client().put_object(Bucket=bucket, Key=key, Body=data)


def test_images_below_a_prefix(real_s3, root):
    for key in (*ODD, "notes.txt", "x.jpg.part"):
        put(f"{root}/{key}", key.encode())
    put(f"{root}2/other.jpg", b"beside")
    source = open_source(f"{root}/", CLASSES)
    assert column(source.items, "image_id") == sorted(ODD)
    assert column(source.items, "uri") == [f"{root}/{key}" for key in sorted(ODD)]
    assert column(source.items, "size") == [len(key.encode()) for key in sorted(ODD)]
    assert source.items.schema.equals(ITEMS)
    assert source.policy.check_identity
    assert fetch_all(source) == [key.encode() for key in sorted(ODD)]
    # Replace one image by another of the same size and delete one.
    replace(real_s3, f"{root}/%41.jpg", b"%42.jpg")
    real_s3.client().delete_object(Bucket=BUCKET, Key=f"{root}/100%.jpg".removeprefix(f"s3://{BUCKET}/"))
    expected = [key.encode() for key in sorted(ODD)]
    expected[sorted(ODD).index("%41.jpg")] = "changed"
    expected[sorted(ODD).index("100%.jpg")] = "read_error"
    assert fetch_all(source) == expected
    remaining = sorted({*ODD} - {"100%.jpg", "größe/日本.webp"})
    assert column(items_of(root, exclude=f"{root}/größe"), "image_id") == remaining


@pytest.mark.parametrize(
    "location", ["s3://bucket/nothing", "s3://bucket/nothing.parquet", "s3://no-bucket/a"]
)
def test_missing_location_is_refused(location):
    with pytest.raises(UsageError, match=location):
        check_location(location)


def test_parquet_below_a_prefix(real_s3, root):
    for name in ("b", "deep/a"):
        ids = [f"{name[-1]}{n}" for n in range(6)]
        columns = {"id": ids, "image": [{"bytes": i.encode(), "path": None} for i in ids], "label": [1] * 6}
        put_table(f"{root}/{name}.parquet", columns, row_group_size=2)
    source = open_source(root, CLASSES)
    assert column(source.items, "image_id") == [f"{name}{n}" for name in "ba" for n in range(6)]
    assert column(source.items, "labels") == [[1]] * 12
    assert list(source.policy.tables) == [f"{root}/b.parquet", f"{root}/deep/a.parquet"]
    assert fetch_all(source) == [i.encode() for i in column(source.items, "image_id")]
    assert fetch_all(source, source.items.slice(3, 5)) == [b"b3", b"b4", b"b5", b"a0", b"a1"]
    put_table(f"{root}/other.parquet", {"id": ["x"], "image": [b"x"]})
    replace(real_s3, f"{root}/b.parquet", CLIENT.read(*split_s3_uri(f"{root}/other.parquet")))
    assert fetch_all(source) == ["changed"] * 6 + [b"a%d" % n for n in range(6)]
    one = open_source(f"{root}/other.parquet", CLASSES)
    assert (column(one.items, "image_id"), fetch_all(one)) == (["x"], [b"x"])


def test_only_the_needed_bytes_are_read(root, monkeypatch):
    """Planning reads the footer and the ids of a file of 5 MB; a shard reads about its own row group."""
    random = np.random.default_rng(0)
    images = [random.bytes(10_000) for _ in range(500)]
    path = put_table(f"{root}/t.parquet", {"id": range(500), "image": images}, row_group_size=50)
    sizes, get = [], S3Client._get

    def counted(*args, **kwargs):
        result = get(*args, **kwargs)
        sizes.append(len(result.data))
        return result

    monkeypatch.setattr(S3Client, "_get", counted)
    source = open_source(path, CLASSES)
    assert sum(sizes) < 700_000
    sizes.clear()
    assert fetch_all(source, source.items.slice(100, 50)) == images[100:150]
    assert 500_000 < sum(sizes) < 800_000


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
@pytest.mark.parametrize("where", ["local", "s3"])
def test_manifest_of_several_buckets_and_local_files(real_s3, root, tmp_path, where, suffix):
    real_s3.client().create_bucket(Bucket=f"{where}-{suffix}")
    first = put(f"{root}/images/a b.jpg", b"first")
    second = f"s3://{where}-{suffix}/?#.jpg"
    put(second, b"second")
    (tmp_path / "c.jpg").write_bytes(b"local")
    uris = [first, second, str(tmp_path / "c.jpg"), f"{root}/gone.jpg"]
    location = f"{root}/list.{suffix}" if where == "s3" else str(tmp_path / f"list.{suffix}")
    buffer = io.BytesIO()
    if suffix == "csv":
        buffer.write(("uri\n" + "\n".join(uris)).encode())
    else:
        pq.write_table(pa.table({"uri": uris}), buffer)
    if where == "s3":
        put(location, buffer.getvalue())
        with pytest.raises(UsageError, match=r"row 3: .*c\.jpg lies in none of .*none are local"):
            items_of(location)
    else:
        (tmp_path / f"list.{suffix}").write_bytes(buffer.getvalue())
    source = open_source(location, CLASSES, policy=ReadPolicy(roots=(str(tmp_path),)))
    assert column(source.items, "uri") == uris
    assert fetch_all(source) == [b"first", b"second", b"local", "read_error"]


def test_relative_uris_of_a_manifest_in_s3(root):
    put(f"{root}/images/a.jpg", b"data")
    location = put(f"{root}/list.csv", b"uri\nimages/a.jpg\n")
    assert fetch_all(open_source(location, CLASSES)) == [b"data"]


def test_etags_of_a_manifest_are_checked(real_s3, root):
    """ETags are quoted, as in S3's headers, or not, as in S3 Inventory."""
    uris = [put(f"{root}/{n}.jpg", b"%d" % n) for n in range(3)]
    etags = [CLIENT.entry(*split_s3_uri(uri)).identity.removesuffix("-1") for uri in uris]
    columns = {"uri": uris, "etag": [etags[0], f'"{etags[1]}"', etags[2]], "size": [1, 1, 1]}
    location = put_table(f"{root}/list.parquet", columns)
    source = open_source(location, CLASSES)
    assert source.policy.check_identity
    assert column(source.items, "identity") == [f"{etag}-1" for etag in etags]
    replace(real_s3, uris[1], b"x")
    assert fetch_all(source) == [b"0", "changed", b"2"]


def test_s3_inventory(root):
    keys = ["a b.jpg", "old.jpg", "gone.jpg", "notes.txt", "c#%41.png"]
    for key in keys:
        put(f"{root}/{key}", key.encode())
    entries = [CLIENT.entry(*split_s3_uri(f"{root}/{key}")) for key in keys]
    columns = {
        "bucket": [BUCKET] * 5,
        "key": [entry.key for entry in entries],
        "size": [entry.size for entry in entries],
        "e_tag": [entry.identity.rpartition("-")[0] for entry in entries],
        "is_latest": [True, False, True, True, True],
        "is_delete_marker": [False, False, True, False, False],
    }
    source = open_source(put_table(f"{root}/inventory/data.parquet", columns), CLASSES)
    assert column(source.items, "image_id") == [f"{root}/a b.jpg", f"{root}/c#%41.png"]
    assert source.policy.check_identity
    assert fetch_all(source) == [b"a b.jpg", b"c#%41.png"]


def test_labels_of_a_file_in_s3(root):
    put(f"{root}/in/007.jpg", b"")
    put(f"{root}/in/b.jpg", b"")
    labels = put(f"{root}/labels #1.csv", b"image_id,label\n007.jpg,dog\nb.jpg,0\n")
    other_labels = put_table(f"{root}/labels.parquet", {"image_id": ["b.jpg"], "label": [3]})
    assert column(items_of(f"{root}/in", image_labels=other_labels), "labels") == [[], [3]]
    assert list(column_types(labels)) == ["image_id", "label"]
    with pytest.raises(UsageError, match=r"nowhere\.csv cannot be read as CSV"):
        items_of(f"{root}/in", image_labels=f"{root}/nowhere.csv")
