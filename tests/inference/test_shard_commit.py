"""A part is committed once; a committed part is adopted only if it is the planned one."""

import io
import json

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from camworker.errors import CommitError
from camworker.ledger.ledger import Ledger
from camworker.ledger.parts import adopt_part
from camworker.ledger.plan import read_shard
from camworker.storage.memory import MemoryStore
from support.factories import plan_of, read, run

RECIPE = "r0123456789ab"


def stored(ledger):
    return {entry.key: ledger.store.read(entry.key) for entry in ledger.store.list()}


def test_running_again_adopts(ledger, folder, tiny_localizer):
    plan = plan_of(ledger, folder)
    done = run(ledger, plan, tiny_localizer)
    assert done.seconds > 0
    before = stored(ledger)
    assert (done.part.bytes, done.part.rows) == (len(before[done.part.key]), 11)
    # Without a localizer: what is there needs none.
    again = run(ledger, plan, None, on_batch=pytest.fail)
    assert (again.part, again.seconds) == (done.part, 0.0)
    assert stored(ledger) == before


def test_the_loser_of_a_race_adopts_the_winners_part(ledger, folder, tiny_localizer):
    plan = plan_of(ledger, folder)
    winner = []

    def other_worker_is_faster(statuses):
        if not winner:
            winner.append(None)
            winner.append(run(ledger, plan, tiny_localizer, about={"device": "the other"}).part)

    part = run(ledger, plan, tiny_localizer, on_batch=other_worker_is_faster).part
    assert part == winner[1]
    assert json.loads(read(ledger).schema.metadata[b"resolved"])["device"] == "the other"


def test_nothing_is_committed_when_the_network_fails(ledger, folder, tiny_localizer, monkeypatch):
    plan = plan_of(ledger, folder)

    def broken(*args):
        raise RuntimeError("the network failed")

    monkeypatch.setattr(tiny_localizer._cam_network, "_score", broken)
    with pytest.raises(RuntimeError, match="the network failed"):
        run(ledger, plan, tiny_localizer)
    assert ledger.parts() == {}


def changed_metadata(**changes):
    def change(table):
        metadata = {k.decode(): v.decode() for k, v in table.schema.metadata.items()}
        merged = {**metadata, **changes}
        return table.replace_schema_metadata({k: v for k, v in merged.items() if v is not None})

    return change


def renamed(table):
    ids = pc.replace_substring(table["image_id"], "03", "3")
    return table.set_column(0, table.schema.field("image_id"), ids)


@pytest.mark.parametrize(
    "change",
    [
        changed_metadata(plan_hash="0" * 64),
        changed_metadata(recipe="rffffffffffff"),
        changed_metadata(generation="2"),
        changed_metadata(shard="1"),
        changed_metadata(schema_version="0"),
        changed_metadata(plan_hash=None),
        changed_metadata(cam_shape=None),
        changed_metadata(cam_shape="[3, 4, 9]"),
        changed_metadata(refined_shape="[1, 8, 8]"),
        lambda table: table.replace_schema_metadata(None),
        renamed,
        lambda table: table.slice(1),
        lambda table: table.take(list(range(10, -1, -1))),
        lambda table: pa.concat_tables([table, table.slice(0, 1)]),
        lambda table: table.drop_columns(["targets"]),
        lambda table: table.set_column(7, "width", table["width"].cast(pa.int64())),
    ],
    ids=[
        *("plan hash", "recipe", "generation", "shard", "schema version", "no plan hash"),
        *("no shape", "another shape", "a refined shape", "no metadata"),
        *("another id", "a row less", "another order", "a row twice", "a column less", "another type"),
    ],
)
def test_a_part_that_does_not_fit_is_not_adopted(ledger, folder, tiny_localizer, change):
    plan = plan_of(ledger, folder)
    elsewhere = Ledger(MemoryStore(), RECIPE)
    run(elsewhere, plan_of(elsewhere, folder), tiny_localizer)
    buffer = io.BytesIO()
    pq.write_table(change(read(elsewhere)), buffer)
    ledger.store.create(ledger.layout.part_key(1, 0), buffer.getvalue())
    before = stored(ledger)
    with pytest.raises(CommitError):
        run(ledger, plan, tiny_localizer)
    assert stored(ledger) == before, "the commit path deletes nothing"


@pytest.mark.parametrize(
    "damage", [lambda data: b"", lambda data: data[:-10], lambda data: data[: len(data) // 2]]
)
def test_a_part_that_is_not_whole_is_not_adopted(ledger, folder, tiny_localizer, damage):
    plan = plan_of(ledger, folder)
    elsewhere = Ledger(MemoryStore(), RECIPE)
    run(elsewhere, plan_of(elsewhere, folder), tiny_localizer)
    ledger.store.create(
        ledger.layout.part_key(1, 0), damage(elsewhere.store.read(ledger.layout.part_key(1, 0)))
    )
    with pytest.raises(CommitError, match="does not reopen"):
        adopt_part(ledger, plan, 0, read_shard(ledger, plan, 0))
