"""The run lease: one holder at a time, whatever dies, comes late or answers twice."""

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
    """A clock that is set by hand."""

    def __init__(self, now=1000.0):
        self.now = now

    def __call__(self):
        return self.now


@pytest.fixture(params=["local", "memory"])
def store(request, tmp_path):
    return LocalStore(tmp_path) if request.param == "local" else MemoryStore()


def links(store):
    keys = sorted(entry.key for entry in store.list(FOLDER))
    return {key.removeprefix(f"{FOLDER}/"): json.loads(store.read(key)) for key in keys}


def held_by_another(store, number=1, **changes):
    """A link of a run on a machine that we know nothing of: taken at 1000, renewed until 1120."""
    link = {"holder": "other", "host": "alpha", "pid": 77, "process": ELSEWHERE}
    content = {**link, "since": 1000.0, "until": 1120.0, "released": False, **changes}
    store.create(f"{FOLDER}/{number:08d}.json", json.dumps(content).encode())


def test_taking_renewing_and_releasing_each_append_a_link(store):
    clock = Clock()
    lease = acquire(store, RECIPE, clock=clock)
    clock.now = 1060
    assert lease.renew() is True
    clock.now = 1090
    lease.release()
    chain = links(store)
    assert list(chain) == ["00000001.json", "00000002.json", "00000003.json"]
    assert [(link["since"], link["until"]) for link in chain.values()] == [
        (1000, 1120),
        (1000, 1180),
        (1000, 1090),
    ]
    assert [link["released"] for link in chain.values()] == [False, False, True]
    assert len({link["holder"] for link in chain.values()}) == 1
    assert lease.lost is None


def test_a_held_lease_is_refused_and_says_by_whom_and_until_when(store):
    held_by_another(store)
    with pytest.raises(LeaseHeldError) as refused:
        acquire(store, RECIPE, clock=Clock(1100))
    assert str(refused.value) == (
        "another run holds recipe r0123456789ab of this output: the run on alpha, process 77, "
        "since 1970-01-01 00:16:40 UTC, until 1970-01-01 00:18:40 UTC unless it goes on"
    )
    assert list(links(store)) == ["00000001.json"]


def test_our_own_process_cannot_take_it_twice(store):
    acquire(store, RECIPE)
    with pytest.raises(LeaseHeldError, match=f"process {os.getpid()}"):
        acquire(store, RECIPE)


def test_another_recipe_has_its_own(store):
    held_by_another(store)
    acquire(store, "rffffffffffff", clock=Clock())


def test_an_expired_lease_is_taken_only_after_the_margin_for_skew(store):
    held_by_another(store)
    with pytest.raises(LeaseHeldError):
        acquire(store, RECIPE, clock=Clock(1120 + SKEW_SECONDS))
    acquire(store, RECIPE, clock=Clock(1120 + SKEW_SECONDS + 0.1))
    assert [link["holder"] == "other" for link in links(store).values()] == [True, False]


def test_a_dead_run_blocks_others_for_three_minutes_at_most(store):
    acquire(store, RECIPE, clock=Clock())
    [only] = links(store).values()
    assert only["until"] + SKEW_SECONDS - 1000 <= 180


def test_a_released_lease_is_taken_at_once(store):
    held_by_another(store)
    held_by_another(store, 2, released=True)
    acquire(store, RECIPE, clock=Clock())
    assert list(links(store))[-1] == "00000003.json"


def test_only_the_last_link_counts(store):
    held_by_another(store, 9, released=True)
    held_by_another(store, 10)
    store.create(f"{FOLDER}/notes.txt", b"")
    store.create(f"{FOLDER}/old/00000099.json", b"")
    with pytest.raises(LeaseHeldError):
        acquire(store, RECIPE, clock=Clock())


def test_who_renews_too_late_loses_it_to_who_took_over(store):
    clock = Clock()
    lease = acquire(store, RECIPE, clock=clock)
    held_by_another(store, 2)
    before = links(store)
    assert lease.renew() is False
    assert lease.lost is not None
    assert lease.lost.host == "alpha"
    lease.release()
    assert links(store) == before


def test_who_renews_too_late_but_before_anybody_came_goes_on(store):
    clock = Clock()
    lease = acquire(store, RECIPE, clock=clock)
    clock.now = 9000
    assert lease.renew() is True
    with pytest.raises(LeaseHeldError):
        acquire(store, RECIPE, clock=clock)


class LostAnswers(MemoryStore):
    """Creates, and then answers as told: that it was there already, or nothing (an error)."""

    def __init__(self):
        super().__init__()
        self.answers = []

    def create(self, key, data):
        created = super().create(key, data)
        answer = self.answers.pop(0) if self.answers else created
        if isinstance(answer, OSError):
            raise answer
        return answer


