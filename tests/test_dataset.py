"""What a reader gets: the current row of every image of one recipe, and no damaged byte."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from camworker.dataset import (
    committed_parts,
    count_statuses,
    iter_latest,
    later_rows,
    latest,
    map_shape,
    read_latest,
)
from camworker.errors import CorruptedError, UsageError
from camworker.inference.predictions import FailedPrediction, Prediction
from camworker.inputs.sources import open_source
from camworker.ledger.ledger import Ledger
from camworker.schemas import ITEMS, CamShape, predictions_schema
from camworker.storage.local import LocalStore
from support.factories import TINY_CLASSES, run_generation
from support.recipes import make_recipe
from support.row_tables import make_boxes, predictions_table

RECIPE, OTHER = "r0123456789ab", "rba9876543210"


@pytest.fixture
def out(tmp_path):
    return str(tmp_path / "out")


def commit_rows(out, generation, shard=0, *, recipe=RECIPE, shape=(1, 4, 4), **statuses):
    """A part with rows of these statuses; the width of an image that is ok is its generation."""
    k, h, w = shape
    boxes = make_boxes(0, 1.0, np.array([[0, 0, 1, 1]], np.float32), 1)
    cams = np.full(shape, generation, np.float16)
    one = np.ones(k, np.float32)
    rows = [
        Prediction(generation, 1, one.astype(np.int32), ("cat",) * k, one, cams, boxes)
        if status == "ok"
        else FailedPrediction(status, "because")
        for status in statuses.values()
    ]
    item = {"uri": "/in", "identity": f"of {generation}", "labels": []}
    items = pa.Table.from_pylist([{**item, "image_id": i} for i in statuses], ITEMS)
    ledger = Ledger(LocalStore(out), recipe)
    ledger.write_recipe(make_recipe())
    # As in a real part, the metadata of no two of them are equal.
    about = {"generation": str(generation), "shard": str(shard)}
    table = predictions_table(items, generation, rows, CamShape(k, h, w)).replace_schema_metadata(about)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, write_page_checksum=True)
    assert ledger.store.create(ledger.part_key(generation, shard), sink.getvalue().to_pybytes())
    return ledger


def current(out, **options):
    table = latest(out, **options)
    return dict(zip(table["image_id"].to_pylist(), table["generation"].to_pylist(), strict=True))


def test_the_newer_row_wins(out):
    commit_rows(out, 1, 0, a="ok", b="ok", c="read_error")
    commit_rows(out, 1, 1, d="ok")
    commit_rows(out, 3, 0, b="ok", c="ok")
    commit_rows(out, 2, 0, b="ok", e="ok")
    assert current(out) == {"a": 1, "d": 1, "e": 2, "b": 3, "c": 3}
    table = latest(out)
    assert table.schema.equals(predictions_schema(CamShape(1, 4, 4)))
    assert table["width"].to_pylist() == table["generation"].to_pylist()
    assert table["cams"].combine_chunks().to_numpy_ndarray()[:, 0, 0, 0].tolist() == [1, 1, 2, 3, 3]


def test_a_newer_failure_is_current_too(out):
    commit_rows(out, 1, a="ok", b="ok")
    commit_rows(out, 2, a="decode_error")
    assert current(out) == {"b": 1, "a": 2}


def test_removed_images_are_left_out_until_they_are_back(out):
    commit_rows(out, 1, a="ok", b="ok")
    commit_rows(out, 2, a="removed")
    assert current(out) == {"b": 1}
    commit_rows(out, 3, a="ok")
    assert current(out) == {"b": 1, "a": 3}


def test_removed_in_the_only_generation(out):
    commit_rows(out, 1, a="ok", b="removed")
    assert current(out) == {"a": 1}


@pytest.mark.parametrize("generations", [1, 2])
@pytest.mark.parametrize(
    "columns", [["uri"], ["cams", "image_id"], ["status", "boxes"], ("width", "generation"), []]
)
def test_only_some_columns(out, columns, generations):
    for generation in range(1, generations + 1):
        commit_rows(out, generation, a="ok", b="removed", c="decode_error")
    table = latest(out, columns=columns)
    assert table.column_names == list(columns)
    if columns:
        assert table.equals(latest(out).select(list(columns)))
        assert table.num_rows == 2


def test_iter_latest_gives_a_table_for_each_part(out):
    commit_rows(out, 1, 0, a="ok", b="ok")
    commit_rows(out, 1, 1, c="ok")
    ledger = commit_rows(out, 2, 0, a="ok", b="ok")
    assert [table["image_id"].to_pylist() for table in iter_latest(ledger)] == [[], ["c"], ["a", "b"]]


def test_parts_are_read_one_by_one_with_what_is_newer(out):
    commit_rows(out, 1, 0, a="ok", b="ok", x="removed")
    commit_rows(out, 1, 1, c="ok", d="ok")
    commit_rows(out, 2, 0, b="ok", d="removed")
    ledger = commit_rows(out, 4, 0, b="poison", e="ok")
    parts = committed_parts(ledger)
    assert list(parts) == [(1, 0), (1, 1), (2, 0), (4, 0)]
    later = later_rows(ledger, parts)
    newest = dict(zip(later["image_id"].to_pylist(), later["generation_max"].to_pylist(), strict=True))
    assert newest == {"b": 4, "d": 2, "e": 4}  # what only the first generation holds is not among them
    found = [read_latest(ledger, key, later, ["image_id"])["image_id"].to_pylist() for key in parts.values()]
    assert found == [["a"], ["c"], [], ["b", "e"]]
    whole = pa.concat_tables([read_latest(ledger, key, later) for key in parts.values()])
    assert whole.replace_schema_metadata(None).equals(latest(out))


def test_one_generation_has_nothing_newer(out):
    commit_rows(out, 3, 0, a="ok", b="removed")
    ledger = commit_rows(out, 3, 1, c="ok")
    parts = committed_parts(ledger)
    assert later_rows(ledger, parts) is None
    assert [read_latest(ledger, key, None)["image_id"].to_pylist() for key in parts.values()] == [
        ["a"],
        ["c"],
    ]


def test_only_later_generations_are_read_for_what_is_newer(out, tmp_path):
    commit_rows(out, 1, 0, a="ok", b="ok")
    ledger = commit_rows(out, 2, 0, b="ok")
    parts = committed_parts(ledger)
    (tmp_path / "out" / parts[1, 0]).write_bytes(b"no Parquet")
    assert later_rows(ledger, parts).to_pylist() == [{"image_id": "b", "generation_max": 2}]


def test_the_shape_of_the_maps_of_a_part(out):
    ledger = commit_rows(out, 1, shape=(3, 5, 6), a="ok", b="poison")
    assert map_shape(ledger, committed_parts(ledger)[1, 0]) == (5, 6)


def test_statuses_are_counted(out):
    commit_rows(out, 1, 0, a="ok", b="read_error")
    ledger = commit_rows(out, 1, 1, c="ok", d="poison")
    keys = list(committed_parts(ledger).values())
    assert count_statuses(ledger, keys) == {"ok": 2, "read_error": 1, "poison": 1}
    assert count_statuses(ledger, keys[1:]) == {"ok": 1, "poison": 1}
    assert count_statuses(ledger, []) == {}


def test_several_recipes(out):
    commit_rows(out, 1, a="ok")
    commit_rows(out, 1, recipe=OTHER, shape=(2, 5, 6), b="ok")
    with pytest.raises(UsageError, match=f"several recipes.*{RECIPE}, {OTHER}"):
        latest(out)
    assert current(out, recipe=RECIPE) == {"a": 1}
    assert latest(out, OTHER)["cams"].type.shape == [2, 5, 6]
    with pytest.raises(UsageError, match="no recipe r000000000000"):
        latest(out, "r000000000000")


def test_nothing_to_read(out):
    with pytest.raises(UsageError, match="holds no predictions"):
        latest(out)
    Ledger(LocalStore(out), RECIPE).write_recipe(make_recipe())
    with pytest.raises(UsageError, match="no committed part yet"):
        latest(out)


@pytest.mark.parametrize(
    ("column", "page"),
    [
        *((column, "data") for column in ("image_id", "status", "cams", "boxes.list.element.xmin")),
        *((column, "dictionary") for column in ("status", "names.list.element")),
    ],
)
def test_a_flipped_bit_is_noticed(tmp_path, out, tiny_localizer, folder, column, page):
    run_generation(
        Ledger(LocalStore(out), RECIPE), tiny_localizer, open_source(str(folder), TINY_CLASSES).items
    )
    (part,) = (tmp_path / "out/predictions").rglob("*.parquet")
    group = pq.ParquetFile(part).metadata.row_group(0)
    chunks = [group.column(n) for n in range(group.num_columns)]
    chunk = next(chunk for chunk in chunks if chunk.path_in_schema.startswith(column))
    assert chunk.has_dictionary_page or page == "data"
    start = chunk.dictionary_page_offset if chunk.has_dictionary_page else chunk.data_page_offset
    end = chunk.data_page_offset if page == "dictionary" else start + chunk.total_compressed_size
    assert latest(out).num_rows == 11
    data = bytearray(part.read_bytes())
    data[end - 1] ^= 1  # the last byte of the page: its values, not its header
    part.write_bytes(data)
    with pytest.raises(CorruptedError, match="CRC"):
        latest(out)
