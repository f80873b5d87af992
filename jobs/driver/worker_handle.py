"""A worker as the driver sees it: its process, its queue of shards and its progress."""

from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import ray
from ray.exceptions import RayError

from jobs.driver.retry_queue import Task
from jobs.driver.worker_loss import LOSS_ERRORS, WorkerLoss
from jobs.driver.worker_process import RayWorker, RuntimeInfo
from jobs.driver.worker_progress import WorkerProgress


@dataclass(frozen=True, slots=True)
class HangTimeouts:
    """How long a worker may make no progress before it counts as hung.

    Attributes:
        first_batch_seconds: Limit until the first batch is done, while the worker's speed is unknown.
        quiet_seconds: Least limit after the first batch.
        batches: Limit after the first batch, in batches of the slowest worker, if that is longer.
    """

    first_batch_seconds: float = 900.0
    quiet_seconds: float = 300.0
    batches: float = 20.0

    def limit(self, progress: WorkerProgress, slowest: float) -> float:
        """Return the limit of a worker in seconds.

        Args:
            progress: The worker's progress.
            slowest: The largest `batch_seconds` of any worker.
        """
        if not progress.images:
            return self.first_batch_seconds
        return max(self.quiet_seconds, self.batches * slowest)


DEFAULT_TIMEOUTS: Final = HangTimeouts()


class WorkerHandle:
    """A worker with the shards it was assigned, of which the first is running.

    Args:
        process: The worker's process, which is starting.
        now: The current time.

    Attributes:
        queue: The assigned tasks, each with the reference to its result.
        progress: The progress that the worker reported last.
        runtime_info: What the worker found out about its machine; None until it has started.
        progress_request: The request for progress that is not answered yet.
    """

    def __init__(self, process: RayWorker, now: float) -> None:
        self.process = process
        self.queue: deque[tuple[ray.ObjectRef, Task]] = deque()
        self.progress = WorkerProgress()
        self.runtime_info: RuntimeInfo | None = None
        self.progress_request: ray.ObjectRef | None = None
        self._isolate = False
        self._node: str | None = None
        self._introduction = process.introduce()
        self._started_at = self._moved_at = now
        self._last_seen: tuple[Task | None, int, int] = (None, 0, 0)

    def has_started(self) -> bool:
        """Return whether the worker has started.

        Raises:
            RayTaskError: If the worker refused to start with an error of camworker.
            LOSS_ERRORS: If the worker was lost.
        """
        if self.runtime_info is None and ray.wait([self._introduction], timeout=0)[0]:
            self.runtime_info, self._node = ray.get(self._introduction)
        return self.runtime_info is not None

    @property
    def is_isolating(self) -> bool:
        """Whether the worker runs a shard with isolated decoding."""
        return bool(self.queue) and self._isolate

    @property
    def running_task(self) -> Task | None:
        """The task that the worker is running, if any."""
        return self.queue[0][1] if self.queue else None

    def assign(self, task: Task, arguments: tuple[Any, ...], isolate: bool) -> None:
        """Queue a task.

        Args:
            task: The task.
            arguments: The arguments of the worker's `run`, except the last one.
            isolate: The last argument: whether to decode every image in a process of its own.
        """
        self._isolate = isolate
        self.queue.append((self.process.run(*arguments, isolate), task))

    def request_progress(self) -> None:
        """Ask for the worker's progress, unless a request is still open."""
        if self.runtime_info is not None and self.progress_request is None:
            self.progress_request = self.process.progress()

    def receive_progress(self) -> None:
        """Take the answer to the open request, which has arrived."""
        request, self.progress_request = self.progress_request, None
        # The result of the running shard reports a loss too, and the driver handles the loss there.
        with suppress(*LOSS_ERRORS):
            self.progress = ray.get(request)

    def observe_progress(self, now: float) -> None:
        """Restart the deadline if the worker has preprocessed an image or finished a batch."""
        seen = (self.running_task, self.progress.images, self.progress.preprocessed)
        if seen != self._last_seen:
            self._last_seen, self._moved_at = seen, now

    def quiet_seconds(self, now: float) -> float:
        """Return how long the running shard has made no progress; 0 for an idle worker."""
        return now - self._moved_at if self.queue else 0.0

    def awaited(self) -> ray.ObjectRef | None:
        """Return what the driver waits for: the start, or the running shard; None for an idle worker."""
        if self.runtime_info is None:
            return self._introduction
        return self.queue[0][0] if self.queue else None

    def loss(self, error: RayError, now: float) -> WorkerLoss:
        """Return the loss of this worker, which an error has reported."""
        return WorkerLoss(self.process, self._node, self.running_task, self._started_at, error, now)
