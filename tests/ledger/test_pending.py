"""Pending items: new, changed, relabelled, lost, failed and removed images."""

import hashlib
from collections import Counter

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from camworker.errors import CorruptedError
from camworker.inference.arrow import predictions_table
from camworker.inference.predictions import FailedPrediction
from camworker.inputs import ReadPolicy
from camworker.inputs.duckdb_scratch import ItemsFile
from camworker.ledger.pending import find_pending, pending_query, unfinished_shards
from camworker.ledger.plan import read_shard, write_generation
from camworker.ledger.records import Part
from camworker.ledger.snapshot import Snapshot
from camworker.schemas import ITEMS, PLAN, CamShape
from camworker.storage.memory import MemoryStore
from support.factories import ids, make_items
from support.prediction_rows import WHOLE, row
from support.row_tables import columns_of, with_shapes
from support.run_records import make_run_record

SHAPE = CamShape(1, 2, 2)
OK = row("", [(0, WHOLE)], cams=np.zeros((1, 2, 2)))[1]
FAILURES = ["decode_error", "unsupported", "too_large", "changed", "poison", "map_overflow"]


@pytest.fixture
def pending(ledger, tmp_path):
    """Return a function that returns the pending ones of some items."""

    def find(items, **options):
        listed = ItemsFile(tmp_path / "listed.parquet")
        pq.write_table(items, listed.path)
        result = find_pending(listed, ledger, **options)
        assert result.count == result.read().num_rows
        return result.read()

    return find


def plan(ledger, *generations):
    for number, items in enumerate(generations, max(ledger.generations(), default=0) + 1):
        write_generation(ledger, number, items, 2, ReadPolicy())


def complete(ledger, items, *, size=2, gone=(), recorded=True, **statuses):
    """Plan items and commit their parts.

    Args:
        ledger: The ledger.
        items: The items.
        size: Items of a shard.
        gone: Shards whose parts are missing.
        recorded: Whether to write the run record.
        statuses: Statuses other than ok by image_id.
    """
    generation = max(ledger.generations(), default=0) + 1
    made = write_generation(ledger, generation, items, size, ReadPolicy())
    parts = []
    for shard in range(made.shards):
        planned, key = read_shard(ledger, made, shard), ledger.layout.part_key(generation, shard)
        row_statuses = [
            "removed" if item["identity"] is None else statuses.get(item["image_id"], "ok")
            for item in planned.to_pylist()
        ]
        rows = [OK if status == "ok" else FailedPrediction(status, "because") for status in row_statuses]
        sink = pa.BufferOutputStream()
        table = with_shapes(predictions_table(planned, generation, columns_of(rows, SHAPE)), SHAPE)
        pq.write_table(table, sink, write_page_checksum=True)
        data = sink.getvalue().to_pybytes()
        if shard not in gone:
            assert ledger.store.create(key, data)
        digest = hashlib.sha256(data).hexdigest()
        parts.append(Part(shard, key, len(row_statuses), len(data), digest, dict(Counter(row_statuses))))
    if recorded:
        ledger.commit_run(make_run_record(ledger, generation, parts))


def test_everything_is_pending_at_first(pending):
    items = make_items(*"ba", labels=[3, 4])
    result = pending(items)
    assert result.schema.equals(ITEMS)
    assert result.equals(items)


def test_only_new_items_are_pending(ledger, pending):
    plan(ledger, make_items(*"abc"))
    assert ids(pending(make_items(*"xcbay"))) == ["x", "y"]
    assert pending(make_items(*"abc")).num_rows == 0
    assert pending(make_items()).num_rows == 0


def test_plans_committed_in_the_meantime_count(ledger, pending):
    """Plans are copied once, and so are plans that were committed after the first copy."""
    for count in range(1, 4):
        assert ids(pending(make_items(*"abc"))) == list("abc")[count - 1 :]
        plan(ledger, make_items("abc"[count - 1]))


def test_a_new_identity_is_pending_and_an_earlier_one_is_not(ledger, pending):
    plan(ledger, make_items("a", "b"), make_items("a", identity="2"))
    assert ids(pending(make_items("a", "b", identity="3"))) == ["a", "b"]
    assert ids(pending(make_items("a", "b", identity="2"))) == ["b"]
    assert ids(pending(make_items("a", "b", identity="1"))) == []


