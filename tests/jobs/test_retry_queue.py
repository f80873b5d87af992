"""Which task is next: what failed rests, what died comes again carefully, nothing is tried for ever."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.driver.retry_queue import RetryQueue, rest_seconds

A, B, C = (1, 0), (1, 1), (1, 2)


def attempts(*tasks):
    made = RetryQueue(draw=lambda: 1.0)
    made.add(tasks)
    return made


def drain(made, now):
    found = []
    while (following := made.next(now)) is not None:
        found.append(following)
    return found


def test_tasks_come_in_order_and_what_was_not_run_comes_first():
    made = attempts(A, B, C)
    assert [made.next(0), made.next(0)] == [(A, False), (B, False)]
    made.put_back([A, B])
    assert len(made) == 3
    assert drain(made, 0) == [(A, False), (B, False), (C, False)]
    assert len(made) == 0


@pytest.mark.parametrize(
    ("failures", "draw", "seconds"),
    [(1, 0, 1), (1, 1, 2), (2, 0, 2), (2, 1, 4), (3, 0.5, 6), (6, 0, 30), (6, 1, 60), (50, 1, 60)],
)
def test_the_rest_doubles_and_is_bounded(failures, draw, seconds):
    assert rest_seconds(failures, draw) == seconds


def test_what_failed_rests_while_others_go_on():
    made = attempts(A, B)
    made.next(0)
    made.failed(A, "TimeoutError: late", now=100)
    assert drain(made, 101.9) == [(B, False)]
    assert len(made) == 1
    # Not carefully: a store that fails is no image's fault.
    assert drain(made, 102) == [(A, False)]
    made.failed(A, "TimeoutError: late", now=200)
    assert drain(made, 203.9) == []
    assert drain(made, 204) == [(A, False)]
    made.failed(A, "TimeoutError: too late", now=300)
    assert drain(made, 1e9) == []
    assert made.lost == {A: "TimeoutError: too late"}


def test_what_died_comes_again_last_and_carefully():
    made = attempts(A, B)
    made.next(0)
    made.died(A, "SIGSEGV")
    assert drain(made, 0) == [(B, False), (A, True)]
    made.died(A, "SIGSEGV")
    assert drain(made, 0) == [(A, True)]
    made.died(A, "hung")
    assert drain(made, 0) == []
    assert made.lost == {A: "hung"}


def test_a_careful_one_waits_for_a_worker_that_has_nothing_else():
    made = attempts(A)
    made.next(0)
    made.died(A, "SIGSEGV")
    made.add([B])
    assert made.next(0, alone=False) is None
    assert made.next(0) == (A, True)
    assert made.next(0, alone=False) == (B, False)


def test_failures_and_deaths_count_together_and_care_stays():
    made = attempts(A)
    made.next(0)
    made.died(A, "SIGSEGV")
    made.next(0)
    made.failed(A, "OSError", now=0)
    assert drain(made, 10) == [(A, True)]
    made.failed(A, "OSError", now=10)
    assert made.lost == {A: "OSError"}


def test_failures_in_a_row_end_with_a_success():
    made = attempts(A, B, C)
    for task in (A, B):
        made.failed(task, "OSError", now=0)
    assert made.in_a_row == 2
    made.done()
    assert made.in_a_row == 0
    made.died(C, "SIGKILL")
    assert made.in_a_row == 0


@given(st.lists(st.sampled_from(["done", "failed", "died", "put back"]), max_size=60), st.integers(1, 6))
def test_every_task_ends_done_or_lost_and_is_never_at_two_places(fates, count):
    tasks = [(1, shard) for shard in range(count)]
    made, done, now = attempts(*tasks), [], 0.0
    tried = dict.fromkeys(tasks, 0)
    for fate in [*fates, *["done"] * 200]:
        now += 61
        following = made.next(now)
        if following is None:
            break
        task, _ = following
        assert task not in done
        assert task not in made.lost
        if fate == "done":
            done.append(task)
        elif fate == "put back":
            made.put_back([task])
        else:
            tried[task] += 1
            made.failed(task, "why", now) if fate == "failed" else made.died(task, "why")
        assert len(made) + len(done) + len(made.lost) == count
    assert sorted([*done, *made.lost]) == tasks
    assert max(tried.values()) <= 3
