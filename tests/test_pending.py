"""Which items are pending: what no generation holds as it is now."""

import pyarrow as pa
import pytest
from making import ids, make_items

from camworker.ledger import Ledger
from camworker.plan import (
    lost_items,
    pending,
    read_planned,
    write_generation,
)
from camworker.store import MemoryStore

RECIPE = "r0123456789ab"


def planned_in(ledger, *generations):
    for number, items in enumerate(generations, 1):
        write_generation(ledger, number, items, 2, verify=True)
    return read_planned(ledger)


def failures(status, image_id, *, identity="1", generation=1):
    """The current failed rows, of which there is one."""
    row = {"image_id": image_id, "identity": identity, "status": status, "generation": generation}
    return pa.Table.from_pylist([row]).cast(
        pa.schema([(n, pa.int32() if n == "generation" else pa.string()) for n in row])
    )


def test_all_is_pending_at_first(ledger):
    assert ids(pending(make_items(*"ba"), read_planned(ledger))) == ["b", "a"]


def test_only_what_is_new_is_pending(ledger):
    planned = planned_in(ledger, make_items(*"abc"))
    assert ids(pending(make_items(*"xcbay"), planned)) == ["x", "y"]
    assert pending(make_items(*"abc"), planned).num_rows == 0
    assert pending(make_items(), planned).num_rows == 0


def test_another_identity_is_pending_and_an_earlier_one_is_not(ledger):
    planned = planned_in(ledger, make_items("a", "b"), make_items("a", identity="2"))
    assert ids(pending(make_items("a", "b", identity="3"), planned)) == ["a", "b"]
    assert ids(pending(make_items("a", "b", identity="2"), planned)) == ["b"]
    assert ids(pending(make_items("a", "b", identity="1"), planned)) == []


def test_id_and_identity_do_not_run_together(ledger):
    planned = planned_in(ledger, make_items("a1", identity="2"))
    assert ids(pending(make_items("a", identity="12"), planned)) == ["a"]


def test_other_labels_are_pending(ledger):
    planned = planned_in(ledger, make_items("a", labels=[1]), make_items("a", labels=[1, 2]))
    assert ids(pending(make_items("a", labels=[1, 2]), planned)) == []
    # The last generation that holds it decides, so going back is a change too.
    assert ids(pending(make_items("a", labels=[1]), planned)) == ["a"]
    assert ids(pending(make_items("a", labels=[12]), planned)) == ["a"]
    assert ids(pending(make_items("a"), planned)) == ["a"]


def test_read_errors_are_pending_until_three_generations(ledger):
    generations = [make_items("a", "b"), make_items("a"), make_items("a")]
    for count in (1, 2, 3):
        planned = planned_in(Ledger(MemoryStore(), RECIPE), *generations[:count])
        failed = failures("read_error", "a", generation=count)
        assert ids(pending(make_items("a", "b"), planned, failed)) == (["a"] if count < 3 else [])
    assert ids(pending(make_items("a", "b"), planned, failed, retry_failed=True)) == ["a"]


def test_attempts_are_counted_by_identity(ledger):
    planned = planned_in(ledger, *[make_items("a")] * 3, make_items("a", identity="2"))
    failed = failures("read_error", "a", identity="2", generation=4)
    assert ids(pending(make_items("a", identity="2"), planned, failed)) == ["a"]


def test_what_is_planned_again_already_is_not_planned_a_third_time(ledger):
    # Generation 2 retries the image and is unfinished: its current row is still that of generation 1.
    planned = planned_in(ledger, make_items("a", "b"), make_items("a"))
    failed = failures("read_error", "a", generation=1)
    for retry in (False, True):
        assert ids(pending(make_items("a", "b"), planned, failed, retry_failed=retry)) == []


@pytest.mark.parametrize("status", ["decode_error", "unsupported", "too_large", "changed", "poison"])
def test_other_failures_wait_to_be_asked_for(ledger, status):
    planned = planned_in(ledger, make_items("a", "b"))
    failed = failures(status, "a")
    assert ids(pending(make_items("a", "b"), planned, failed)) == []
    assert ids(pending(make_items("a", "b"), planned, failed, retry_failed=True)) == ["a"]


# What was committed and is gone


def complete(ledger, generation, items, gone=()):
    """Plan items two a shard and say in a run record that all parts are there; gone: shards that are not."""
    plan = write_generation(ledger, generation, items, 2, verify=True)
    for shard in range(plan.shards):
        if shard not in gone:
            ledger.store.create(ledger.part_key(generation, shard), b"part")
    ledger.commit_run(generation, {"parts": [{"shard": shard} for shard in range(plan.shards)]})


def test_nothing_is_lost_while_parts_are_there_or_were_never_committed(ledger):
    assert lost_items(ledger).num_rows == 0
    complete(ledger, 1, make_items(*"abc"))
    write_generation(ledger, 2, make_items("d"), 2, verify=True)
    assert lost_items(ledger).num_rows == 0


def test_a_part_that_is_gone_is_planned_again_once(ledger):
    complete(ledger, 1, make_items(*"abcde"), gone=(1,))
    lost = lost_items(ledger)
    assert lost.to_pylist() == [
        {"image_id": "c", "identity": "1", "generation": 1},
        {"image_id": "d", "identity": "1", "generation": 1},
    ]
    items = make_items(*"edcba")
    again = pending(items, read_planned(ledger), lost=lost)
    assert ids(again) == ["d", "c"]
    write_generation(ledger, 2, again, 2, verify=True)
    assert ids(pending(items, read_planned(ledger), lost=lost_items(ledger))) == []


def test_what_is_lost_and_was_planned_later_is_not_planned_again(ledger):
    complete(ledger, 1, make_items("a", "b"), gone=(0,))
    complete(ledger, 2, make_items("a"))
    assert ids(pending(make_items("a", "b"), read_planned(ledger), lost=lost_items(ledger))) == ["b"]


def test_what_is_lost_as_it_was_is_not_planned_for_what_it_is(ledger):
    """The image has changed since, and its change is planned and there."""
    complete(ledger, 1, make_items("a"), gone=(0,))
    complete(ledger, 2, make_items("a", identity="2"))
    assert ids(pending(make_items("a", identity="2"), read_planned(ledger), lost=lost_items(ledger))) == []