def test_id_and_identity_are_compared_separately(ledger, pending):
    plan(ledger, make_items("a1", identity="2"))
    assert ids(pending(make_items("a", identity="12"))) == ["a"]


def test_ids_with_quotes_are_compared_as_text(ledger, pending):
    odd = ("it's", 'a "b"', "a\x00b", "größe/日本 #1?%41.jpg", "", "NULL", "1", "01", " a", "{x}")
    plan(ledger, make_items(*odd[::2]))
    assert ids(pending(make_items(*odd))) == list(odd[1::2])


def test_items_with_other_labels_are_pending(ledger, pending):
    plan(ledger, make_items("a", labels=[1]), make_items("a", labels=[1, 2]))
    assert ids(pending(make_items("a", labels=[1, 2]))) == []
    # The last generation with the item decides, so going back to earlier labels is a change too.
    assert ids(pending(make_items("a", labels=[1]))) == ["a"]
    assert ids(pending(make_items("a", labels=[12]))) == ["a"]
    assert ids(pending(make_items("a"))) == ["a"]


# Failures


def test_read_errors_are_pending_until_three_generations(ledger, pending):
    items = make_items("a", "b")
    for again in (items, make_items("a"), make_items("a")):
        assert ids(pending(items)) == ids(again)
        complete(ledger, again, a="read_error")
    assert ids(pending(items)) == []
    assert ids(pending(items, retry_failed=True)) == ["a"]


def test_attempts_are_counted_by_identity(ledger, pending):
    for _ in range(3):
        complete(ledger, make_items("a"), a="read_error")
    complete(ledger, make_items("a", identity="2"), a="read_error")
    assert ids(pending(make_items("a", identity="2"))) == ["a"]


@pytest.mark.parametrize("retry", [False, True])
def test_a_failed_item_that_is_planned_again_is_not_planned_a_third_time(ledger, pending, retry):
    complete(ledger, make_items("a", "b"), a="read_error")
    plan(ledger, make_items("a"))
    assert ids(pending(make_items("a", "b"), retry_failed=retry)) == []


@pytest.mark.parametrize("status", FAILURES)
def test_other_failures_are_pending_only_with_retry_failed(ledger, pending, status):
    complete(ledger, make_items("a", "b"), a=status)
    assert ids(pending(make_items("a", "b"))) == []
    assert ids(pending(make_items("a", "b"), retry_failed=True)) == ["a"]
    assert ids(pending(make_items("a", "b"), retry_failed=True, include_retries=False)) == []


def test_an_item_that_succeeded_later_is_not_retried(ledger, pending):
    complete(ledger, make_items("a", "b"), a="read_error", b="poison")
    complete(ledger, make_items("a", "b"), b="decode_error")
    assert ids(pending(make_items("a", "b"), retry_failed=True)) == ["b"]
    assert ids(pending(make_items("a", "b"))) == []


def test_parts_without_failures_are_not_read(ledger, pending):
    complete(ledger, make_items(*"abcd"), c="poison")
    store = MemoryStore()
    for entry in ledger.store.list():
        data = ledger.store.read(entry.key)
        store.create(entry.key, b"x" * len(data) if entry.key.endswith("000000.parquet") else data)
    ledger.store = store
    assert ids(pending(make_items(*"abcd"), retry_failed=True)) == ["c"]


def test_failures_of_an_unfinished_generation_are_seen(ledger, pending):
    complete(ledger, make_items("a", "b"), a="read_error", recorded=False)
    assert ids(pending(make_items("a", "b"))) == ["a"]


# Lost parts


def test_no_part_is_lost_if_it_is_present_or_was_never_committed(ledger, pending):
    complete(ledger, make_items(*"abc"))
    plan(ledger, make_items("d"))
    assert ids(pending(make_items(*"abcd"))) == []


def test_a_missing_part_is_planned_again_once(ledger, pending):
    complete(ledger, make_items(*"abcde"), gone=(1,))
    again = pending(make_items(*"edcba"))
    assert ids(again) == ["d", "c"]
    assert ids(pending(make_items(*"edcba"), include_retries=False)) == []
    plan(ledger, again)
    assert ids(pending(make_items(*"edcba"))) == []


