"""latest: the current row of every image of one recipe; damaged bytes are refused."""

import pyarrow.parquet as pq
import pytest

from camworker.dataset import latest
from camworker.errors import CorruptedError, UsageError
from camworker.inputs.sources import open_source
from camworker.ledger.ledger import Ledger
from camworker.schemas import PREDICTIONS, CamShape, cam_maps
from camworker.storage.local import LocalStore
from support.committed_rows import OTHER, RECIPE, commit_rows
from support.factories import TINY_CLASSES, run_generation
from support.recipes import make_recipe


@pytest.fixture
def out(tmp_path):
    return str(tmp_path / "out")


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
    assert table.schema.equals(PREDICTIONS)
    assert table["width"].to_pylist() == table["generation"].to_pylist()
    assert cam_maps(table["cams"], CamShape(1, 4, 4))[:, 0, 0, 0].tolist() == [1, 1, 2, 3, 3]


def test_a_newer_failure_is_current_too(out):
    commit_rows(out, 1, a="ok", b="ok")
    commit_rows(out, 2, a="decode_error")
    assert current(out) == {"b": 1, "a": 2}


def test_removed_images_are_left_out_until_they_come_back(out):
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


def test_several_recipes(out):
    commit_rows(out, 1, a="ok")
    commit_rows(out, 1, recipe=OTHER, shape=(2, 5, 6), b="ok")
    with pytest.raises(UsageError, match=f"several recipes.*{RECIPE}, {OTHER}"):
        latest(out)
    assert current(out, recipe=RECIPE) == {"a": 1}
    assert cam_maps(latest(out, OTHER)["cams"], CamShape(2, 5, 6)).shape == (1, 2, 5, 6)
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
    data[end - 1] ^= 1  # the last byte of the page belongs to its values, not to its header
    part.write_bytes(data)
    with pytest.raises(CorruptedError, match="CRC"):
        latest(out)
