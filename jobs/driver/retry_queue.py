"""The tasks that wait for a worker: their order, their retries and the pauses between retries."""

import heapq
import random
from collections import Counter, deque
from collections.abc import Callable, Iterable
from typing import Final

_MAX_ATTEMPTS: Final = 3
_FIRST_BACKOFF_SECONDS: Final = 2.0
_MAX_BACKOFF_SECONDS: Final = 60.0

Task = tuple[int, int]  # generation, shard


def backoff_seconds(failures: int, jitter: float) -> float:
    """Return how long to wait before a task is retried.

    The wait doubles with every failure, from 1..2 s up to 30..60 s, so that a failing store gets ever fewer
    requests.

    Args:
        failures: How often the task has failed, from 1.
        jitter: A number from 0 to 1 that spreads the retries of several tasks.
    """
    return min(_MAX_BACKOFF_SECONDS, _FIRST_BACKOFF_SECONDS * 2.0 ** (failures - 1)) * (0.5 + jitter / 2)


class RetryQueue:
    """The tasks that no worker has. Every task has a budget of three attempts.

    Args:
        draw: Draws the jitter of backoff_seconds.

    Attributes:
        lost: The tasks whose retry budget is spent, with the reason for the last failure.
        consecutive_failures: Failures since a task was last done.
    """

    def __init__(self, draw: Callable[[], float] = random.random) -> None:
        self.lost: dict[Task, str] = {}
        self.consecutive_failures = 0
        self._draw = draw
        self._waiting = deque[Task]()
        self._backing_off: list[tuple[float, Task]] = []
        self._attempts = Counter[Task]()
        self._failures = Counter[Task]()
        self._crashing = set[Task]()

    def __len__(self) -> int:
        return len(self._waiting) + len(self._backing_off)

    @property
    def failed_attempts(self) -> int:
        """Attempts of all tasks that were counted against their retry budgets."""
        return self._attempts.total()

    def add(self, tasks: Iterable[Task]) -> None:
        """Append tasks to the queue."""
        self._waiting.extend(tasks)

    def put_back(self, tasks: Iterable[Task]) -> None:
        """Return tasks that were not run to the front of the queue; their retry budgets stay as they are."""
        self._waiting.extendleft(reversed(list(tasks)))

    def next(self, now: float, *, alone: bool = True) -> tuple[Task, bool] | None:
        """Take the next task.

        A task that ended a worker is only given to an idle worker: if two tasks were queued, a second loss
        would not show which of them was the cause.

        Args:
            now: The current time in seconds.
            alone: Whether the worker that asks is idle.

        Returns:
            The task and whether to run it with isolated decoding; None if no task is ready.
        """
        while self._backing_off and self._backing_off[0][0] <= now:
            self._waiting.append(heapq.heappop(self._backing_off)[1])
        if not self._waiting or (self._waiting[0] in self._crashing and not alone):
            return None
        task = self._waiting.popleft()
        return task, task in self._crashing

    def record_success(self) -> None:
        """Record that a task is done, which ends a series of failures."""
        self.consecutive_failures = 0

    def record_failure(self, task: Task, reason: str, now: float) -> None:
        """Record a failure that may pass, of the store or of memory; the task backs off before its retry."""
        self.consecutive_failures += 1
        if self._may_retry(task, reason):
            self._failures[task] += 1
            ready_at = now + backoff_seconds(self._failures[task], self._draw())
            heapq.heappush(self._backing_off, (ready_at, task))

    def record_loss(self, task: Task, reason: str) -> None:
        """Record that a task ended its worker; its retry comes last and isolates decoding."""
        self._crashing.add(task)
        if self._may_retry(task, reason):
            self._waiting.append(task)

    def _may_retry(self, task: Task, reason: str) -> bool:
        """Count an attempt against the retry budget; return whether any is left."""
        self._attempts[task] += 1
        if self._attempts[task] < _MAX_ATTEMPTS:
            return True
        self.lost[task] = reason
        return False
