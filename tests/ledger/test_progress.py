"""Progress of runs, from the ledger: what a poll returns, what it costs, and when everything is complete."""

from collections import Counter

import pytest

from camworker.inputs import ReadPolicy
from camworker.ledger.lease import acquire
from camworker.ledger.ledger import Ledger
from camworker.ledger.plan import write_generation
from camworker.ledger.progress import ProgressMonitor
from camworker.storage.uris import open_store
from support.factories import photograph, photographs_of, run, run_generation
from support.recipes import make_recipe
from support.run_records import make_run_record

pytest_plugins = ["support.s3_fixtures"]

RECIPE = "r0123456789ab"


class Clock:
    """A clock that the test sets."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def plan(ledger, folder):
    """Plan eleven images, one of them broken, in shards of two."""
    (folder / "03.png").write_bytes(photograph(3)[:100])
    ledger.write_recipe(make_recipe())
    return write_generation(ledger, 1, photographs_of(folder), 2, ReadPolicy())


def finish(ledger, number):
    ledger.commit_run(make_run_record(ledger, number))


def test_parts_are_counted_as_they_arrive(ledger, plan, tiny_localizer, clock):
    run(ledger, plan, tiny_localizer, 0)
    monitor = ProgressMonitor(ledger.store, clock=clock)
    seen = monitor.poll()[0]
    assert (seen.recipe, seen.generation, seen.planned, seen.shards) == (RECIPE, 1, 11, 6)
    assert (seen.parts, seen.done, seen.images) == (1, 2, Counter(ok=2))
    run(ledger, plan, tiny_localizer, 1)
    run(ledger, plan, tiny_localizer, 5)
    seen = monitor.poll()[0]
    assert (seen.parts, seen.done, seen.images) == (3, 5, Counter(ok=4, decode_error=1))
    finish(ledger, 1)
    assert monitor.poll() is None


def test_speed_is_measured_between_arrivals_of_parts(ledger, plan, tiny_localizer, clock):
    run(ledger, plan, tiny_localizer, 0)
    monitor = ProgressMonitor(ledger.store, clock=clock)
    assert monitor.poll()[0].images_per_second is None
    clock.now = 50.0
    run(ledger, plan, tiny_localizer, 1)
    assert monitor.poll()[0].images_per_second is None
    # Two images in ten seconds, then none for ten seconds.
    clock.now = 60.0
    run(ledger, plan, tiny_localizer, 2)
    seen = monitor.poll()[0]
    assert seen.images_per_second == pytest.approx(0.2)
    assert seen.seconds_left == pytest.approx(25.0)
    clock.now = 70.0
    seen = monitor.poll()[0]
    assert seen.images_per_second == pytest.approx(0.1)
    assert seen.seconds_left == pytest.approx(50.0)


def test_polling_ends_when_everything_is_complete_and_no_run_is_at_work(ledger, plan, folder, tiny_localizer):
    today = Clock()
    monitor = ProgressMonitor(ledger.store, today=today)
    assert monitor.poll()[0].holder is None
    lease = acquire(ledger.store, RECIPE, clock=today)
    assert monitor.poll()[0].holder.pid == lease._record.pid
    for shard in range(plan.shards):
        run(ledger, plan, tiny_localizer, shard)
    finish(ledger, 1)
    # The same run may plan another generation, as it does here.
    assert monitor.poll() == []
    (folder / "new.png").write_bytes(photograph(99))
    items = photographs_of(folder).slice(11)
    again = write_generation(ledger, 2, items, 2, ReadPolicy())
    seen = monitor.poll()
    assert [(each.generation, each.planned, each.done) for each in seen] == [(2, 1, 0)]
    run(ledger, again, tiny_localizer)
    assert monitor.poll()[0].done == 1
    finish(ledger, 2)
    lease.release()
    assert monitor.poll() is None


def test_a_killed_run_on_another_machine_counts_as_at_work_until_its_lease_expires(
    ledger, folder, tiny_localizer
):
    today = Clock()
    run_generation(ledger, tiny_localizer, photographs_of(folder))
    finish(ledger, 1)
    link = acquire(ledger.store, RECIPE, clock=today)
    monitor = ProgressMonitor(ledger.store, today=today)
    assert monitor.poll() == []
    today.now = link._record.until + 61
    assert monitor.poll() is None


def test_a_poll_in_s3_costs_few_requests(fake_s3, folder, tiny_localizer):
    """One listing, one request for the run record and one for the lease; a part is read once."""
    store = open_store("s3://bucket/out")
    ledger = Ledger(store, RECIPE)
    run_generation(ledger, tiny_localizer, photographs_of(folder), size=2)
    finish(ledger, 1)
    plan = write_generation(ledger, 2, photographs_of(folder), 2, ReadPolicy())
    run(ledger, plan, tiny_localizer, 0)
    lease = acquire(store, RECIPE)
    monitor = ProgressMonitor(store)
    assert monitor.poll()[0].done == 2
    fake_s3.page = 1  # so that a listing of the first generation would take six pages
    fake_s3.requests.clear()
    assert monitor.poll()[0].done == 2
    home = f"bucket/out/ledger/recipe={RECIPE}"
    expected = ["GET bucket", f"HEAD {home}/lease/00000002.json", f"HEAD {home}/run-0002.json"]
    assert sorted(fake_s3.requests) == expected
    assert lease.renew()
    run(ledger, plan, tiny_localizer, 3)
    fake_s3.requests.clear()
    assert monitor.poll()[0].done == 4
    parts = {request for request in fake_s3.requests if request.endswith(".parquet")}
    assert parts == {f"GET bucket/out/{ledger.layout.part_key(2, 3)}"}
