"""compact: the current rows of a recipe in a new data set, which is complete or absent."""

import json
import os
import threading

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from camworker.dataset import latest
from camworker.errors import CorruptedError, UsageError
from camworker.ledger import compact as compacting
from camworker.ledger.compact import compact, row_groups
from camworker.ledger.snapshot import Snapshot
from camworker.storage.uris import open_store
from jobs import cli
from support.factories import photographs_of
from support.recorded_generation import complete_generation, open_output
from support.seaweedfs import BUCKET

pytest_plugins = ["support.s3_fixtures"]


@pytest.fixture
def out(tmp_path, folder, tiny_localizer):
    """Eleven images in three parts, and a second generation with three of them, of which one was deleted."""
    ledger = open_output(tmp_path / "out")
    items = photographs_of(folder)
    complete_generation(ledger, tiny_localizer, items)
    (folder / "02.png").unlink()
    again = items.slice(2, 3)
    changed = pa.array(["changed"] * 3)
    again = again.set_column(3, items.schema.field("identity"), changed)
    complete_generation(ledger, tiny_localizer, again, generation=2)
    return tmp_path / "out"


def run(*arguments):
    return cli.main(["compact", *map(str, arguments)])


def test_the_current_rows_in_files_of_a_given_size(out, tmp_path, capsys):
    to = tmp_path / "new" / "rows"
    assert run(out, "--to", to, "--rows-per-file", 4, "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    files = sorted(to.iterdir())
    assert [path.name for path in files] == [f"part-00000{n}.parquet" for n in range(3)]
    assert [pq.ParquetFile(path).metadata.num_rows for path in files] == [4, 4, 3]
    expected = latest(str(out))
    assert expected["generation"].to_pylist() == [1] * 8 + [2] * 3
    table = pa.concat_tables([pq.read_table(path) for path in files])
    assert table.replace_schema_metadata(None).equals(expected)
    assert (printed["rows"], printed["path"], printed["complete"]) == (11, str(to), True)
    assert [file["rows"] for file in printed["files"]] == [4, 4, 3]
    assert [file["bytes"] for file in printed["files"]] == [path.stat().st_size for path in files]
    assert printed["bytes"] == sum(path.stat().st_size for path in files)
    assert os.listdir(tmp_path / "new") == ["rows"], "no draft is left"


def test_files_are_encoded_like_parts(out, tmp_path):
    assert run(out, "--to", tmp_path / "rows") == 0
    (path,) = (tmp_path / "rows").iterdir()
    file = pq.ParquetFile(path)
    part = pq.ParquetFile(min((out / "predictions").rglob("*.parquet")))
    assert file.schema_arrow.equals(part.schema_arrow)
    names = (b"schema_version", b"recipe", b"cam_shape", b"refined_shape", b"frame")
    assert file.schema_arrow.metadata == {name: part.schema_arrow.metadata[name] for name in names}
    columns = [file.metadata.row_group(0).column(n) for n in range(file.metadata.num_columns)]
    assert {column.compression for column in columns} == {"ZSTD"}
    end = columns[0].dictionary_page_offset + columns[0].total_compressed_size
    data = bytearray(path.read_bytes())
    data[end - 1] ^= 1
    path.write_bytes(data)
    with pytest.raises(OSError, match="CRC"):
        pq.ParquetFile(path, page_checksum_verification=True).read()


def test_readers(out, tmp_path):
    to = str(tmp_path / "rows")
    assert run(out, "--to", to, "--rows-per-file", 5) == 0
    ids = latest(str(out))["image_id"].to_pylist()
    assert pyarrow.dataset.dataset(to).to_table()["image_id"].to_pylist() == ids
    assert pl.read_parquet(to)["image_id"].to_list() == ids
    assert duckdb.sql(f"select image_id from '{to}/*.parquet'").fetchall() == [(i,) for i in ids]


def test_removed_images_are_left_out_even_if_no_row_remains(out, tmp_path, monkeypatch):
    empty = latest(str(out)).slice(0, 0)
    monkeypatch.setattr(Snapshot, "iter_latest", lambda snapshot, hashed: iter([empty, empty]))
    (file,) = compact(Snapshot.load(open_output(out)), str(tmp_path / "rows"))
    assert (file.name, file.rows) == ("part-000000.parquet", 0)
    assert pq.read_table(tmp_path / "rows").schema.equals(empty.schema)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=8), st.integers(1, 12))
def test_row_groups_end_where_files_do(sizes, rows_per_file):
    numbers = iter(range(100))
    tables = [pa.table({"n": pa.array([next(numbers) for _ in range(size)], pa.int64())}) for size in sizes]
    groups = list(row_groups(tables, rows_per_file))
    assert [n for group in groups for n in group["n"].to_pylist()] == list(range(sum(sizes)))
    assert all(group.num_rows == rows_per_file for group in groups[:-1])
    assert not groups or 0 < groups[-1].num_rows <= rows_per_file
    assert [group.num_rows for group in row_groups(tables, None)] == [sum(sizes)] * (sum(sizes) > 0)


