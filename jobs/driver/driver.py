"""The driver's loop: shards to actors, two queued each; lost and hung actors replaced, attempts bounded."""

import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final, Generic, Protocol, TypeVar

import ray
from ray.exceptions import GetTimeoutError, ObjectLostError, RayActorError, RayError, RayTaskError

from jobs import json_logs as logs
from jobs.driver.retry_queue import RetryQueue, Task
from jobs.driver.telemetry import DriverStatus
from jobs.driver.worker_handle import (
    DEATHS,
    PATIENCE,
    HangTimeouts,
    LossCause,
    RayWorker,
    WorkerHandle,
    WorkerLoss,
    living_nodes,
)
from jobs.driver.worker_progress import WorkerProgress, batch_seconds, steady_rate
from jobs.ray_cluster import Workers

_QUEUED: Final = 2
_DRAIN_SECONDS: Final = 12.0
_LAST_TALLY_SECONDS: Final = 1.0
_POLL_SECONDS: Final = 0.5
_TALLIES_AT_ONCE: Final = 100  # so that of many workers each is asked less often, and the driver has time
# So often in a row, and it is not one shard's or one node's trouble.
_FAILURES_IN_A_ROW: Final = 10
_DEATHS_AT_START: Final = 5

_log = logs.LOG.getChild("driver")

OnProgress = Callable[[Counter[str]], None]


class Counted(Protocol):
    """What is kept of a shard that is done. images: count by status."""

    @property
    def images(self) -> Mapping[str, int]: ...


Kept = TypeVar("Kept", bound=Counted)


@dataclass
class Outcome(Generic[Kept]):
    """What a run of shards came to. lost: shards that could not be done -> why, as they failed last.

    images: those of the shards that are done, by status. failed_attempts counts attempts, restarts the
    workers that took the place of others.
    """

    done: dict[Task, Kept] = field(default_factory=dict)
    images: Counter[str] = field(default_factory=Counter)
    lost: dict[Task, str] = field(default_factory=dict)
    stopped: str | None = None
    about: dict[str, Any] = field(default_factory=dict)
    images_per_second: float | None = None
    failed_attempts: int = 0
    restarts: int = 0


