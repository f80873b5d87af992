"""The driver's loop: shards to actors, two queued each; lost actors replaced, attempts bounded."""

import signal
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, Generic, Protocol, TypeVar

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError, RayTaskError

from jobs.cluster import Workers
from jobs.worker import Tally

_QUEUED: Final = 2
_ATTEMPTS: Final = 3
_DRAIN_SECONDS: Final = 15.0
_POLL_SECONDS: Final = 0.5

Task = tuple[int, int]  # generation, shard
OnProgress = Callable[[Counter[str]], None]


class Counted(Protocol):
    """What is kept of a shard that is done. images: count by status."""

    @property
    def images(self) -> Mapping[str, int]: ...


Kept = TypeVar("Kept", bound=Counted)


@dataclass
class Outcome(Generic[Kept]):
    """What a run of shards came to. lost: shards that killed their worker _ATTEMPTS times."""

    done: dict[Task, Kept] = field(default_factory=dict)
    lost: list[Task] = field(default_factory=list)
    stopped: str | None = None
    about: dict[str, Any] = field(default_factory=dict)
    images_per_second: float | None = None


class _Slot:
    """A worker: its actor, the shards it was given (the first one runs), and its last tally."""

    def __init__(self, worker: type, settings: Any, workers: Workers) -> None:
        actor_class = ray.remote(
            num_cpus=workers.cores, num_gpus=workers.gpus, concurrency_groups={"tally": 1}
        )(worker)
        self.actor: ActorHandle = actor_class.remote(settings, workers.cores)
        self.queue: deque[tuple[ray.ObjectRef, Task]] = deque()
        self.tally = Tally()
        self.about: dict[str, Any] | None = None
        self._starting: ray.ObjectRef = self.actor.about.remote()
        self._asked: ray.ObjectRef | None = None

    def is_up(self) -> bool:
        """Whether the worker has started. Raises what kept it from starting."""
        if self.about is None and ray.wait([self._starting], timeout=0)[0]:
            try:
                self.about = ray.get(self._starting)
            except RayActorError as error:
                raise (error.__cause__ or error) from None
        return self.about is not None

    def give(self, task: Task, arguments: tuple[Any, ...], careful: bool) -> None:
        self.queue.append((self.actor.run.remote(*arguments, careful), task))

    def poll(self) -> None:
        """Take the tally asked for last time, if it is there, and ask for the next."""
        if self._asked is not None and not ray.wait([self._asked], timeout=0)[0]:
            return
        if self._asked is not None:
            try:
                self.tally = ray.get(self._asked)
            except RayActorError:
                return  # the loop sees its shards fail and replaces it
        self._asked = self.actor.tally.remote()

    def pending(self) -> list[ray.ObjectRef]:
        """What to wait for: the start, then the shards."""
        return [ref for ref, _ in self.queue] if self.about is not None else [self._starting]


