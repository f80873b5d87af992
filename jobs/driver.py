"""The driver's loop: shards to actors, two queued each; lost actors replaced, attempts bounded."""

import signal
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import ray
from ray.actor import ActorHandle
from ray.exceptions import ActorDiedError, RayActorError, RayTaskError

from camworker.shard import Done
from jobs.cluster import Workers
from jobs.worker import Settings, Tally, Worker

_QUEUED: Final = 2
_ATTEMPTS: Final = 3
_DRAIN_SECONDS: Final = 15.0
_POLL_SECONDS: Final = 0.5

Task = tuple[int, int]  # generation, shard
OnProgress = Callable[[Counter[str], int], None]


@dataclass
class Outcome:
    """What a run of shards came to. lost: shards that killed their worker _ATTEMPTS times."""

    done: dict[Task, Done] = field(default_factory=dict)
    lost: list[Task] = field(default_factory=list)
    stopped: str | None = None
    about: dict[str, Any] = field(default_factory=dict)
    images_per_second: float | None = None


class _Slot:
    """A worker: its actor, the shards it was given (the first one runs), and its last tally."""

    def __init__(self, settings: Settings, workers: Workers) -> None:
        actor_class = ray.remote(
            num_cpus=workers.cores, num_gpus=workers.gpus, concurrency_groups={"tally": 1}
        )(Worker)
        self.actor: ActorHandle = actor_class.remote(settings, workers.cores)
        self.queue: deque[tuple[ray.ObjectRef, Task]] = deque()
        self.tally = Tally()
        self._asked: ray.ObjectRef | None = None

    def give(self, task: Task, careful: bool) -> None:
        self.queue.append((self.actor.run.remote(*task, careful), task))

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


class Driver:
    """Runs tasks to their end on so many workers."""

    def __init__(self, settings: Settings, workers: Workers, on_progress: OnProgress) -> None:
        self._settings = settings
        self._workers = workers
        self._on_progress = on_progress
        self._stop = threading.Event()
        self._why = ""
        self._gone: list[Tally] = []

    def stop(self, why: str) -> None:
        """Start nothing more; what runs may finish within _DRAIN_SECONDS."""
        self._why = self._why or why
        self._stop.set()

    def run(self, tasks: list[Task]) -> Outcome:
        """Run every task once; one whose worker died again, carefully, _ATTEMPTS times at most."""
        outcome, waiting, attempts = Outcome(), deque(tasks), Counter[Task]()
        with self._drain_on_signal():
            slots = [self._start() for _ in range(min(self._workers.count, len(tasks)))]
            outcome.about = self._first_answer(slots)
            while waiting or any(slot.queue for slot in slots):
                if self._stop.is_set():
                    outcome.stopped = self._why
                    self._drain(slots, outcome)
                    break
                for slot in slots:
                    while waiting and len(slot.queue) < _QUEUED:
                        task = waiting.popleft()
                        slot.give(task, careful=attempts[task] > 0)
                ray.wait([ref for slot in slots for ref, _ in slot.queue], timeout=_POLL_SECONDS)
                for index, slot in enumerate(slots):
                    slot.poll()
                    if not self._collect(slot, outcome):
                        slots[index] = self._replace(slot, waiting, attempts, outcome)
                self._report(slots, outcome)
            for slot in slots:
                self._gone.append(self._last_tally(slot))
                ray.kill(slot.actor)
        outcome.images_per_second = _steady_rate(self._gone)
        return outcome

    def _start(self) -> _Slot:
        return _Slot(self._settings, self._workers)

    def _first_answer(self, slots: list[_Slot]) -> dict[str, Any]:
        """Wait for a worker to be up. What keeps one from starting keeps all: raise it as it was."""
        try:
            return ray.get(slots[0].actor.about.remote())
        except ActorDiedError as error:
            raise (error.__cause__ or error) from None

    def _collect(self, slot: _Slot, outcome: Outcome) -> bool:
        """Take what slot has finished. False when its actor is dead."""
        while slot.queue and ray.wait([slot.queue[0][0]], timeout=0)[0]:
            ref, task = slot.queue[0]
            try:
                outcome.done[task] = ray.get(ref)
            except RayTaskError as error:
                raise error.as_instanceof_cause() from None
            except RayActorError:
                return False
            slot.queue.popleft()
        return True

    def _replace(self, slot: _Slot, waiting: deque[Task], attempts: Counter[Task], outcome: Outcome) -> _Slot:
        """A new worker for a dead one. Only the shard that was running is charged with the death."""
        self._gone.append(slot.tally)
        running, *queued = [task for _, task in slot.queue]
        attempts[running] += 1
        waiting.extendleft(reversed(queued))
        if attempts[running] < _ATTEMPTS:
            waiting.append(running)
        else:
            outcome.lost.append(running)
        return self._start()

    def _drain(self, slots: list[_Slot], outcome: Outcome) -> None:
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

    def _report(self, slots: list[_Slot], outcome: Outcome) -> None:
        images: Counter[str] = Counter()
        for tally in [*self._gone, *(slot.tally for slot in slots)]:
            images.update(tally.images)
        adopted = sum(done.part.rows for done in outcome.done.values() if not done.seconds)
        self._on_progress(images, adopted)

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
    images = sum(tally.images.total() - tally.first_batch for tally in steady)
    return images / (max(tally.last_at for tally in steady) - min(tally.first_at for tally in steady))
