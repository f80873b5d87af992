"""Files of items keep their order and are queried with little memory."""

import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from camworker.errors import UsageError
from camworker.inputs.duckdb_scratch import ItemsFile, TableWriter, copy, open_duckdb, parquet
from camworker.inputs.item_queries import ItemStats, by_image_id, measure, select_items
from camworker.inputs.sampling import select
from camworker.schemas import ITEMS
from support.factories import ids, make_items

COUNT = 300_000


def file_of(folder, items):
    """Write items to a file in a folder."""
    file = ItemsFile(folder / "items.parquet")
    with TableWriter(file.path, ITEMS) as writer:
        writer.write(items)
    return file


@pytest.fixture(scope="module")
def many():
    """Shuffled items, more than DuckDB and Parquet process in one batch."""
    names = [f"{n:06d}" for n in range(COUNT)]
    random.Random(0).shuffle(names)
    items = make_items("x").take([0] * COUNT)
    return items.set_column(0, ITEMS.field("image_id"), pa.array(names))


def test_items_are_read_as_they_were_written(tmp_path, many):
    file = file_of(tmp_path, many)
    assert file.count == COUNT
    assert file.read().equals(many)
    assert file.first(3).equals(many.slice(0, 3))
    assert max(batch.num_rows for batch in file.batches()) < COUNT
    assert file_of(tmp_path, many.slice(0, 0)).read().equals(ITEMS.empty_table())


@pytest.mark.parametrize(
    ("limit", "sample"),
    [(None, None), (100_001, None), (None, 70_000), (200_000, 1_000), (5, 9), (COUNT + 1, 3)],
)
def test_selection_equals_that_of_a_table(tmp_path, many, limit, sample):
    selected = select_items(file_of(tmp_path, many), limit=limit, sample=sample, seed=7).read()
    assert selected.equals(select(many, limit=limit, sample=sample, seed=7))


def test_items_are_ordered_by_id(tmp_path, many):
    assert ids(by_image_id(file_of(tmp_path, many)).read()) == sorted(ids(many))


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), unique=True))
def test_order_by_id_is_by_code_points(tmp_path_factory, names):
    folder = tmp_path_factory.mktemp("order")
    assert ids(by_image_id(file_of(folder, make_items(*names))).read()) == sorted(names)


def test_statistics_of_items(tmp_path):
    items = pa.concat_tables([make_items("a", labels=[1, 2]), make_items("b", "c")])
    assert measure(file_of(tmp_path, items)) == ItemStats(3, 3, 3, 2)
    removed = pa.Table.from_pylist([{"image_id": "d", "uri": "/in/d", "labels": []}], ITEMS)
    assert measure(file_of(tmp_path, pa.concat_tables([items, removed]))) == ItemStats(4, 3, 3, 2)
    unsized = items.set_column(5, ITEMS.field("size"), pa.array([1, None, 1], pa.int64()))
    assert measure(file_of(tmp_path, unsized)) == ItemStats(3, 3, None, 2)
    assert measure(file_of(tmp_path, items.slice(0, 0))) == ItemStats(0, 0, 0, 0)


def sort(folder, items, **settings):
    """Sort items by id in DuckDB with these settings and return the file."""
    file, target = file_of(folder, items), folder / "sorted.parquet"
    with open_duckdb(folder) as connection:
        for name, value in settings.items():
            connection.execute(f"set {name} = '{value}'").fetchall()
        copy(connection, f"select * from {parquet(file.path)} order by image_id", target)
    return target


def test_queries_beyond_the_memory_limit_spill_to_disk(tmp_path, many):
    target = sort(tmp_path, many, memory_limit="32MB", threads=1)
    assert pq.read_table(target)["image_id"].to_pylist() == sorted(ids(many))


def test_full_disk_is_a_one_line_error(tmp_path, many):
    with pytest.raises(UsageError, match=r"^there is not enough space in .* to plan: set TMPDIR"):
        sort(tmp_path, many, memory_limit="32MB", threads=1, max_temp_directory_size="1MB")
