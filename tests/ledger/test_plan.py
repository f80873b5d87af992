"""Plans: shard sizes, and generations that hold every item once."""

import dataclasses
import threading

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from camworker.errors import CommitError, UsageError
from camworker.inputs import ReadPolicy
from camworker.ledger import plan as planning
from camworker.ledger.ledger import Ledger
from camworker.ledger.plan import (
    choose_shard_size,
    read_shard,
    row_bytes,
    write_generation,
)
from camworker.schemas import PLAN, CamShape
from camworker.storage.memory import MemoryStore
from support.factories import ids, make_items

RECIPE = "r0123456789ab"


@pytest.mark.parametrize(
    ("items", "workers", "requested", "expected"),
    [
        (10**6, 1, None, 4096),
        (1600, 4, None, 100),
        (1601, 4, None, 101),
        (3, 4, None, 1),
        (0, 1, None, 1),
        (10, 1, 7, 7),
        (10**6, 1, 9000, 9000),
    ],
)
def test_shard_size(items, workers, requested, expected):
    assert choose_shard_size(items, workers, 490, requested) == expected


def test_a_shard_never_makes_a_part_over_64_megabytes():
    # Five maps of 64 x 64 cells and five of known labels take 81,920 bytes per row.
    each = row_bytes(5, CamShape(5, 64, 64), None)
    assert each == 2 * 10 * 64 * 64
    size = choose_shard_size(10**6, 1, each)
    assert 64_000_000 - 2 * each < size * (each + 2048) <= 64_000_000
    with pytest.raises(UsageError, match=f"use at most {size}$"):
        choose_shard_size(10**6, 1, each, size + 1)
    assert choose_shard_size(10**6, 1, 10**9) == 1
    # Refined maps, of the best label and of known ones, are bytes.
    assert row_bytes(2, CamShape(5, 7, 7), CamShape(1, 28, 28)) == 2 * 7 * 49 + 3 * 784


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 50), st.integers(1, 20), st.integers(1, 30), st.integers(1, 60))
def test_every_item_is_in_one_shard(count, size, per_file, piece):
    """Whatever the pieces in which the items arrive."""
    ledger, items = Ledger(MemoryStore(), RECIPE), make_items(*map(str, range(count)), labels=[4, 2])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "_ITEMS_PER_FILE", per_file)
        pieces = (items.slice(start, piece) for start in range(0, count, piece))
        plan = write_generation(ledger, 1, pieces, size, ReadPolicy())
    shards = [read_shard(ledger, plan, shard) for shard in range(plan.shards)]
    assert (plan.items, plan.shards) == (count, -(-count // size))
    assert [i for shard in shards for i in ids(shard)] == ids(items)
    assert all(shard.num_rows == size for shard in shards[:-1])
    for number, shard in enumerate(shards):
        assert shard.schema.equals(PLAN)
        assert set(shard["shard"].to_pylist()) == {number}
        assert shard["labels"].to_pylist() == [[4, 2]] * shard.num_rows
    assert all(sum(file.rows) <= max(per_file, size) for file in plan.files)


def test_a_plan_file_has_a_row_group_per_shard(ledger):
    plan = write_generation(ledger, 1, make_items(*"abcde"), 2, ReadPolicy())
    with ledger.store.open(f"ledger/recipe={RECIPE}/plan-0001/0.parquet") as file:
        metadata = pq.ParquetFile(file).metadata
    groups = [metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)]
    assert (groups, plan.files[0].rows) == ([2, 2, 1], (2, 2, 1))


def test_a_late_planner_gets_the_plan_of_the_first_one(ledger):
    first = write_generation(ledger, 1, make_items(*"abc"), 2, ReadPolicy())
    second = write_generation(ledger, 1, make_items(*"xyz"), 1, ReadPolicy(check_identity=False))
    assert second == first
    assert ids(read_shard(ledger, second, 0)) == ["a", "b"]


def test_concurrent_planners_agree():
    for _ in range(20):
        ledger, start, plans = Ledger(MemoryStore(), RECIPE), threading.Barrier(4), []

        def plan(name, ledger=ledger, start=start, plans=plans):
            items = make_items(*(f"{name}{n}" for n in range(5)))
            start.wait()
            plans.append(write_generation(ledger, 1, items, 2, ReadPolicy()))

        threads = [threading.Thread(target=plan, args=(name,)) for name in "abcd"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(plans) == 4
        assert len({p.hash for p in plans}) == 1
        held = [i for shard in range(3) for i in ids(read_shard(ledger, plans[0], shard))]
        assert held == [f"{held[0][0]}{n}" for n in range(5)], "the items of one planner, and whole"


def test_files_of_a_planner_that_died_are_ignored(ledger):
    ledger.store.create(ledger.layout.plan_file_key(1, 0), b"of a planner that died")
    plan = write_generation(ledger, 1, make_items(*"abc"), 2, ReadPolicy())
    assert [file.key for file in plan.files] == [ledger.layout.plan_file_key(1, 1)]
    assert ids(read_shard(ledger, plan, 1)) == ["c"]


@pytest.mark.parametrize("shard", [-1, 2, 100])
def test_a_shard_that_is_not_planned(ledger, shard):
    plan = write_generation(ledger, 1, make_items(*"abc"), 2, ReadPolicy())
    with pytest.raises(CommitError, match=f"does not hold shard {shard}"):
        read_shard(ledger, plan, shard)


def test_a_plan_file_that_holds_another_shard(ledger):
    plan = write_generation(ledger, 1, make_items(*"abc"), 2, ReadPolicy())
    shifted = dataclasses.replace(plan, files=(dataclasses.replace(plan.files[0], first_shard=1),))
    with pytest.raises(CommitError):
        read_shard(ledger, shifted, 1)


def test_a_damaged_plan_file_is_noticed(ledger):
    """A flipped bit could give the path of another image."""
    plan = write_generation(ledger, 1, make_items(*"abc"), 4, ReadPolicy())
    data = bytearray(ledger.store.read(plan.files[0].key))
    data[data.index(b"/in/a") + 4] ^= 1
    copy = MemoryStore()
    copy.create(plan.files[0].key, bytes(data))
    with pytest.raises((CommitError, OSError)):
        read_shard(Ledger(copy, ledger.recipe), plan, 0)