def test_large_rows_make_more_groups_and_files(out, tmp_path, monkeypatch):
    monkeypatch.setattr(compacting, "_GROUP_BYTES", 1)
    monkeypatch.setattr(compacting, "_FILE_BYTES", 5_000)
    files = compact(Snapshot.load(open_output(out)), str(tmp_path / "rows"))
    assert sum(file.rows for file in files) == 11
    assert 1 < len(files) < 4
    for file in files[:-1]:
        path = tmp_path / "rows" / file.name
        assert file.bytes == path.stat().st_size > 5_000
        assert pq.ParquetFile(path).num_row_groups > 1


@pytest.mark.parametrize("inside", ["", "rows", "predictions/rows", "../out/rows", "link/rows"])
def test_refused_inside_the_output(out, tmp_path, capsys, inside):
    (tmp_path / "link").symlink_to(out)
    to = tmp_path / inside if inside.startswith("link") else out / inside
    before = sorted(out.rglob("*"))
    assert run(out, "--to", to) == 2
    assert "where only localize writes: choose another path" in capsys.readouterr().err
    assert sorted(out.rglob("*")) == before


@pytest.mark.parametrize("kind", ["a file", "a folder", "an empty folder", "a link to nowhere"])
def test_refused_if_the_target_exists(out, tmp_path, capsys, kind):
    to = tmp_path / "rows"
    if kind == "a file":
        to.write_text("mine")
    elif kind == "a link to nowhere":
        to.symlink_to(tmp_path / "nowhere")
    else:
        to.mkdir()
        if kind == "a folder":
            (to / "mine").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    assert run(out, "--to", to) == 2
    assert f"{to} exists already, and nothing is replaced" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_damaged_part_is_not_copied(out, tmp_path):
    part = max((out / "predictions").rglob("*.parquet"))
    data = bytearray(part.read_bytes())
    data[0] ^= 1  # no page checksum covers this byte
    part.write_bytes(data)
    with pytest.raises(CorruptedError, match=part.name):
        compact(Snapshot.load(open_output(out)), str(tmp_path / "rows"), rows_per_file=2)
    assert sorted(os.listdir(tmp_path)) == ["in", "out"]


def test_a_full_disk_leaves_nothing(out, tmp_path, monkeypatch, capsys):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert run(out, "--to", tmp_path / "rows") == 2
    error = capsys.readouterr().err
    assert f"{tmp_path}/rows cannot be written: [Errno 28] No space left on device" in error
    assert sorted(os.listdir(tmp_path)) == ["in", "out"]


def test_it_appears_complete(out, tmp_path):
    """Another thread lists the target all the time."""
    to, seen, stop = tmp_path / "rows", [], threading.Event()

    def watch():
        while not stop.is_set():
            if to.exists():
                seen.append(len(os.listdir(to)))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        files = compact(Snapshot.load(open_output(out)), str(to), rows_per_file=1)
        while not seen:
            pass
    finally:
        stop.set()
        watcher.join()
    assert set(seen) == {len(files)} == {11}


def test_a_folder_created_in_the_meantime_is_not_replaced(out, tmp_path):
    to = tmp_path / "rows"
    with pytest.raises(UsageError, match="exists already"):
        compact(Snapshot.load(open_output(out)), str(to), on_rows=lambda rows: to.mkdir(exist_ok=True))
    assert os.listdir(to) == []
    assert sorted(os.listdir(tmp_path)) == ["in", "out", "rows"]


def test_in_s3(in_s3, out, capsys):
    to = f"s3://{BUCKET}/rows of cats"
    assert run(out, "--to", f"{to}/", "--rows-per-file", 6, "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    store = open_store(to)
    names = ["part-000000.parquet", "part-000001.parquet"]
    assert sorted(entry.key for entry in store.list()) == ["_SUCCESS.json", *names]
    manifest = json.loads(store.read("_SUCCESS.json"))
    assert manifest == {name: printed[name] for name in ("recipe", "rows", "files")}
    tables = [pq.read_table(pa.BufferReader(store.read(name))) for name in names]
    assert pa.concat_tables(tables).replace_schema_metadata(None).equals(latest(str(out)))

    assert run(out, "--to", to) == 2
    assert "exists already" in capsys.readouterr().err
    # The objects that a killed compaction leaves.
    open_store(f"s3://{BUCKET}/half").create("part-000000.parquet", b"")
    assert run(out, "--to", f"s3://{BUCKET}/half") == 2
    assert "holds objects without _SUCCESS.json: delete them" in capsys.readouterr().err
    # A prefix that only begins with the same text is another location.
    assert run(out, "--to", f"s3://{BUCKET}/hal") == 0
    # Another writer at the same time.
    race = open_store(f"s3://{BUCKET}/race")
    with pytest.raises(UsageError, match="something else writes there"):
        compact(
            Snapshot.load(open_output(out)),
            f"s3://{BUCKET}/race",
            on_rows=lambda rows: race.create("part-000000.parquet", b"theirs"),
        )
    assert not race.exists("_SUCCESS.json")


@pytest.mark.parametrize("to", ["s3://bucket/out", "s3://bucket/out/", "s3://bucket/out/rows"])
def test_refused_inside_an_output_in_s3(to, capsys):
    assert run("s3://bucket/out/", "--to", to) == 2
    assert "where only localize writes" in capsys.readouterr().err