def test_lost_items_that_a_later_generation_holds_are_not_pending(ledger, pending):
    complete(ledger, make_items("a", "b"), gone=(0,))
    complete(ledger, make_items("a"))
    assert ids(pending(make_items("a", "b"))) == ["b"]


def test_a_lost_row_of_an_earlier_identity_is_not_pending(ledger, pending):
    """The image has changed since, and the row of its new identity is present."""
    complete(ledger, make_items("a"), gone=(0,))
    complete(ledger, make_items("a", identity="2"))
    assert ids(pending(make_items("a", identity="2"))) == []


# Images that are not listed any more


def test_unlisted_images_are_ignored_by_default(ledger, pending):
    complete(ledger, make_items(*"abc"))
    assert ids(pending(make_items("b"))) == []


def test_a_missing_image_is_removed_once(ledger, pending):
    complete(ledger, make_items(*"cab", labels=[1]), c="poison")
    result = pending(make_items("b", "x", labels=[1]), remove_missing=True)
    assert [(r["image_id"], r["uri"], r["identity"], r["labels"]) for r in result.to_pylist()] == [
        ("x", "/in/x", "1", [1]),
        ("a", "/in/a", None, []),
        ("c", "/in/c", None, []),
    ]
    complete(ledger, result)
    assert pending(make_items("b", "x", labels=[1]), remove_missing=True, retry_failed=True).num_rows == 0


def test_an_image_that_comes_back_is_pending(ledger, pending):
    complete(ledger, make_items("a", "b"))
    complete(ledger, pending(make_items("b"), remove_missing=True))
    for options in ({}, {"remove_missing": True}):
        back = pending(make_items("a", "b"), **options)
        assert [(r["image_id"], r["identity"]) for r in back.to_pylist()] == [("a", "1")]
    complete(ledger, back)
    assert ids(pending(make_items("a", "b"), remove_missing=True)) == []
    assert ids(pending(make_items("a"), remove_missing=True)) == ["b"]
    complete(ledger, pending(make_items("b"), remove_missing=True))
    assert ids(pending(make_items("a", "b"))) == ["a"], "as often as it comes"


def test_a_lost_removal_is_pending_again(ledger, pending):
    complete(ledger, make_items("a", "b"))
    complete(ledger, pending(make_items("b"), remove_missing=True), gone=(0,))
    assert ids(pending(make_items("b"))) == []
    again = pending(make_items("b"), remove_missing=True)
    assert again.select(["image_id", "identity"]).to_pylist() == [{"image_id": "a", "identity": None}]
    complete(ledger, again)
    assert ids(pending(make_items("b"), remove_missing=True)) == []


def test_a_nightly_run(ledger, pending):
    """Nothing new; ten new and five changed; one missing. Each image has one current row."""
    first = make_items(*(f"{n:04d}" for n in range(1000)))
    complete(ledger, first, size=100)
    assert pending(first, remove_missing=True).num_rows == 0
    new = make_items(*(f"new {n}" for n in range(10)))
    changed = make_items(*(f"{n:04d}" for n in range(0, 1000, 200)), identity="2")
    unchanged = first.filter(pc.invert(pc.is_in(first["image_id"], changed["image_id"])))
    second = pa.concat_tables([unchanged, changed, new])
    result = pending(second, remove_missing=True)
    assert result.equals(pa.concat_tables([changed, new]))
    complete(ledger, result, size=100)
    assert pending(second, remove_missing=True).num_rows == 0
    assert latest_ids(ledger) == sorted(ids(second))
    assert len(latest_ids(ledger)) == len(set(latest_ids(ledger))) == 1010
    third = second.slice(1)
    complete(ledger, pending(third, remove_missing=True), size=100)
    assert latest_ids(ledger) == sorted(ids(third))


def latest_ids(ledger):
    return sorted(i for table in Snapshot.load(ledger).iter_latest(["image_id"]) for i in ids(table))


# Unfinished generations


def test_items_of_unfinished_generations_are_pending_on_request(ledger, pending):
    complete(ledger, make_items(*"abc"), recorded=False, gone=(0,))
    plan(ledger, make_items("x", "y"))
    complete(ledger, make_items("z"))
    items = make_items(*"zyxcbaq")
    assert ids(pending(items)) == ["q"]
    everything = unfinished_shards(ledger, committed=True)
    assert everything == [(1, 0), (1, 1), (2, 0)]
    assert ids(pending(items, unfinished=everything)) == list("yxcbaq")
    left = unfinished_shards(ledger, committed=False)
    assert left == [(1, 0), (2, 0)]
    assert ids(pending(items, unfinished=left)) == list("yxbaq")