class Driver(Generic[Kept]):
    """Runs tasks to their end on so many workers.

    worker: a class like jobs.worker.Worker, made of (settings, cores), with about, run and tally.
    arguments: what a worker's run is given for a task before careful; default the task's numbers.
    keep: what stays of a result, so that large ones can be merged as they come; default all of it.
    tell: told in a line of what went wrong and is tried again. watch: told again and again how far it is.
    start: how a worker is started; default as an actor of its own.
    """

    def __init__(
        self,
        worker: type,
        settings: Any,
        workers: Workers,
        on_progress: OnProgress,
        *,
        arguments: Callable[[Task], tuple[Any, ...]] = lambda task: task,
        keep: Callable[[Any], Kept] = lambda result: result,
        tell: Callable[[str], None] = lambda line: None,
        watch: Callable[[DriverStatus], None] = lambda standing: None,
        patience: HangTimeouts = PATIENCE,
        start: Callable[[type, Any, Workers], RayWorker] = RayWorker,
    ) -> None:
        self._worker = worker
        self._settings = settings
        self._workers = workers
        self._on_progress = on_progress
        self._arguments = arguments
        self._keep = keep
        self._tell = tell
        self._watch = watch
        self._patience = patience
        self._start_actor = start
        self._stop = threading.Event()
        self._why = ""
        self._gone: list[WorkerProgress] = []
        self._turn = 0  # whose tally is asked for next
        self._attempts = RetryQueue()
        self._doubts: list[WorkerLoss] = []
        self._deaths_at_start, self._died_at_start_at = 0, 0.0
        self._came_up = False
        self._tasks = 0
        self._started = 0

    def stop(self, why: str) -> None:
        """Start nothing more; what runs may finish within _DRAIN_SECONDS."""
        self._why = self._why or why
        self._stop.set()

    def run(self, tasks: list[Task]) -> Outcome[Kept]:
        """Run every task once; again where that failed, see RetryQueue, and carefully after a death."""
        outcome = Outcome[Kept](lost=self._attempts.lost)
        self._attempts.add(tasks)
        self._tasks = len(tasks)
        with self._drain_on_signal():
            count = min(self._workers.count, len(tasks))
            slots = [self._start() for _ in range(count)]
            looked_at = 0.0
            while self._attempts or self._doubts or any(slot.queue for slot in slots):
                if self._stop.is_set():
                    outcome.stopped = self._why
                    self._drain(slots, outcome)
                    break
                for index in self._wait(slots):
                    if not self._attend(slots[index], outcome):
                        slots[index] = self._start()
                self._fill(slots)
                # Not for each result: there are the more of them, the more workers there are to look at.
                if time.monotonic() - looked_at >= _POLL_SECONDS:
                    self._poll(slots)
                    self._end_hung(slots)
                    self._settle_doubts()
                    self._report(slots, outcome)
                    looked_at = time.monotonic()
            self._report(slots, outcome)
            self._end(slots)
        self._watch(self._standing([], outcome))
        outcome.images_per_second = steady_rate(self._gone)
        outcome.failed_attempts, outcome.restarts = self._attempts.charged, self._started - count
        return outcome

    def _start(self) -> WorkerHandle:
        self._started += 1
        return WorkerHandle(self._start_actor(self._worker, self._settings, self._workers), time.monotonic())

    def _wait(self, slots: list[WorkerHandle]) -> list[int]:
        """Wait a while until a worker has started or finished a shard: the places of those that have."""
        places = {ref: index for index, slot in enumerate(slots) if (ref := slot.waits_for()) is not None}
        if not places:
            self._stop.wait(_POLL_SECONDS)
            return []
        refs = list(places)
        ray.wait(refs, timeout=_POLL_SECONDS)  # for one; the others that are there come with it
        return [places[ref] for ref in ray.wait(refs, num_returns=len(refs), timeout=0)[0]]

    def _attend(self, slot: WorkerHandle, outcome: Outcome[Kept]) -> bool:
        """Take what slot has finished. False when its actor is dead."""
        try:
            if slot.is_up():
                self._deaths_at_start, self._came_up = 0, True
                outcome.about = slot.about or {}
                self._collect(slot, outcome)
        except DEATHS as error:
            # Where no worker could be made, none can: a network that is refused, a library that lacks.
            if not self._came_up and isinstance(error, RayActorError) and error.actor_init_failed:
                raise
            self._bury(slot, error)
            return False
        return True

    def _fill(self, slots: list[WorkerHandle]) -> None:
        """Give shards to workers that have too few queued, while there are any.

        One that has to be run carefully is given alone: of two, a death would not say which was the cause,
        since a worker that dies may take the result of the shard before with it.
        """
        if not self._attempts or self._stop.is_set():
            return
        for slot in slots:
            # A worker that has not started is given nothing: another may be free before it.
            while slot.about is not None and not slot.careful and len(slot.queue) < _QUEUED:
                following = self._attempts.next(time.monotonic(), alone=not slot.queue)
                if following is None:
                    break
                task, careful = following
                slot.give(task, self._arguments(task), careful)

    def _collect(self, slot: WorkerHandle, outcome: Outcome[Kept]) -> None:
        """Take the results of slot. Raises DEATHS, its queue as it was, and what no other try would mend."""
        while slot.queue and ray.wait([slot.queue[0][0]], timeout=0)[0]:
            ref, task = slot.queue[0]
            try:
                outcome.done[task] = kept = self._keep(ray.get(ref))
                outcome.images.update(kept.images)
                slot.tally.running.clear()
                self._attempts.done()
            except RayTaskError as error:
                # The store or the memory may recover; a plan or a network that is wrong does not.
                if not isinstance(error.cause, OSError | MemoryError):
                    raise error.as_instanceof_cause() from None
                self._fail(task, f"{type(error.cause).__name__}: {error.cause}")
            except ObjectLostError:
                self._attempts.put_back([task])  # its node went with the result
            slot.queue.popleft()

    def _fail(self, task: Task, why: str) -> None:
        self._attempts.failed(task, why, time.monotonic())
        self._warn(task, f"shard {task[1]} failed: {why}")
        if self._attempts.in_a_row >= _FAILURES_IN_A_ROW:
            self.stop(f"{self._attempts.in_a_row} shards failed one after another, the last one by {why}")

    def _bury(self, slot: WorkerHandle, error: RayError) -> None:
        """Take back what a dead worker was given. Whether the shard that ran is charged shows later."""
        self._gone.append(slot.tally)
        self._doubts.append(WorkerLoss(slot, error, time.monotonic()))
        self._attempts.put_back([task for _, task in slot.queue][1:])

    def _settle_doubts(self) -> None:
        """Charge the shards that ran on workers that died; the loss of a node charges none."""
        if not self._doubts:
            return
        nodes, unclear = living_nodes(), []
        for doubt in self._doubts:
            verdict = doubt.verdict(time.monotonic(), nodes)
            if verdict is LossCause.UNKNOWN:
                unclear.append(doubt)
                continue
            doubt.end()
            if doubt.task is None:
                self._died_at_start(doubt, verdict)
            elif verdict is LossCause.NODE:
                self._warn(doubt.task, f"a node was lost: shard {doubt.task[1]} is run elsewhere")
                self._attempts.put_back([doubt.task])
            else:
                self._warn(doubt.task, f"shard {doubt.task[1]} ended its worker: {doubt.why}")
                self._attempts.died(doubt.task, doubt.why)
        self._doubts = unclear

    def _died_at_start(self, doubt: WorkerLoss, verdict: LossCause) -> None:
        """Count it, unless another one died since it was made: workers that die together are one mishap."""
        if verdict is LossCause.WORKER and doubt.made_at >= self._died_at_start_at:
            self._deaths_at_start += 1
            self._died_at_start_at = doubt.since
        if self._deaths_at_start >= _DEATHS_AT_START:
            self.stop(f"workers die before they have started: {doubt.why}")

    def _poll(self, slots: list[WorkerHandle]) -> None:
        """Take the tallies that have come, and ask some workers, each in its turn, for the next."""
        asked = {slot.asked: slot for slot in slots if slot.asked is not None}
        for ref in ray.wait(list(asked), num_returns=len(asked), timeout=0)[0] if asked else ():
            asked[ref].take_tally()
        for _ in range(min(len(slots), _TALLIES_AT_ONCE)):
            slots[self._turn % len(slots)].ask_tally()
            self._turn += 1

    def _end_hung(self, slots: list[WorkerHandle]) -> None:
        """Kill workers that make no progress; the shard that ran is charged, and run carefully."""
        now = time.monotonic()
        slowest = max(batch_seconds(tally) for tally in (*(slot.tally for slot in slots), *self._gone))
        for index, slot in enumerate(slots):
            slot.note_progress(now)
            limit = self._patience.limit(slot.tally, slowest)
            if slot.quiet_seconds(now) <= limit:
                continue
            slot.actor.end()
            self._gone.append(slot.tally)
            running, *queued = [task for _, task in slot.queue]
            why = f"no progress for {limit:.0f} s"
            self._warn(running, f"shard {running[1]} hung its worker, which was ended: {why}")
            self._attempts.put_back(queued)
            self._attempts.died(running, why)
            slots[index] = self._start()

    def _drain(self, slots: list[WorkerHandle], outcome: Outcome[Kept]) -> None:
        """Let every worker finish the shard that it runs, for a while."""
        if running := [slot.queue[0][0] for slot in slots if slot.queue]:
            ray.wait(running, num_returns=len(running), timeout=_DRAIN_SECONDS)
        for slot in slots:
            with suppress(*DEATHS):
                self._collect(slot, outcome)

    def _end(self, slots: list[WorkerHandle]) -> None:
        """Take the last tallies of those that still answer, and end every worker."""
        asked = [slot.actor.tally() for slot in slots]
        ray.wait(asked, num_returns=len(asked), timeout=_LAST_TALLY_SECONDS)
        for slot, ref in zip(slots, asked, strict=True):
            with suppress(*DEATHS, GetTimeoutError):
                slot.tally = ray.get(ref, timeout=0)
            self._gone.append(slot.tally)
            slot.actor.end()
        for doubt in self._doubts:
            doubt.end()

    def _report(self, slots: list[WorkerHandle], outcome: Outcome[Kept]) -> None:
        """Tell of what is committed and of what runs; what a dead worker had not committed is undone."""
        images = outcome.images.copy()
        for slot in slots:
            images.update(slot.tally.running)
        self._on_progress(images)
        self._watch(self._standing(slots, outcome))

    def _standing(self, slots: list[WorkerHandle], outcome: Outcome[Kept]) -> DriverStatus:
        done, lost, running = len(outcome.done), len(outcome.lost), sum(bool(slot.queue) for slot in slots)
        workers = sum(slot.about is not None for slot in slots)
        return DriverStatus(done, self._attempts.charged, lost, self._tasks - done - lost - running, workers)

    def _warn(self, task: Task, line: str) -> None:
        self._tell(line)
        with logs.log_context(generation=task[0], shard=task[1]):
            _log.warning(line)

    @contextmanager
    def _drain_on_signal(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = (signal.SIGTERM, signal.SIGINT)
        before = [signal.getsignal(number) for number in numbers]
        for number in numbers:
            signal.signal(number, lambda received, _: self.stop(signal.Signals(received).name))
        try:
            yield
        finally:
            for number, handler in zip(numbers, before, strict=True):
                signal.signal(number, handler)
