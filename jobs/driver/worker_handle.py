"""A worker as the driver sees it: its actor, the shards it was given, its progress, its death."""

import contextlib
from collections import deque
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

import ray
from ray.actor import ActorHandle
from ray.exceptions import (
    ActorUnavailableError,
    NodeDiedError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    WorkerCrashedError,
)

from jobs.driver.retry_queue import Task
from jobs.driver.worker_progress import WorkerProgress
from jobs.ray_cluster import Workers

# The memory monitor of Ray kills workers too, and says so by an error of its own.
DEATHS: Final = (RayActorError, OutOfMemoryError, NodeDiedError, WorkerCrashedError)

# A node's death is known to the cluster only some time after its workers have fallen silent.
_SOON_SECONDS: Final = 3.0
_UNCLEAR_SECONDS: Final = 90.0


@dataclass(frozen=True, slots=True)
class HangTimeouts:
    """How long a worker may make no progress before it counts as hung.

    first_seconds: until its first batch is done, when nothing is known of its speed. After that
    quiet_seconds, or what batches take at the slowest observed images/s, times as long, if that is more.
    """

    first_seconds: float = 900.0
    quiet_seconds: float = 300.0
    times: float = 20.0

    def limit(self, own: WorkerProgress, slowest: float) -> float:
        """Seconds without progress after which the worker with the tally own is hung.

        slowest: the most batch_seconds of any worker.
        """
        return max(self.quiet_seconds, self.times * slowest) if own.images else self.first_seconds


PATIENCE: Final = HangTimeouts()


class RayWorker:
    """All that is asked of Ray for one worker: start it, call it, end it."""

    def __init__(self, worker: type, settings: Any, workers: Workers) -> None:
        actor_class = ray.remote(
            num_cpus=workers.cores, num_gpus=workers.gpus, concurrency_groups={"tally": 1}
        )(worker)
        self._handle: ActorHandle = actor_class.remote(settings, workers.cores)

    def introduce(self) -> ray.ObjectRef:
        """What the worker says about itself, and the id of its node: there as soon as it has started."""
        return self._handle.__ray_call__.remote(_introduction)

    def run(self, *arguments: Any) -> ray.ObjectRef:
        """The result of a task, which waits for those given before it."""
        return self._handle.run.remote(*arguments)

    def tally(self) -> ray.ObjectRef:
        """How far the worker is, beside what it runs."""
        return self._handle.tally.remote()

    def end(self) -> None:
        ray.kill(self._handle)


class WorkerHandle:
    """A worker: its actor, the shards it was given (the first one runs), and its last tally.

    The deadline of the shard that runs moves on with every image prepared and every batch finished.
    """

    def __init__(self, actor: RayWorker, now: float) -> None:
        self.actor = actor
        self.queue: deque[tuple[ray.ObjectRef, Task]] = deque()
        self._careful = False
        self.tally = WorkerProgress()
        self.about: dict[str, Any] | None = None
        self.node: str | None = None
        self._starting = actor.introduce()
        self.asked: ray.ObjectRef | None = None  # its next tally
        self.made_at = self._moved_at = now
        self._seen: tuple[Task | None, int, int] = (None, 0, 0)

    def is_up(self) -> bool:
        """Whether the worker has started. Raises DEATHS where that failed."""
        if self.about is None and ray.wait([self._starting], timeout=0)[0]:
            self.about, self.node = ray.get(self._starting)
        return self.about is not None

    @property
    def careful(self) -> bool:
        """Whether it runs a shard carefully."""
        return bool(self.queue) and self._careful

    def give(self, task: Task, arguments: tuple[Any, ...], careful: bool) -> None:
        self._careful = careful
        self.queue.append((self.actor.run(*arguments, careful), task))

    def ask_tally(self) -> None:
        """Ask how far the worker is, unless it has not answered yet."""
        if self.about is not None and self.asked is None:
            self.asked = self.actor.tally()

    def take_tally(self) -> None:
        """Take the answer, which is there."""
        asked, self.asked = self.asked, None
        # Of a death the loop hears by the shards, and replaces the worker.
        with contextlib.suppress(*DEATHS):
            self.tally = ray.get(asked)

    def note_progress(self, now: float) -> None:
        """Look whether the worker has moved on since the last time: see quiet_seconds."""
        seen = (self.queue[0][1] if self.queue else None, self.tally.images, self.tally.prepared)
        if seen != self._seen:
            self._seen, self._moved_at = seen, now

    def quiet_seconds(self, now: float) -> float:
        """How long the shard that runs has made no progress; 0 where none runs."""
        return now - self._moved_at if self.queue else 0.0

    def waits_for(self) -> ray.ObjectRef | None:
        """What the driver waits for: the start, then the shard that runs; of an idle worker nothing."""
        if self.about is None:
            return self._starting
        return self.queue[0][0] if self.queue else None


class LossCause(Enum):
    """Why a worker is no longer there, as far as is known."""

    UNKNOWN = "unknown"
    NODE = "its node was lost"
    WORKER = "it died, or was killed"


class WorkerLoss:
    """A worker that was lost, while it is not clear whether its node was lost as well.

    Of a lost node Ray says at first only that the actor cannot be reached (ActorUnavailableError), and of
    a worker that died on a machine under load as well. made_at, since: when it was started and was lost.
    """

    def __init__(self, slot: WorkerHandle, error: RayError, now: float) -> None:
        self._slot, self.made_at, self.since = slot, slot.made_at, now
        self.task = slot.queue[0][1] if slot.queue else None
        self.why = _reason(error)
        self._unclear = isinstance(error, ActorUnavailableError)
        self._asked: ray.ObjectRef | None = None

    def verdict(self, now: float, nodes: set[str]) -> LossCause:
        """nodes: ids of those that live."""
        if self._slot.node is not None and self._slot.node not in nodes:
            return LossCause.NODE
        if self._unclear and now - self.since < _UNCLEAR_SECONDS:
            return self._ask()
        return LossCause.WORKER if now - self.since > _SOON_SECONDS else LossCause.UNKNOWN

    def _ask(self) -> LossCause:
        """Whether the actor answers: then the connection alone was lost, and no node."""
        if self._asked is None:
            self._asked = self._slot.actor.tally()
        elif ray.wait([self._asked], timeout=0)[0]:
            asked, self._asked = self._asked, None
            try:
                ray.get(asked)
            except ActorUnavailableError:
                return LossCause.UNKNOWN
            except DEATHS as error:
                self.why, self._unclear = _reason(error), False
            else:
                return LossCause.WORKER
        return LossCause.UNKNOWN

    def end(self) -> None:
        """Make sure that the actor is gone: it may only be out of reach, and still hold its cores."""
        self._slot.actor.end()


def _reason(error: RayError) -> str:
    """Of Ray's many lines the last, without its list of common causes."""
    return str(error).splitlines()[-1].partition(" Some common causes")[0]


def _introduction(worker: Any) -> tuple[dict[str, Any], str]:
    return worker.about(), ray.get_runtime_context().get_node_id()


def living_nodes() -> set[str]:
    """Ids of the nodes that the cluster counts as alive."""
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}
