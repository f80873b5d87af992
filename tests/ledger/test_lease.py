"""Leases: one holder at a time, whatever process dies, is late or gets a wrong answer."""

import json
import os
import subprocess
import sys
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from camworker.errors import LeaseHeldError
from camworker.ledger import lease as leases
from camworker.ledger.lease import SKEW_SECONDS, LeaseRecord, acquire, is_gone, process_name
from camworker.storage.local import LocalStore
from camworker.storage.memory import MemoryStore

RECIPE = "r0123456789ab"
FOLDER = f"ledger/recipe={RECIPE}/lease"
ELSEWHERE = "another-boot pid:[1] 77 1"


class Clock:
    """A clock that the test sets."""

    def __init__(self, now=1000.0):
        self.now = now

    def __call__(self):
        return self.now


@pytest.fixture(params=["local", "memory"])
def store(request, tmp_path):
    return LocalStore(tmp_path) if request.param == "local" else MemoryStore()


def records(store):
    keys = sorted(entry.key for entry in store.list(FOLDER))
    return {key.removeprefix(f"{FOLDER}/"): json.loads(store.read(key)) for key in keys}


def held_by_another(store, number=1, **changes):
    """Create a record of a run on an unknown machine, acquired at 1000 and renewed until 1120."""
    record = {"holder": "other", "host": "alpha", "pid": 77, "process": ELSEWHERE}
    content = {**record, "since": 1000.0, "until": 1120.0, "released": False, **changes}
    store.create(f"{FOLDER}/{number:08d}.json", json.dumps(content).encode())


def test_acquiring_renewing_and_releasing_each_append_a_record(store):
    clock = Clock()
    lease = acquire(store, RECIPE, clock=clock)
    clock.now = 1060
    assert lease.renew() is True
    clock.now = 1090
    lease.release()
    chain = records(store)
    assert list(chain) == ["00000001.json", "00000002.json", "00000003.json"]
    assert [(record["since"], record["until"]) for record in chain.values()] == [
        (1000, 1120),
        (1000, 1180),
        (1000, 1090),
    ]
    assert [record["released"] for record in chain.values()] == [False, False, True]
    assert len({record["holder"] for record in chain.values()}) == 1
    assert lease.lost is None


def test_a_held_lease_is_refused_and_names_its_holder_and_expiry(store):
    held_by_another(store)
    with pytest.raises(LeaseHeldError) as refused:
        acquire(store, RECIPE, clock=Clock(1100))
    assert str(refused.value) == (
        "another run holds recipe r0123456789ab of this output: the run on alpha, process 77, "
        "since 1970-01-01 00:16:40 UTC, until 1970-01-01 00:18:40 UTC unless it is renewed"
    )
    assert list(records(store)) == ["00000001.json"]


def test_one_process_cannot_acquire_it_twice(store):
    acquire(store, RECIPE)
    with pytest.raises(LeaseHeldError, match=f"process {os.getpid()}"):
        acquire(store, RECIPE)


def test_another_recipe_has_another_lease(store):
    held_by_another(store)
    acquire(store, "rffffffffffff", clock=Clock())


def test_an_expired_lease_is_acquired_only_after_the_margin_for_clock_skew(store):
    held_by_another(store)
    with pytest.raises(LeaseHeldError):
        acquire(store, RECIPE, clock=Clock(1120 + SKEW_SECONDS))
    acquire(store, RECIPE, clock=Clock(1120 + SKEW_SECONDS + 0.1))
    assert [record["holder"] == "other" for record in records(store).values()] == [True, False]


def test_a_dead_run_blocks_others_for_at_most_three_minutes(store):
    acquire(store, RECIPE, clock=Clock())
    [only] = records(store).values()
    assert only["until"] + SKEW_SECONDS - 1000 <= 180


def test_a_released_lease_is_acquired_at_once(store):
    held_by_another(store)
    held_by_another(store, 2, released=True)
    acquire(store, RECIPE, clock=Clock())
    assert list(records(store))[-1] == "00000003.json"


def test_only_the_last_record_counts(store):
    held_by_another(store, 9, released=True)
    held_by_another(store, 10)
    store.create(f"{FOLDER}/notes.txt", b"")
    store.create(f"{FOLDER}/old/00000099.json", b"")
    with pytest.raises(LeaseHeldError):
        acquire(store, RECIPE, clock=Clock())


def test_a_late_renewal_fails_after_another_run_has_taken_over(store):
    clock = Clock()
    lease = acquire(store, RECIPE, clock=clock)
    held_by_another(store, 2)
    before = records(store)
    assert lease.renew() is False
    assert lease.lost is not None
    assert lease.lost.host == "alpha"
    lease.release()
    assert records(store) == before


def test_a_late_renewal_succeeds_if_no_other_run_has_taken_over(store):
    clock = Clock()
    lease = acquire(store, RECIPE, clock=clock)
    clock.now = 9000
    assert lease.renew() is True
    with pytest.raises(LeaseHeldError):
        acquire(store, RECIPE, clock=clock)


class LostAnswers(MemoryStore):
    """A store that creates objects and then answers wrongly: that they existed already, or an error."""

    def __init__(self):
        super().__init__()
        self.answers = []

    def create(self, key, data):
        created = super().create(key, data)
        answer = self.answers.pop(0) if self.answers else created
        if isinstance(answer, OSError):
            raise answer
        return answer


def test_a_lost_answer_is_not_taken_for_another_run():
    store, clock = LostAnswers(), Clock()
    store.answers = [False]
    lease = acquire(store, RECIPE, clock=clock)
    store.answers = [False, TimeoutError()]
    assert lease.renew() is True
    clock.now += 1
    with pytest.raises(TimeoutError):
        lease.renew()
    clock.now += 1
    lease.release()
    assert lease.lost is None
    assert [record["released"] for record in records(store).values()] == [False, False, False, True]
    acquire(store, RECIPE, clock=clock)