def test_a_lost_answer_is_no_other_run():
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
    assert [link["released"] for link in links(store).values()] == [False, False, False, True]
    acquire(store, RECIPE, clock=clock)


@pytest.mark.parametrize("before", [None, {"until": 0.0}, {"released": True}])
def test_of_sixteen_takers_exactly_one_gets_it(store, before):
    """From nothing, from an expired and from a released lease."""
    if before is not None:
        held_by_another(store, **before)
    together, outcome = threading.Barrier(16), []

    def taker():
        together.wait()
        try:
            outcome.append(acquire(store, RECIPE))
        except LeaseHeldError:
            outcome.append(None)

    threads = [threading.Thread(target=taker) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outcome) == 16
    assert sum(lease is not None for lease in outcome) == 1
    assert len(links(store)) == (1 if before is None else 2)


@settings(max_examples=60)
@given(
    skews=st.lists(st.floats(-SKEW_SECONDS / 2, SKEW_SECONDS / 2), min_size=3, max_size=3),
    steps=st.lists(
        st.tuples(st.integers(0, 2), st.sampled_from(("take", "renew", "release")), st.floats(0, 150)),
        max_size=40,
    ),
)
def test_no_two_runs_ever_hold_it(skews, steps):
    """Runs on three machines whose clocks differ: who holds is judged by every holder's own clock."""
    store, true = MemoryStore(), Clock(10_000.0)
    held, until = {}, {}
    # All three are this process, which lives: here only time may take a lease away.
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


def test_inside_with_it_is_renewed_and_at_the_end_released(monkeypatch):
    monkeypatch.setattr(leases, "_RENEW_SECONDS", 0.01)
    store = MemoryStore()
    with acquire(store, RECIPE):
        deadline = time.monotonic() + 10
        while len(links(store)) < 4 and time.monotonic() < deadline:
            time.sleep(0.005)
    chain = list(links(store).values())
    assert len(chain) >= 5
    assert [link["released"] for link in chain] == [False] * (len(chain) - 1) + [True]
    untils = [link["until"] for link in chain[:-1]]
    assert untils == sorted(untils)
    acquire(store, RECIPE)


def test_renewing_goes_on_after_the_store_has_failed(monkeypatch):
    monkeypatch.setattr(leases, "_RENEW_SECONDS", 0.01)
    monkeypatch.setattr(leases, "_RETRY_SECONDS", 0.01)
    store = LostAnswers()
    lease = acquire(store, RECIPE)
    store.answers = [TimeoutError()] * 3
    with lease:
        deadline = time.monotonic() + 10
        while len(links(store)) < 8 and time.monotonic() < deadline:
            time.sleep(0.005)
    assert len(links(store)) >= 8
    assert lease.lost is None


def test_losing_it_is_noticed_in_the_background(monkeypatch):
    monkeypatch.setattr(leases, "_RENEW_SECONDS", 0.01)
    store = MemoryStore()
    lease = acquire(store, RECIPE)
    held_by_another(store, 2, until=time.time() + 1000)
    with lease:
        deadline = time.monotonic() + 10
        while lease.lost is None and time.monotonic() < deadline:
            time.sleep(0.005)
    assert lease.lost == LeaseRecord("other", "alpha", 77, ELSEWHERE, 1000.0, lease.lost.until)
    assert list(links(store)) == ["00000001.json", "00000002.json"]


# Who is gone


def test_a_killed_process_of_this_machine_does_not_hold_it(store):
    """Ended and waited for, and ended while nobody has asked how (a zombie)."""
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


def test_only_what_is_known_to_be_gone_is():
    ours = process_name(os.getpid())
    assert ours is not None
    boot, namespace, pid, start = ours.split()
    assert int(pid) == os.getpid()
    assert not is_gone(ours)
    assert not is_gone(None)
    # Of another boot and of another container nothing is known.
    assert not is_gone(f"other {namespace} 4194304 1")
    assert not is_gone(f"{boot} pid:[1] 4194304 1")
    assert is_gone(f"{boot} {namespace} 4194304 1")
    # The pid is there again, as another process.
    assert is_gone(f"{boot} {namespace} {pid} {int(start) - 1}")


def test_where_processes_cannot_be_told_apart_nobody_is_gone(monkeypatch, tmp_path):
    ours = process_name(os.getpid())
    monkeypatch.setattr(leases, "_PROC", tmp_path)
    assert process_name(os.getpid()) is None
    assert not is_gone(ours)
    acquire(MemoryStore(), RECIPE).release()
