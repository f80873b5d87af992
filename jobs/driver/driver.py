"""The loop that feeds shards to workers, replaces lost and hung workers and retries what failed."""

import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, Generic

import ray
from ray.exceptions import ObjectLostError, RayError, RayTaskError

from jobs.driver.json_logs import LOG, log_context
from jobs.driver.loss_tracker import LossTracker
from jobs.driver.outcome import Outcome, ResultT
from jobs.driver.retry_queue import RetryQueue, Task
from jobs.driver.stop_signals import stop_on_signal
from jobs.driver.telemetry import DriverStatus
from jobs.driver.worker_handle import DEFAULT_TIMEOUTS, HangTimeouts, WorkerHandle
from jobs.driver.worker_loss import LOSS_ERRORS
from jobs.driver.worker_process import RayWorker, Worker
from jobs.driver.worker_progress import WorkerProgress, batch_seconds, steady_state_throughput
from jobs.ray_cluster import Workers, failed_in_constructor, original_error

_QUEUE_LENGTH: Final = 2  # per worker: the running shard and the next one
_DRAIN_SECONDS: Final = 12.0
_LAST_PROGRESS_SECONDS: Final = 1.0
_POLL_SECONDS: Final = 0.5
# Of many workers, each is asked for its progress less often, so that the driver has time for results.
_REQUESTS_PER_POLL: Final = 100
# After this many consecutive failures the problem is systemic, not one shard or node.
_MAX_CONSECUTIVE_FAILURES: Final = 10

_log: Final = LOG.getChild("driver")


