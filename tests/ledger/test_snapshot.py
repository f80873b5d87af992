"""Snapshots: which rows are current, and what is read to find out."""

import pyarrow as pa
import pytest

from camworker.dataset import latest
from camworker.errors import CorruptedError, UsageError
from camworker.ledger.ledger import Ledger
from camworker.ledger.snapshot import Snapshot, count_statuses, read_latest
from camworker.schemas import CamShape
from camworker.storage.local import LocalStore
from support.committed_rows import RECIPE, commit_rows
from support.recipes import make_recipe
from support.run_records import make_run_record


@pytest.fixture
def out(tmp_path):
    return str(tmp_path / "out")


def test_iter_latest_gives_a_table_for_each_part(out):
    commit_rows(out, 1, 0, a="ok", b="ok")
    commit_rows(out, 1, 1, c="ok")
    ledger = commit_rows(out, 2, 0, a="ok", b="ok")
    assert [table["image_id"].to_pylist() for table in Snapshot.load(ledger).iter_latest()] == [
        [],
        ["c"],
        ["a", "b"],
    ]


def test_parts_are_read_one_by_one_with_the_later_rows(out):
    commit_rows(out, 1, 0, a="ok", b="ok", x="removed")
    commit_rows(out, 1, 1, c="ok", d="ok")
    commit_rows(out, 2, 0, b="ok", d="removed")
    ledger = commit_rows(out, 4, 0, b="poison", e="ok")
    snapshot = Snapshot.load(ledger)
    parts = snapshot.parts
    assert list(parts) == [(1, 0), (1, 1), (2, 0), (4, 0)]
    later = snapshot.later_rows()
    newest = dict(zip(later["image_id"].to_pylist(), later["generation_max"].to_pylist(), strict=True))
    assert newest == {"b": 4, "d": 2, "e": 4}  # images of the first generation only are not included
    result = [read_latest(ledger, key, later, ["image_id"])["image_id"].to_pylist() for key in parts.values()]
    assert result == [["a"], ["c"], [], ["b", "e"]]
    whole = pa.concat_tables([read_latest(ledger, key, later) for key in parts.values()])
    assert whole.replace_schema_metadata(None).equals(latest(out))


def test_one_generation_has_no_later_rows(out):
    commit_rows(out, 3, 0, a="ok", b="removed")
    ledger = commit_rows(out, 3, 1, c="ok")
    snapshot = Snapshot.load(ledger)
    parts = snapshot.parts
    assert snapshot.later_rows() is None
    assert [read_latest(ledger, key, None)["image_id"].to_pylist() for key in parts.values()] == [
        ["a"],
        ["c"],
    ]


def test_only_later_generations_are_read_for_later_rows(out, tmp_path):
    commit_rows(out, 1, 0, a="ok", b="ok")
    ledger = commit_rows(out, 2, 0, b="ok")
    snapshot = Snapshot.load(ledger)
    parts = snapshot.parts
    (tmp_path / "out" / parts[1, 0]).write_bytes(b"no Parquet")
    assert snapshot.later_rows().to_pylist() == [{"image_id": "b", "generation_max": 2}]


def test_the_shape_of_the_maps_of_a_part(out):
    ledger = commit_rows(out, 1, shape=(3, 5, 6), a="ok", b="poison")
    assert Snapshot.load(ledger).cam_shape() == CamShape(3, 5, 6)


def test_statuses_are_counted(out):
    commit_rows(out, 1, 0, a="ok", b="read_error")
    ledger = commit_rows(out, 1, 1, c="ok", d="poison")
    keys = list(Snapshot.load(ledger).parts.values())
    assert count_statuses(ledger, keys) == {"ok": 2, "read_error": 1, "poison": 1}
    assert count_statuses(ledger, keys[1:]) == {"ok": 1, "poison": 1}
    assert count_statuses(ledger, []) == {}


def test_a_snapshot_reads_each_record_once(out, monkeypatch):
    """A command needs the run records and the listing in several places."""
    for generation in (1, 2):
        ledger = commit_rows(out, generation, **{str(generation): "ok"})
        ledger.commit_run(make_run_record(ledger, generation))
    reads, read, list_ = [], LocalStore.read, LocalStore.list
    monkeypatch.setattr(LocalStore, "read", lambda store, key: reads.append(key) or read(store, key))
    monkeypatch.setattr(LocalStore, "list", lambda *of: reads.append(of[1]) or list_(*of))
    snapshot = Snapshot.load(ledger)
    for _ in range(2):
        assert pa.concat_tables(snapshot.iter_latest(["image_id"]))["image_id"].to_pylist() == ["1", "2"]
        assert snapshot.recipe == make_recipe()
    home = f"ledger/recipe={RECIPE}"
    assert sorted(reads) == [home, f"{home}/recipe.json", f"predictions/recipe={RECIPE}"]


def test_rows_of_some_images(out):
    commit_rows(out, 1, 0, a="ok", b="ok", c="ok")
    commit_rows(out, 1, 1, d="ok", e="ok")
    ledger = commit_rows(out, 2, 0, b="ok", c="removed", f="ok")
    rows = Snapshot.load(ledger).rows_of("abcx")
    result = dict(zip(rows["image_id"].to_pylist(), rows["generation"].to_pylist(), strict=True))
    assert result == {"a": 1, "b": 2}
    assert rows.column_names == latest(out).column_names
    assert Snapshot.load(ledger).rows_of("c") is None
    assert Snapshot.load(ledger).rows_of([]) is None


def test_completeness(out):
    ledger = Ledger(LocalStore(out), RECIPE)
    assert Snapshot.load(ledger).complete
    with pytest.raises(UsageError, match="no committed part yet"):
        Snapshot.load(ledger).check()


def test_a_run_record_that_cannot_be_read(out):
    ledger = commit_rows(out, 1, a="ok")
    ledger.store.create(ledger.layout.plan_key(1), b"{}")
    ledger.store.create(ledger.layout.run_key(1), b"[]")
    with pytest.raises(CorruptedError, match="the run record of generation 1 cannot be read"):
        Snapshot.load(ledger)