class Driver(Generic[Kept]):
    """Runs tasks to their end on so many workers.

    worker: a class like jobs.worker.Worker, made of (settings, cores), with about, run and tally.
    arguments: what a worker's run is given for a task before careful; default the task's numbers.
    keep: what stays of a result, so that large ones can be merged as they come; default all of it.
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
    ) -> None:
        self._worker = worker
        self._settings = settings
        self._workers = workers
        self._on_progress = on_progress
        self._arguments = arguments
        self._keep = keep
        self._stop = threading.Event()
        self._why = ""
        self._gone: list[Tally] = []
        self._waiting: deque[Task] = deque()
        self._attempts = Counter[Task]()

    def stop(self, why: str) -> None:
        """Start nothing more; what runs may finish within _DRAIN_SECONDS."""
        self._why = self._why or why
        self._stop.set()

    def run(self, tasks: list[Task]) -> Outcome[Kept]:
        """Run every task once; one whose worker died again, carefully, _ATTEMPTS times at most."""
        outcome = Outcome[Kept]()
        self._waiting.extend(tasks)
        with self._drain_on_signal():
            slots = [self._start() for _ in range(min(self._workers.count, len(tasks)))]
            while self._waiting or any(slot.queue for slot in slots):
                if self._stop.is_set():
                    outcome.stopped = self._why
                    self._drain(slots, outcome)
                    break
                for slot in slots:
                    # A worker that has not started is given nothing: another may be free before it.
                    if slot.is_up():
                        outcome.about = slot.about or {}
                        self._fill(slot)
                if pending := [ref for slot in slots for ref in slot.pending()]:
                    ray.wait(pending, timeout=_POLL_SECONDS)
                for index, slot in enumerate(slots):
                    slot.poll()
                    if not self._collect(slot, outcome):
                        slots[index] = self._replace(slot, outcome)
                self._report(slots, outcome)
            for slot in slots:
                self._gone.append(self._last_tally(slot))
                ray.kill(slot.actor)
        outcome.images_per_second = _steady_rate(self._gone)
        return outcome

    def _start(self) -> _Slot:
        return _Slot(self._worker, self._settings, self._workers)

    def _fill(self, slot: _Slot) -> None:
        while self._waiting and len(slot.queue) < _QUEUED:
            task = self._waiting.popleft()
            slot.give(task, self._arguments(task), careful=self._attempts[task] > 0)

    def _collect(self, slot: _Slot, outcome: Outcome[Kept]) -> bool:
        """Take what slot has finished. False when its actor is dead."""
        while slot.queue and ray.wait([slot.queue[0][0]], timeout=0)[0]:
            ref, task = slot.queue[0]
            try:
                outcome.done[task] = self._keep(ray.get(ref))
            except RayTaskError as error:
                cause = error.as_instanceof_cause()
                if not isinstance(cause, OSError) or self._attempts[task] + 1 >= _ATTEMPTS:
                    raise cause from None
                # The store may recover; a plan or a network that is wrong does not.
                self._attempts[task] += 1
                self._waiting.append(task)
            except RayActorError:
                return False
            slot.queue.popleft()
        return True

    def _replace(self, slot: _Slot, outcome: Outcome[Kept]) -> _Slot:
        """A new worker for a dead one. Only the shard that was running is charged with the death."""
        ray.kill(slot.actor)  # it may only be out of reach, and still hold its cores
        self._gone.append(slot.tally)
        running, *queued = [task for _, task in slot.queue]
        self._waiting.extendleft(reversed(queued))
        self._attempts[running] += 1
        if self._attempts[running] < _ATTEMPTS:
            self._waiting.append(running)
        else:
            outcome.lost.append(running)
        return self._start()

    def _drain(self, slots: list[_Slot], outcome: Outcome[Kept]) -> None:
        """Let every worker finish the shard that it runs, for a while."""
        if running := [slot.queue[0][0] for slot in slots if slot.queue]:
            ray.wait(running, num_returns=len(running), timeout=_DRAIN_SECONDS)
        for slot in slots:
            self._collect(slot, outcome)

    def _last_tally(self, slot: _Slot) -> Tally:
        try:
            return ray.get(slot.actor.tally.remote(), timeout=_DRAIN_SECONDS)
        except (RayActorError, ray.exceptions.GetTimeoutError):
            return slot.tally

    def _report(self, slots: list[_Slot], outcome: Outcome[Kept]) -> None:
        """Tell of what is committed and of what runs; what a dead worker had not committed is undone."""
        images: Counter[str] = Counter()
        for done in outcome.done.values():
            images.update(done.images)
        for slot in slots:
            images.update(slot.tally.running)
        self._on_progress(images)

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


def _steady_rate(tallies: list[Tally]) -> float | None:
    """Images per second after each worker's first batch; None where no worker had a second one."""
    steady = [tally for tally in tallies if tally.last_at > tally.first_at > 0]
    if not steady:
        return None
    images = sum(tally.images - tally.first_batch for tally in steady)
    return images / (max(tally.last_at for tally in steady) - min(tally.first_at for tally in steady))