class Driver(Generic[ResultT]):
    """Runs tasks on a group of equal workers.

    Args:
        worker: The class of the workers.
        settings: The first argument of their constructor.
        workers: Number and resources of the workers.
        on_progress: Called regularly with the images so far by status.
        arguments: Returns the arguments of a worker's `run` for a task, except the last one. Default: the
            generation and the shard.
        reduce: Returns what to keep of a result, so that large results can be merged as they arrive. Default:
            all of it.
        on_warning: Called with a line about every failure that is retried.
        on_status: Called regularly with the state of the run.
        timeouts: How long a worker may make no progress.
        start: Starts a worker. Default: as a Ray actor.
    """

    def __init__(
        self,
        worker: type[Worker],
        settings: object,
        workers: Workers,
        on_progress: Callable[[Counter[str]], None],
        *,
        arguments: Callable[[Task], tuple[Any, ...]] = lambda task: task,
        reduce: Callable[[Any], ResultT] = lambda result: result,
        on_warning: Callable[[str], None] = lambda line: None,
        on_status: Callable[[DriverStatus], None] = lambda status: None,
        timeouts: HangTimeouts = DEFAULT_TIMEOUTS,
        start: Callable[[type[Worker], object, Workers], RayWorker] = RayWorker,
    ) -> None:
        self._worker = worker
        self._settings = settings
        self._workers = workers
        self._on_progress = on_progress
        self._arguments = arguments
        self._reduce = reduce
        self._on_warning = on_warning
        self._on_status = on_status
        self._timeouts = timeouts
        self._start_process = start
        self._stop = threading.Event()
        self._stop_reason = ""
        self._queue = RetryQueue()
        self._handles: list[WorkerHandle] = []
        self._ended: list[WorkerProgress] = []  # progress of workers that are gone
        self._losses = LossTracker(self._queue, self._warn, self.stop)
        self._any_started = False
        self._tasks = self._started = 0
        self._next_request = 0  # index of the worker that is asked for its progress next
        self._outcome = Outcome[ResultT](lost=self._queue.lost)

    def stop(self, reason: str) -> None:
        """Start no more shards. Those that run have _DRAIN_SECONDS to finish."""
        self._stop_reason = self._stop_reason or reason
        self._stop.set()

    def run(self, tasks: list[Task]) -> Outcome[ResultT]:
        """Run every task to its end, with retries; see `RetryQueue`. May be called once.

        Raises:
            CamworkerError: If a worker raised one, for example because it was given a wrong network.
            Exception: Any other error of a worker that a retry cannot fix.
        """
        outcome = self._outcome
        self._queue.add(tasks)
        self._tasks = len(tasks)
        count = min(self._workers.count, len(tasks))
        with stop_on_signal(self.stop):
            self._handles = [self._start() for _ in range(count)]
            last_polled = 0.0
            while self._queue or self._losses or any(handle.queue for handle in self._handles):
                if self._stop.is_set():
                    outcome.stopped = self._stop_reason
                    self._drain()
                    break
                for index in self._wait():
                    if not self._attend(self._handles[index]):
                        self._handles[index] = self._start()
                self._assign()
                # Poll on a timer, not per result: both the results and the cost of a poll grow with the
                # number of workers.
                if time.monotonic() - last_polled >= _POLL_SECONDS:
                    self._poll_progress()
                    self._end_hung()
                    self._losses.explain()
                    self._report()
                    last_polled = time.monotonic()
            self._report()
            self._end_all()
        self._on_status(self._status())
        outcome.images_per_second = steady_state_throughput(self._ended)
        outcome.failed_attempts, outcome.restarts = self._queue.failed_attempts, self._started - count
        return outcome

    def _start(self) -> WorkerHandle:
        self._started += 1
        process = self._start_process(self._worker, self._settings, self._workers)
        return WorkerHandle(process, time.monotonic())

    def _wait(self) -> list[int]:
        """Wait until a worker has started or finished a shard; return the indices of all that have."""
        indices = {
            reference: index
            for index, handle in enumerate(self._handles)
            if (reference := handle.awaited()) is not None
        }
        if not indices:
            self._stop.wait(_POLL_SECONDS)
            return []
        references = list(indices)
        ray.wait(references, timeout=_POLL_SECONDS)  # returns one; the second call returns all that are ready
        ready, _ = ray.wait(references, num_returns=len(references), timeout=0)
        return [indices[reference] for reference in ready]

    def _attend(self, handle: WorkerHandle) -> bool:
        """Take the results of a worker; return False if the worker is lost."""
        try:
            if not handle.has_started():
                return True
        except (RayTaskError, *LOSS_ERRORS) as error:
            # If no worker could be constructed, none can: the network is refused, or a library is missing.
            if not self._any_started and isinstance(error, RayTaskError):
                raise original_error(error) from None
            if not self._any_started and failed_in_constructor(error):
                raise
            self._record_loss(handle, error)
            return False
        self._losses.record_start()
        self._any_started = True
        self._outcome.runtime_info = handle.runtime_info or {}
        try:
            self._collect(handle)
        except LOSS_ERRORS as error:
            self._record_loss(handle, error)
            return False
        return True

    def _assign(self) -> None:
        """Fill the queues of the workers that have started."""
        if not self._queue or self._stop.is_set():
            return
        for handle in self._handles:
            while (
                handle.runtime_info is not None
                and not handle.is_isolating
                and len(handle.queue) < _QUEUE_LENGTH
            ):
                following = self._queue.next(time.monotonic(), alone=not handle.queue)
                if following is None:
                    break
                task, isolate = following
                handle.assign(task, self._arguments(task), isolate)

    def _collect(self, handle: WorkerHandle) -> None:
        """Take the results that have arrived.

        Raises:
            LOSS_ERRORS: If the worker is lost; its queue is unchanged.
            Exception: Any error that a retry cannot fix.
        """
        while handle.queue and ray.wait([handle.queue[0][0]], timeout=0)[0]:
            reference, task = handle.queue[0]
            try:
                self._outcome.done[task] = result = self._reduce(ray.get(reference))
                self._outcome.images.update(result.images)
                handle.progress.running.clear()
                self._queue.record_success()
            except RayTaskError as error:
                # A store or memory may recover; a wrong plan or network does not.
                if not isinstance(error.cause, OSError | MemoryError):
                    raise original_error(error) from None
                self._record_failure(task, f"{type(error.cause).__name__}: {error.cause}")
            except ObjectLostError:
                self._queue.put_back([task])  # the result was on a node that is lost
            handle.queue.popleft()

    def _record_failure(self, task: Task, reason: str) -> None:
        self._queue.record_failure(task, reason, time.monotonic())
        self._warn(task, f"shard {task[1]} failed: {reason}")
        failures = self._queue.consecutive_failures
        if failures >= _MAX_CONSECUTIVE_FAILURES:
            self.stop(f"{failures} shards failed one after another, the last one by {reason}")

    def _record_loss(self, handle: WorkerHandle, error: RayError) -> None:
        """Put the queued shards back; the cause of the loss decides about the running one later."""
        self._ended.append(handle.progress)
        self._losses.add(handle.loss(error, time.monotonic()))
        self._queue.put_back([task for _, task in handle.queue][1:])

    def _poll_progress(self) -> None:
        """Take the progress reports that have arrived and request more, from some workers at a time."""
        requests = {
            handle.progress_request: handle for handle in self._handles if handle.progress_request is not None
        }
        if requests:
            for request in ray.wait(list(requests), num_returns=len(requests), timeout=0)[0]:
                requests[request].receive_progress()
        for _ in range(min(len(self._handles), _REQUESTS_PER_POLL)):
            self._handles[self._next_request % len(self._handles)].request_progress()
            self._next_request += 1

    def _end_hung(self) -> None:
        """Replace workers that make no progress; this counts against the running shard's retry budget."""
        now = time.monotonic()
        every = (*(handle.progress for handle in self._handles), *self._ended)
        slowest = max(batch_seconds(progress) for progress in every)
        for index, handle in enumerate(self._handles):
            handle.observe_progress(now)
            limit = self._timeouts.limit(handle.progress, slowest)
            if handle.quiet_seconds(now) <= limit:
                continue
            handle.process.end()
            self._ended.append(handle.progress)
            running, *queued = [task for _, task in handle.queue]
            reason = f"no progress for {limit:.0f} s"
            self._warn(running, f"shard {running[1]} hung its worker, which was ended: {reason}")
            self._queue.put_back(queued)
            self._queue.record_loss(running, reason)
            self._handles[index] = self._start()

    def _drain(self) -> None:
        """Give every worker a little time to finish its running shard."""
        if running := [handle.queue[0][0] for handle in self._handles if handle.queue]:
            ray.wait(running, num_returns=len(running), timeout=_DRAIN_SECONDS)
        for handle in self._handles:
            with suppress(*LOSS_ERRORS):
                self._collect(handle)

    def _end_all(self) -> None:
        """Take the last progress of the workers that still answer, and end all workers."""
        requests = [handle.process.progress() for handle in self._handles]
        ray.wait(requests, num_returns=len(requests), timeout=_LAST_PROGRESS_SECONDS)
        for handle, request in zip(self._handles, requests, strict=True):
            with suppress(RayError):
                handle.progress = ray.get(request, timeout=0)
            self._ended.append(handle.progress)
            handle.process.end()
        self._handles = []
        self._losses.end_workers()

    def _report(self) -> None:
        """Report images of finished and running shards; those of a lost worker's shard no longer count."""
        images = self._outcome.images.copy()
        for handle in self._handles:
            images.update(handle.progress.running)
        self._on_progress(images)
        self._on_status(self._status())

    def _status(self) -> DriverStatus:
        done, lost = len(self._outcome.done), len(self._outcome.lost)
        running = sum(bool(handle.queue) for handle in self._handles)
        return DriverStatus(
            done,
            self._queue.failed_attempts,
            lost,
            waiting=self._tasks - done - lost - running,
            workers=sum(handle.runtime_info is not None for handle in self._handles),
        )

    def _warn(self, task: Task, line: str) -> None:
        self._on_warning(line)
        with log_context(generation=task[0], shard=task[1]):
            _log.warning(line)