# Damage


@pytest.mark.parametrize("damage", ["altered", "gone"])
def test_a_damaged_plan_is_refused(ledger, pending, damage):
    plan(ledger, make_items(*"abc"))
    key, store = ledger.layout.plan_file_key(1, 0), MemoryStore()
    for entry in ledger.store.list():
        data = ledger.store.read(entry.key)
        if entry.key != key:
            store.create(entry.key, data)
        elif damage == "altered":
            store.create(key, data.replace(b"/in/a", b"/in/x"))
    ledger.store = store
    with pytest.raises(CorruptedError, match=f"{key} (is missing|has changed).*run camworker verify"):
        pending(make_items(*"abc"))


# The rules, against a plain implementation in Python

_ids, _identities = st.sampled_from("abc"), st.sampled_from(["1", "2"])
_labels = st.sampled_from([[], [1], [1, 2]])
_statuses = st.sampled_from(["ok", "read_error", "poison", "lost"])
_entries = st.dictionaries(_ids, st.tuples(_identities | st.none(), _labels, _statuses), max_size=3)


@settings(max_examples=150)
@given(
    st.lists(_entries, max_size=5),
    st.dictionaries(_ids, st.tuples(_identities, _labels), max_size=3),
    st.booleans(),
    st.booleans(),
)
def test_the_rules(generations, listed, retry_failed, remove_missing):
    planned = [
        (image_id, generation, *entry)
        for generation, entries in enumerate(generations, 1)
        for image_id, entry in entries.items()
    ]
    connection = duckdb.connect()
    rows = [{"image_id": i, "uri": i, "identity": d, "labels": v} for i, (d, v) in listed.items()]
    items = pa.Table.from_pylist(rows, ITEMS)
    connection.register("items", items.append_column("row", pa.array(range(len(rows)), pa.int64())))
    schema = PLAN.append(pa.field("generation", pa.int32()))
    # One shard for each image.
    plans = [
        {"image_id": i, "uri": i, "identity": d, "labels": v, "shard": ord(i), "generation": g}
        for i, g, d, v, _ in planned
    ]
    connection.register("planned", pa.Table.from_pylist(plans, schema))
    failed = [
        {"image_id": i, "identity": d, "status": s, "generation": g}
        for i, g, d, _, s in planned
        if s in ("read_error", "poison") and d is not None
    ]
    text = [(name, pa.string()) for name in ("image_id", "identity", "status")]
    connection.register(
        "failed", pa.Table.from_pylist(failed, pa.schema([*text, ("generation", pa.int32())]))
    )
    shards = pa.schema([("generation", pa.int32()), ("shard", pa.int32())])
    lost = [{"generation": g, "shard": ord(i)} for i, g, _, _, s in planned if s == "lost"]
    connection.register("lost", pa.Table.from_pylist(lost, shards))
    connection.register("unfinished", shards.empty_table())
    query = pending_query(connection, retry_failed, remove_missing)
    result = [(i, d) for i, _, _, d, _, _ in connection.execute(query).fetchall()]

    def is_pending(image_id, identity, labels):
        same = [p for p in planned if p[0] == image_id and p[2] == identity]
        removed = [g for i, g, d, _, _ in planned if i == image_id and d is None]
        if not same or max(removed, default=0) > same[-1][1]:
            return True
        _, _, _, last_labels, status = same[-1]
        tried_again = status == "lost" or (status == "read_error" and len(same) < 3)
        return labels != last_labels or tried_again or (retry_failed and status != "ok")

    def is_missing(image_id):
        last = [p for p in planned if p[0] == image_id][-1]
        return image_id not in listed and (last[2] is not None or last[4] == "lost")

    expected = [(i, d) for i, (d, labels) in listed.items() if is_pending(i, d, labels)]
    missing = sorted({i for i, *_ in planned if is_missing(i)}) if remove_missing else []
    assert result == expected + [(i, None) for i in missing]
