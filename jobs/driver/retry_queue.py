"""Which task is next: what waits, what rests after a failure, how often each may be tried."""

import heapq
import random
from collections import Counter, deque
from collections.abc import Callable, Iterable
from typing import Final

_ATTEMPTS: Final = 3
_FIRST_REST: Final = 2.0
_LONGEST_REST: Final = 60.0

Task = tuple[int, int]  # generation, shard


def rest_seconds(failures: int, draw: float) -> float:
    """How long a task rests after so many failures (from 1); draw, from 0 to 1, spreads tasks apart.

    Doubles from 1..2 s to 30..60 s, so that a store in trouble is asked ever less often.
    """
    return min(_LONGEST_REST, _FIRST_REST * 2 ** (failures - 1)) * (0.5 + draw / 2)


class RetryQueue:
    """The tasks that no worker has. Times are of one clock, in seconds, that its caller reads.

    lost: tasks that were tried _ATTEMPTS times -> why the last one failed.
    """

    def __init__(self, draw: Callable[[], float] = random.random) -> None:
        self.lost: dict[Task, str] = {}
        self.in_a_row = 0
        self._draw = draw
        self._waiting = deque[Task]()
        self._resting: list[tuple[float, Task]] = []
        self._spent = Counter[Task]()
        self._failures = Counter[Task]()
        self._deadly = set[Task]()

    def __len__(self) -> int:
        return len(self._waiting) + len(self._resting)

    @property
    def charged(self) -> int:
        """How many attempts have failed, of all tasks."""
        return self._spent.total()

    def add(self, tasks: Iterable[Task]) -> None:
        """Tasks to be run after those that wait."""
        self._waiting.extend(tasks)

    def put_back(self, tasks: Iterable[Task]) -> None:
        """Tasks that no worker has run after all: first again, and not charged."""
        self._waiting.extendleft(reversed(list(tasks)))

    def next(self, now: float, *, alone: bool = True) -> tuple[Task, bool] | None:
        """The next task, and whether it has to be run carefully; None while all rest, or none is left.

        alone: whether the worker that asks has nothing else to do. One that has waits with a careful task.
        """
        while self._resting and self._resting[0][0] <= now:
            self._waiting.append(heapq.heappop(self._resting)[1])
        if not self._waiting or (self._waiting[0] in self._deadly and not alone):
            return None
        task = self._waiting.popleft()
        return task, task in self._deadly

    def done(self) -> None:
        """Some task has been run: what failed before was not everywhere."""
        self.in_a_row = 0

    def failed(self, task: Task, why: str, now: float) -> None:
        """Charge a task with a failure that may pass, of a store or of memory: it rests, then comes again.

        in_a_row counts failures since a task was done.
        """
        self.in_a_row += 1
        if self._charge(task, why):
            self._failures[task] += 1
            heapq.heappush(self._resting, (now + rest_seconds(self._failures[task], self._draw()), task))

    def died(self, task: Task, why: str) -> None:
        """Charge a task with its worker's death: it comes again after the others, to be run carefully."""
        self._deadly.add(task)
        if self._charge(task, why):
            self._waiting.append(task)

    def _charge(self, task: Task, why: str) -> bool:
        """Whether the task may be tried again."""
        self._spent[task] += 1
        if self._spent[task] < _ATTEMPTS:
            return True
        self.lost[task] = why
        return False