@pytest.mark.parametrize("before", [None, {"until": 0.0}, {"released": True}])
def test_exactly_one_of_sixteen_concurrent_runs_acquires_it(store, before):
    """Without a lease, with an expired one and with a released one."""
    if before is not None:
        held_by_another(store, **before)
    together, outcome = threading.Barrier(16), []

    def try_to_acquire():
        together.wait()
        try:
            outcome.append(acquire(store, RECIPE))
        except LeaseHeldError:
            outcome.append(None)

    threads = [threading.Thread(target=try_to_acquire) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outcome) == 16
    assert sum(lease is not None for lease in outcome) == 1
    assert len(records(store)) == (1 if before is None else 2)


@settings(max_examples=60)
@given(
    skews=st.lists(st.floats(-SKEW_SECONDS / 2, SKEW_SECONDS / 2), min_size=3, max_size=3),
    steps=st.lists(
        st.tuples(st.integers(0, 2), st.sampled_from(("take", "renew", "release")), st.floats(0, 150)),
        max_size=40,
    ),
)
def test_two_runs_never_hold_it_at_once(skews, steps):
    """Three machines with different clocks; each holder judges by its own clock if it holds the lease."""
    store, true = MemoryStore(), Clock(10_000.0)
    held, until = {}, {}
    # All three are this process, which is alive, so a lease can only be lost by expiring.
    for machine, action, seconds in steps:
        true.now += seconds
        clock = Clock(true.now + skews[machine])
        if action == "take" and machine not in held:
            try:
                held[machine] = acquire(store, RECIPE, clock=clock)
                until[machine] = clock.now + 120
            except LeaseHeldError:
                assert held, "it is refused although nobody has it"
        elif action == "renew" and machine in held:
            held[machine]._clock = clock
            if held[machine].renew():
                until[machine] = clock.now + 120
            else:
                assert clock.now > until[machine], "it was taken from a run that had time left"
                del held[machine]
        elif action == "release" and machine in held:
            held[machine]._clock = clock
            held.pop(machine).release()
        valid = [m for m in held if true.now + skews[m] <= until[m]]
        assert len(valid) <= 1


def test_the_context_manager_renews_and_releases(monkeypatch):
    monkeypatch.setattr(leases, "_RENEW_SECONDS", 0.01)
    store = MemoryStore()
    with acquire(store, RECIPE):
        deadline = time.monotonic() + 10
        while len(records(store)) < 4 and time.monotonic() < deadline:
            time.sleep(0.005)
    chain = list(records(store).values())
    assert len(chain) >= 5
    assert [record["released"] for record in chain] == [False] * (len(chain) - 1) + [True]
    untils = [record["until"] for record in chain[:-1]]
    assert untils == sorted(untils)
    acquire(store, RECIPE)


def test_renewing_continues_after_an_error_of_the_store(monkeypatch):
    monkeypatch.setattr(leases, "_RENEW_SECONDS", 0.01)
    monkeypatch.setattr(leases, "_RETRY_SECONDS", 0.01)
    store = LostAnswers()
    lease = acquire(store, RECIPE)
    store.answers = [TimeoutError()] * 3
    with lease:
        deadline = time.monotonic() + 10
        while len(records(store)) < 8 and time.monotonic() < deadline:
            time.sleep(0.005)
    assert len(records(store)) >= 8
    assert lease.lost is None


def test_a_loss_is_noticed_in_the_background(monkeypatch):
    monkeypatch.setattr(leases, "_RENEW_SECONDS", 0.01)
    store = MemoryStore()
    lease = acquire(store, RECIPE)
    held_by_another(store, 2, until=time.time() + 1000)
    with lease:
        deadline = time.monotonic() + 10
        while lease.lost is None and time.monotonic() < deadline:
            time.sleep(0.005)
    assert lease.lost == LeaseRecord("other", "alpha", 77, ELSEWHERE, 1000.0, lease.lost.until)
    assert list(records(store)) == ["00000001.json", "00000002.json"]


# Processes that have ended


def test_a_killed_process_of_this_machine_does_not_hold_it(store):
    """A process that was reaped, and a zombie."""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    name = process_name(child.pid)
    assert not is_gone(name)
    held_by_another(store, process=name, until=time.time() + 100)
    with pytest.raises(LeaseHeldError):
        acquire(store, RECIPE)
    child.kill()
    deadline = time.monotonic() + 10
    while not is_gone(name) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert is_gone(name)
    acquire(store, RECIPE).release()
    child.communicate()
    assert is_gone(name)


def test_only_processes_known_to_have_ended_are_gone():
    ours = process_name(os.getpid())
    assert ours is not None
    boot, namespace, pid, start = ours.split()
    assert int(pid) == os.getpid()
    assert not is_gone(ours)
    assert not is_gone(None)
    # Nothing is known about processes of another boot or another container.
    assert not is_gone(f"other {namespace} 4194304 1")
    assert not is_gone(f"{boot} pid:[1] 4194304 1")
    assert is_gone(f"{boot} {namespace} 4194304 1")
    # The pid was reused by another process.
    assert is_gone(f"{boot} {namespace} {pid} {int(start) - 1}")


def test_without_proc_no_process_is_gone(monkeypatch, tmp_path):
    ours = process_name(os.getpid())
    monkeypatch.setattr(leases, "_PROC", tmp_path)
    assert process_name(os.getpid()) is None
    assert not is_gone(ours)
    acquire(MemoryStore(), RECIPE).release()
