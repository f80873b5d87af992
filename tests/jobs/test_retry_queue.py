"""The order of tasks: a failure backs off, a task that ended its worker is isolated, retries are bounded."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.driver.retry_queue import RetryQueue, Task, backoff_seconds

A, B, C = (1, 0), (1, 1), (1, 2)


def queue_of(*tasks: Task) -> RetryQueue:
    queue = RetryQueue(draw=lambda: 1.0)
    queue.add(tasks)
    return queue


def drain(queue: RetryQueue, now: float) -> list[tuple[Task, bool]]:
    """Take every task that is ready."""
    taken = []
    while (following := queue.next(now)) is not None:
        taken.append(following)
    return taken


def test_tasks_come_in_order_and_returned_tasks_come_first() -> None:
    queue = queue_of(A, B, C)
    assert [queue.next(0), queue.next(0)] == [(A, False), (B, False)]
    queue.put_back([A, B])
    assert len(queue) == 3
    assert drain(queue, 0) == [(A, False), (B, False), (C, False)]
    assert len(queue) == 0


@pytest.mark.parametrize(
    ("failures", "jitter", "seconds"),
    [(1, 0, 1), (1, 1, 2), (2, 0, 2), (2, 1, 4), (3, 0.5, 6), (6, 0, 30), (6, 1, 60), (50, 1, 60)],
)
def test_the_backoff_doubles_and_is_bounded(failures: int, jitter: float, seconds: float) -> None:
    assert backoff_seconds(failures, jitter) == seconds


def test_a_failed_task_backs_off_while_others_run() -> None:
    queue = queue_of(A, B)
    queue.next(0)
    queue.record_failure(A, "TimeoutError: late", now=100)
    assert drain(queue, 101.9) == [(B, False)]
    assert len(queue) == 1
    # Without isolation: a store that fails is not the fault of an image.
    assert drain(queue, 102) == [(A, False)]
    queue.record_failure(A, "TimeoutError: late", now=200)
    assert drain(queue, 203.9) == []
    assert drain(queue, 204) == [(A, False)]
    queue.record_failure(A, "TimeoutError: too late", now=300)
    assert drain(queue, 1e9) == []
    assert queue.lost == {A: "TimeoutError: too late"}


def test_a_task_that_ended_its_worker_comes_last_and_isolated() -> None:
    queue = queue_of(A, B)
    queue.next(0)
    queue.record_loss(A, "SIGSEGV")
    assert drain(queue, 0) == [(B, False), (A, True)]
    queue.record_loss(A, "SIGSEGV")
    assert drain(queue, 0) == [(A, True)]
    queue.record_loss(A, "hung")
    assert drain(queue, 0) == []
    assert queue.lost == {A: "hung"}


def test_an_isolated_task_waits_for_an_idle_worker() -> None:
    queue = queue_of(A)
    queue.next(0)
    queue.record_loss(A, "SIGSEGV")
    queue.add([B])
    assert queue.next(0, alone=False) is None
    assert queue.next(0) == (A, True)
    assert queue.next(0, alone=False) == (B, False)


def test_failures_and_losses_share_a_budget_and_isolation_stays() -> None:
    queue = queue_of(A)
    queue.next(0)
    queue.record_loss(A, "SIGSEGV")
    queue.next(0)
    queue.record_failure(A, "OSError", now=0)
    assert drain(queue, 10) == [(A, True)]
    queue.record_failure(A, "OSError", now=10)
    assert queue.lost == {A: "OSError"}


def test_a_success_ends_a_series_of_failures() -> None:
    queue = queue_of(A, B, C)
    for task in (A, B):
        queue.record_failure(task, "OSError", now=0)
    assert queue.consecutive_failures == 2
    queue.record_success()
    assert queue.consecutive_failures == 0
    queue.record_loss(C, "SIGKILL")
    assert queue.consecutive_failures == 0


@given(st.lists(st.sampled_from(["done", "failed", "lost", "put back"]), max_size=60), st.integers(1, 6))
def test_every_task_ends_done_or_lost_and_exists_once(fates: list[str], count: int) -> None:
    tasks = [(1, shard) for shard in range(count)]
    queue, done, now = queue_of(*tasks), list[Task](), 0.0
    failures = dict.fromkeys(tasks, 0)
    for fate in [*fates, *["done"] * 200]:
        now += 61
        following = queue.next(now)
        if following is None:
            break
        task, _ = following
        assert task not in done
        assert task not in queue.lost
        if fate == "done":
            done.append(task)
        elif fate == "put back":
            queue.put_back([task])
        else:
            failures[task] += 1
            if fate == "failed":
                queue.record_failure(task, "reason", now)
            else:
                queue.record_loss(task, "reason")
        assert len(queue) + len(done) + len(queue.lost) == count
    assert sorted([*done, *queue.lost]) == tasks
    assert max(failures.values()) <= 3
